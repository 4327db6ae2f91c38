"""Two programs write one target at once, in containers: both are process 1, and neither is dead."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.forked import needs_linux
from tests.kills.namespaces import UNSHARE, needs_processes
from tests.kills.programs import Program, Programs, read

pytestmark = needs_linux


def run_twice(program: Program, folder: Path) -> list[tuple[int, str]]:
    """Run a program twice at the same time; give statuses and errors, the lower status first."""
    command = [*UNSHARE, "--pid", "--fork", "--mount-proc", *program.command(folder)]
    processes = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    return sorted((process.returncode, text) for process, text in zip(processes, errors, strict=True))


@needs_processes
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("convert", 2),
        ("generate", 2),
        pytest.param("convert", 20, marks=pytest.mark.nightly),
        pytest.param("generate", 20, marks=pytest.mark.nightly),
        pytest.param("coreml", 5, marks=pytest.mark.nightly),
        pytest.param("verify", 5, marks=pytest.mark.nightly),
    ],
)
def test_both_end_well(name: str, count: int, programs: Programs, tmp_path: Path) -> None:
    program = programs[name]
    for index in range(count):
        folder = program.begin(tmp_path / str(index), "old")
        assert [status for status, _ in run_twice(program, folder)] == [0, 0]
        assert read(folder) == program.new
    print(f"{name}: {count} pairs of writers, all ended well")


@needs_processes
@pytest.mark.nightly
def test_one_training_is_told_of_the_other(programs: Programs, tmp_path: Path) -> None:
    program, told = programs["finetune"], 0
    for index in range(5):
        folder = program.begin(tmp_path / str(index), "old")
        (first, _), (second, errors) = run_twice(program, folder)
        assert first == 0
        if second != 0:  # otherwise it has begun when the first had ended
            assert second == 1
            assert "checkpoints: another program is writing into it" in errors.splitlines()[-1]
            told += 1
        assert read(folder) == program.new
    assert told > 0
    print(f"finetune: 5 pairs of writers, one was told of the other in {told}")
