"""The record that `moddit-cli benchmark` writes is read as Python's own; a Swift test writes and compares the file."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Final

import jsonschema
import pytest

from moddit import cost
from moddit.benchmark.record import BenchmarkRecord, Trial, read_record
from moddit.benchmark.summary import peak_bytes, stage_medians
from moddit.benchmark.table import write_table
from moddit.graphs import Graphs, StepFunction
from scripts.golden import EMBEDDED, ROOT
from scripts.golden_manifests import make_bundles
from scripts.schema import DOCS

RECORD: Final = ROOT / "tests/shared/coreml-benchmark.json"
MANIFEST: Final = make_bundles(EMBEDDED)["routed"]
SIZE: Final = (32, 32)


@pytest.fixture(scope="module")
def record() -> BenchmarkRecord:
    return read_record(RECORD)


def step_functions() -> dict[str, StepFunction]:
    assert isinstance(MANIFEST.graphs, Graphs)
    found = {f"transformer/{item.function}": item for item in MANIFEST.graphs.step_functions}
    return {name: item for name, item in found.items() if (item.height, item.width) == SIZE}


def test_the_record_follows_the_schema_and_is_written_as_python_writes() -> None:
    text = RECORD.read_text(encoding="utf-8")
    value = json.loads(text)
    schema = json.loads((DOCS / "benchmark.schema.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(value)
    assert text == json.dumps(value, sort_keys=True, indent=1) + "\n"


def test_nothing_is_lost(record: BenchmarkRecord, tmp_path: Path) -> None:
    assert json.loads(record.write()) == json.loads(RECORD.read_text(encoding="utf-8"))
    (tmp_path / "a.json").write_text(record.write())
    assert read_record(tmp_path / "a.json") == record


def test_the_arms_are_the_functions_of_the_bundle(record: BenchmarkRecord) -> None:
    prepared = [f"prepare/batch{batch}" for batch in (2, 1)]
    names = ["text_encoder/encode", *prepared, *step_functions(), "vae_decoder/px32x32", "vae_encoder/px32x32"]
    assert [arm.name for arm in record.arms] == names
    assert {(arm.runtime, arm.device, arm.dtype, arm.steps) for arm in record.arms} == {
        ("coreml", "cpuAndGPU", "float16", 1)
    }
    encoder, *_, vae = record.arms
    assert (encoder.height, encoder.tokens, encoder.step_flops) == (None, MANIFEST.spec.text_tokens, None)
    assert (vae.height, vae.width, vae.tokens, vae.kept_tokens, vae.step_flops) == (*SIZE, None, None, None)
    assert record.subject.fingerprint == MANIFEST.fingerprint
    assert record.subject.name == MANIFEST.provenance.source


def test_flops_and_kept_tokens_are_pythons(record: BenchmarkRecord) -> None:
    spec, policy = MANIFEST.spec, MANIFEST.tokens  # more bundles are in ManifestTests.swift
    arms = {arm.name: arm for arm in record.arms}
    for name, item in step_functions().items():
        arm = arms[name]
        assert arm.tokens is not None
        flops = cost.step_flops(spec.transformer, policy, item.regions[0], arm.tokens, spec.text_tokens)
        assert (arm.batch, arm.kept_tokens) == (item.batch, mean(item.capacities))
        assert arm.step_flops == item.batch * flops


def test_a_cold_process_and_a_cached_one_take_turns(record: BenchmarkRecord) -> None:
    stages = [[stage.name for stage in trial.stages] for trial in record.trials]
    assert stages == [["load_cold"], ["load_cached", "first_predict", "predict"]] * 22
    order = [trial.arm for trial in record.trials[::2]]
    assert order == [*range(11), *reversed(range(11))]
    assert [trial.arm for trial in record.trials[1::2]] == order


def test_every_sample_and_peak_is_there(record: BenchmarkRecord) -> None:
    assert {tuple(map(len, _samples(trial))) for trial in record.trials} == {(1,), (1, 1, 2)}
    assert stage_medians(record, 0, "load_cold") == [1 / 64, 1 / 64]
    assert stage_medians(record, 0, "predict") == [11 / 64, 11 / 64]
    assert peak_bytes(record, 0, "footprint_peak_bytes") == 1_500_000
    assert peak_bytes(record, 0, "process_peak_bytes") == 9_000_000
    planned = [trial.operations for trial in record.trials if trial.arm == 0]
    assert planned == [{}, {"CPU": 1, "GPU": 2, "unknown": 1}] * 2
    assert all(
        not trial.operations for trial in record.trials if trial.arm == len(record.arms) - 1
    )  # no placement of it


def test_the_conditions_are_those_of_each_process(record: BenchmarkRecord) -> None:
    assert {trial.before.thermal_state for trial in record.trials} == {"fair"}
    loads = [(trial.before.load_average, trial.after.load_average) for trial in record.trials]
    assert loads == [(number / 4, (number + 1) / 4) for number in range(44)]
    assert asdict(record.machine)["gpu_cores"] == 18
    assert "Measured on battery, thermal state fair" in write_table(record)


def test_the_table_has_the_loads_and_the_calls_of_every_function(record: BenchmarkRecord) -> None:
    head, _, *rows = write_table(record).split("\n\n")[1].splitlines()
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in (head, *rows)]
    loads = ["load cold s", "load cached s", "first predict s", "predict s"]
    assert cells[0] == ["size", "arm", "on", *loads, "process GB", "operations"]
    seconds = ["0.0156 (0.0156-0.0156)", "0.0156 (0.0156-0.0156)", "0.0781 (0.0781-0.0781)", "0.172 (0.172-0.172)"]
    plan = "1 CPU, 2 GPU, 1 unknown"
    assert cells[1] == ["-", "text_encoder/encode", "coreml cpuAndGPU float16", *seconds, "0.00", plan]
    assert [row[1] for row in cells[1:]] == [arm.name for arm in record.arms]
    assert cells[-1][-1] == "-"


def _samples(trial: Trial) -> list[tuple[float, ...]]:
    return [stage.seconds for stage in trial.stages]
