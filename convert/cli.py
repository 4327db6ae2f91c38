"""`python -m convert`: from a checkpoint to a bundle."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Final

import click
from tqdm import tqdm

from convert.conversion import convert
from convert.mlx.layout import Recipe
from convert.mlx.quantize import BITS, GROUP_SIZES
from convert.precision import DTYPES
from convert.summary import Summary
from moddit.errors import ModditError

SOURCES: Final = ("hf-checkpoint",)
BACKENDS: Final = ("mlx",)
_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--from", "source_kind", required=True, type=click.Choice(SOURCES), help="Layout of the checkpoint.")
@click.option(
    "--hf-path",
    metavar="FOLDER|ID",
    help="Diffusers pipeline folder, or id on the Hugging Face Hub. [default: the embedded checkpoint]",
)
@click.option("--to", "backend", type=click.Choice(BACKENDS), default="mlx", show_default=True, help="Runtime.")
@click.option(
    "--out",
    "--mlx-path",
    type=click.Path(path_type=Path),
    default=Path("mlx_model"),
    show_default=True,
    help="Folder of the bundle, which must not exist.",
)
@click.option(
    "--dtype",
    type=click.Choice(list(DTYPES)),
    default="float16",
    show_default=True,
    help="Of the large weights; norms, embeddings, modulation, routers and the output projection are never narrowed.",
)
@click.option("-q", "--quantize", is_flag=True, help="Quantise the matrices of transformer and text encoder.")
@click.option(
    "--q-bits",
    type=click.Choice(list(map(str, BITS))),
    default="4",
    show_default=True,
    help="Bits of a weight; with -q.",
)
@click.option(
    "--q-group-size",
    type=click.Choice(list(map(str, GROUP_SIZES))),
    default="64",
    show_default=True,
    help="Weights that share a scale; with -q.",
)
@click.option("--overwrite", is_flag=True, help="Replace a bundle at --out, once the new one is whole.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def command(
    source_kind: str,
    hf_path: str | None,
    backend: str,
    out: Path,
    dtype: str,
    quantize: bool,
    q_bits: str,
    q_group_size: str,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Convert a checkpoint to a bundle for a runtime.

    Without --hf-path it converts the checkpoint that comes with moddit. The summary goes to standard output, progress
    to standard error.
    """
    assert source_kind in SOURCES
    assert backend in BACKENDS
    recipe = Recipe(dtype, int(q_bits) if quantize else None, int(q_group_size))
    summary = Summary(convert(hf_path, out, recipe, overwrite=overwrite, progress=_progress_bar))
    click.echo(json.dumps(summary.to_json(), indent=2) if as_json else summary.to_text())


def main() -> None:
    """Run the command; exit with 1 on an error, 2 on wrong usage, 128 + number on a signal."""
    for number in _STOP_SIGNALS:
        signal.signal(number, _stop)
    try:
        command.main(prog_name="python -m convert", standalone_mode=False)
    except ModditError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(1)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)


def _stop(number: int, _: FrameType | None) -> None:
    for other in _STOP_SIGNALS:
        signal.signal(other, signal.SIG_IGN)  # a second one must not stop the cleaning up
    raise SystemExit(128 + number)


def _progress_bar(what: str, total: int) -> Callable[[int], object]:
    bar = tqdm(total=total, desc=what, unit="B", unit_scale=True, unit_divisor=1024, disable=None, file=sys.stderr)

    def advance(count: int) -> None:
        bar.update(count)
        if bar.n >= total:
            bar.close()

    return advance
