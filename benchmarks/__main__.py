"""Measurements of a whole machine: `python -m benchmarks run`, `report`, `compare`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from benchmarks.report import ALTERNATIVES, update_readme, write_report, write_summary
from benchmarks.run import run_everything
from moddit.benchmark.comparison import compare as compare_records
from moddit.benchmark.record import read_record
from moddit.benchmark.table import markdown
from moddit.errors import ModditError
from moddit.files import new_file

FOLDER = Path(__file__).parent
RECORDS = FOLDER / "records"
README = FOLDER.parent / "README.md"
REPORT = FOLDER.parent / "docs" / "benchmarks.md"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Measure this machine, write the report of all records, compare two records."""


@main.command()
@click.option("--folder", type=click.Path(path_type=Path), default=RECORDS, help="Where to write the records.")
@click.option("--trials", type=click.IntRange(1, 100), default=5, show_default=True, help="Processes for each arm.")
@click.option("--delay", type=click.FloatRange(0, 3600), default=0.0, show_default=True, help="Seconds between them.")
@click.option("--only", multiple=True, metavar="NAME", help="Suites to run; repeatable.  [default: all]")
def run(folder: Path, trials: int, delay: float, only: tuple[str, ...]) -> None:
    """Run everything that this machine can do, and write a record for each suite."""
    for path in run_everything(folder, trials=trials, delay=delay, only=only):
        click.echo(path)


@main.command()
@click.option("--folder", type=click.Path(path_type=Path), default=RECORDS, help="Where the records are.")
@click.option("--output", type=click.Path(path_type=Path), default=REPORT, help="File to write.")
def report(folder: Path, output: Path) -> None:
    """Write tables and plots of all records, beside the published times of other programs; README gets a summary."""
    made = write_report(folder)
    plots = {output.with_name(name): text for name, text in made.plots.items()}
    readme = update_readme(README.read_text(encoding="utf-8"), write_summary(folder))
    for path, text in {output: made.text, **plots, README: readme}.items():
        with new_file(path, overwrite=True) as file:
            file.write(text.encode())
        click.echo(path)
    for name in ALTERNATIVES.keys() - made.plots.keys():
        output.with_name(name).unlink(missing_ok=True)  # of other records


@main.command()
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
def compare(before: Path, after: Path) -> None:
    """Compare two records of the same work; exit status 3 if something became slower, beyond chance."""
    changes = list(compare_records(read_record(before), read_record(after)))
    rows = [("arm", "size", "stage", "after / before", "")]
    for change in sorted(changes, key=lambda item: (item.arm.name, item.arm.height, item.stage)):
        verdict = "slower" if change.is_regression else "faster" if change.is_gain else ""
        ratio = f"{change.ratio.value:.3f} ({change.ratio.low:.3f} to {change.ratio.high:.3f})"
        rows.append((change.arm.name, f"{change.arm.height}x{change.arm.width}", change.stage, ratio, verdict))
    click.echo("\n".join(markdown(rows)))
    if any(change.is_regression for change in changes):
        sys.exit(3)


if __name__ == "__main__":
    try:
        main()
    except ModditError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
