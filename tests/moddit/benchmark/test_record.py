"""The file of a benchmark: read as it was written, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import jsonschema
import pytest

from moddit.benchmark.record import read_record
from moddit.benchmark.summary import routing_gains
from moddit.benchmark.table import write_table
from moddit.errors import FormatError, InputError, MissingError
from scripts.schema import DOCS, make_benchmark_schema
from tests.moddit.benchmark.records import record

RECORD: Final = record({"dense": [[1.0, 1.1], [1.2]], "routed": [[0.5], [0.6]]})
SCHEMA: Final = jsonschema.Draft202012Validator(json.loads(make_benchmark_schema()))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(RECORD.write())
    assert read_record(tmp_path / "a.json") == RECORD
    SCHEMA.validate(json.loads(RECORD.write()))


def test_an_arm_may_lack_what_it_does_not_have(tmp_path: Path) -> None:
    fields: dict[str, Any] = dict.fromkeys(("height", "width", "tokens", "kept_tokens", "step_flops"))
    made = replace(RECORD, arms=(RECORD.arms[0], replace(RECORD.arms[1], **fields)))
    (tmp_path / "a.json").write_text(made.write())
    assert read_record(tmp_path / "a.json") == made
    SCHEMA.validate(json.loads(made.write()))
    assert not list(routing_gains(made))
    assert "| -       | routed |" in write_table(made)


def test_the_schema_in_the_documentation_is_that_of_the_types() -> None:
    assert (DOCS / "benchmark.schema.json").read_text(encoding="utf-8") == make_benchmark_schema(), "make golden"


def put(*path: str | int, value: Any) -> Callable[[Any], None]:
    def change(node: Any) -> None:
        for step in path[:-1]:
            node = node[step]
        node[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("version", value=2), "version is unknown, got 2, want 1; run the benchmark again"),
        (put("machine", "chip", value=""), "machine.chip"),
        (put("arms", 0, "runtime", value="onnx"), "arms[0].runtime is 'onnx', want mlx or coreml or torch"),
        (put("arms", value=[]), "arms"),
        (put("trials", 1, "arm", value=2), "trials[1].arm is 2, want below 2"),
        (put("trials", 0, "stages", 0, "seconds", value=[0.0]), "trials[0].stages[0].seconds[0] is 0.0"),
        (put("trials", 0, "stages", 0, "seconds", value=[]), "trials[0].stages[0].seconds"),
        (put("trials", 0, "stages", 1, "name", value="load"), "trials[0] has a stage twice"),
        (put("trials", 0, "before", "thermal_state", value="hot"), "trials[0].before.thermal_state is 'hot'"),
        (put("trials", 0, "stages", 0, "runtime_peak_bytes", value=-1), "runtime_peak_bytes is -1"),
        (put("options", "x", value=[1]), "options"),
        (put("extra", value=1), "extra"),
    ],
)
def test_a_damaged_record_is_refused(tmp_path: Path, change: Callable[[Any], None], message: str) -> None:
    value = json.loads(RECORD.write())
    change(value)
    (tmp_path / "a.json").write_text(json.dumps(value))
    with pytest.raises(InputError) as caught:
        read_record(tmp_path / "a.json")
    assert message in str(caught.value)
    assert "a.json" in str(caught.value)


def test_no_record(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"a\.json: .*want the record that a benchmark wrote with --json"):
        read_record(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(FormatError, match="version is unknown, got null"):
        read_record(tmp_path / "a.json")
