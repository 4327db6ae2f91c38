"""Conversions, and what is less than one, are measured on the same checkpoint."""

from __future__ import annotations

import sys
from subprocess import CalledProcessError
from typing import Final

import pytest

from benchmarks.conversion import QUANTISED, Job, run, run_metered
from moddit.benchmark.record import Arm
from moddit.record import Origin, decode

LAYERS: Final = 1


@pytest.mark.parametrize(("program", "bits"), [("cp", None), ("diffusers load and save", None), ("convert", QUANTISED)])
def test_a_trial_is_recorded_as_ours(program: str, bits: int | None) -> None:
    found = run(Job(program, bits, "dit-s-2", LAYERS))
    arm = decode(found["arm"], Arm, Origin("benchmark", "arm"))
    assert (arm.name, arm.runtime) == (program if bits is None else "convert 4-bit", "files")
    (stage,) = found["stages"]
    assert stage["name"] == "convert"
    assert 1e6 < stage["process_peak_bytes"] < 2e9


def test_the_memory_is_that_of_the_program() -> None:
    size = 300_000_000
    _, little = run_metered([sys.executable, "-c", ""])
    _, much = run_metered([sys.executable, "-c", f"bytes(1) * {size}"])
    assert little < 1e8
    assert size < much < 2 * size


def test_a_program_that_fails_is_no_measurement() -> None:
    with pytest.raises(CalledProcessError):
        run_metered([sys.executable, "-c", "raise SystemExit(2)"])
