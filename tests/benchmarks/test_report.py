"""The report, of the records that are there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
from click.testing import CliRunner

from benchmarks.__main__ import README, RECORDS, REPORT, main
from benchmarks.accuracy import BOUND, samples_by_machine
from benchmarks.plots import draw
from benchmarks.report import update_readme, write_report, write_summary
from benchmarks.run import suites
from mlx_moddit.planner.calibration import by_model, by_size, cross_validate
from moddit.benchmark.plausible import find_faults
from moddit.benchmark.record import read_record
from moddit.benchmark.summary import DENSE, ORACLE, ROUTED
from moddit.errors import FormatError, MissingError
from tests.moddit.benchmark.records import record

GOOD = replace(record({"dense": [[2.0]] * 3, "routed": [[1.0]] * 3}), commit="0" * 40)


@pytest.mark.parametrize("path", sorted(RECORDS.glob("*.json")), ids=lambda path: path.stem)
def test_a_contributed_record_can_be_true(path: Path) -> None:
    assert list(find_faults(read_record(path))) == []


@pytest.mark.skipif(not list(RECORDS.glob("*.json")), reason="no records yet")
def test_the_report_is_that_of_the_records() -> None:
    report = write_report(RECORDS)
    assert REPORT.read_text(encoding="utf-8") == report.text, "python -m benchmarks report"
    plots = {path.name: path.read_text(encoding="utf-8") for path in REPORT.parent.glob("benchmarks-*.svg")}
    assert plots == report.plots, "python -m benchmarks report"
    text = README.read_text(encoding="utf-8")
    assert update_readme(text, write_summary(RECORDS)) == text, "python -m benchmarks report"


def test_a_readme_without_marks_is_left_alone() -> None:
    with pytest.raises(FormatError, match="want '<!-- made by"):
        update_readme("text", "summary")


def test_a_report_has_a_table_for_each_record(tmp_path: Path) -> None:
    (tmp_path / "m3.json").write_text(GOOD.write())
    text = write_report(tmp_path).text
    assert "## m3" in text
    assert "| 512x512 | routed |" in text
    assert "FLUX.2 klein-4B" in text


def test_plots_show_every_size_and_gain_and_are_always_the_same() -> None:
    made = record({"dense": [[2.0]] * 3, "oracle": [[0.9]] * 3, "routed": [[1.0]] * 3, "routed 0.8": [[1.5]] * 3})
    assert sorted(draw([made])) == ["gains"]  # one size is no line
    small = tuple(replace(arm, height=256, width=256, tokens=256) for arm in made.arms)
    trials = tuple(replace(trial, arm=trial.arm + len(small)) for trial in made.trials)
    made = replace(made, arms=(*made.arms, *small), trials=(*made.trials, *trials))
    plots = draw([made])
    assert plots == draw([made])
    assert sorted(plots) == ["gains", "steps"]
    assert "pixart-sigma-xl, 28 layers, Apple M3 Pro GPU" in plots["steps"]
    assert all(f">{word}<" in plots["steps"] for word in (DENSE, ORACLE, ROUTED, "256", "1024"))
    assert "all that FLOPs promise" in plots["gains"]


def test_records_without_routing_have_no_plots(tmp_path: Path) -> None:
    (tmp_path / "m3.json").write_text(replace(record({"dense": [[2.0]] * 3}), commit="0" * 40).write())
    report = write_report(tmp_path)
    assert not report.plots
    assert "![" not in report.text


def test_plots_of_other_records_do_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test_records_without_routing_have_no_plots(tmp_path)
    readme, gains = tmp_path / "README.md", tmp_path / "benchmarks-gains.svg"
    readme.write_text(README.read_text(encoding="utf-8"), encoding="utf-8")
    gains.write_text("<svg/>")
    monkeypatch.setattr("benchmarks.__main__.README", readme)
    done = CliRunner().invoke(main, ["report", "--folder", str(tmp_path), "--output", str(tmp_path / "benchmarks.md")])
    assert done.exit_code == 0, done.output
    assert not gains.exists()


def test_a_record_that_cannot_be_true_is_not_reported(tmp_path: Path) -> None:
    (tmp_path / "m3.json").write_text(replace(GOOD, commit=None).write())
    with pytest.raises(FormatError, match=r"m3\.json: commit is None.*measure again"):
        write_report(tmp_path)
    with pytest.raises(MissingError, match="no records"):
        write_report(tmp_path / "absent")


def test_a_comparison_ends_with_status_3_if_something_is_slower(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(GOOD.write())
    slow = record({"dense": [[3.0]] * 3, "routed": [[1.0]] * 3})
    (tmp_path / "b.json").write_text(slow.write())
    result = CliRunner().invoke(main, ["compare", str(tmp_path / "a.json"), str(tmp_path / "b.json")])
    assert result.exit_code == 3
    assert "slower" in result.output
    assert CliRunner().invoke(main, ["compare", str(tmp_path / "b.json"), str(tmp_path / "a.json")]).exit_code == 0


def test_every_suite_can_be_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.run.embedded_bundle", lambda: Path("bundle"))
    for suite in suites().values():
        assert suite.turns
    result = CliRunner().invoke(main, ["run", "--only", "absent"])
    assert isinstance(result.exception, MissingError)


@pytest.mark.skipif(not list(RECORDS.glob("*.json")), reason="no records yet")
def test_sizes_and_models_of_a_machine_are_predicted_by_rates_fitted_on_its_others() -> None:
    """Nine in ten steps and decodings within 25 %: of three widths of models, dense and routed, at several sizes."""
    records = [read_record(path) for path in sorted(RECORDS.glob("amd-epyc-*.json"))]
    (samples,) = samples_by_machine(records).values()
    assert len({sample.model for sample in samples if sample.name == "step"}) >= 3
    for group in (by_size, by_model):
        found = cross_validate(samples, group)
        errors = [abs(error.share) for error in found if error.sample.name in ("step", "decode")]
        assert sum(error <= BOUND for error in errors) >= 0.9 * len(errors) >= 0.9 * 30
        assert median(errors) < 0.15
