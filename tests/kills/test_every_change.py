"""Programs die, are stopped or find the disk full at every change that they make to the files around their target."""

from __future__ import annotations

import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.forked import Event, Outcome, fill, kill, needs_linux, terminate
from tests.kills.programs import STARTS, Program, Programs

pytestmark = needs_linux

QUICK = ("convert", "generate", "sensitivity")
SLOW = ("coreml", "finetune", "prepare", "verify")  # seconds a run


def list_cases(slow_starts: Sequence[str]) -> list[Any]:
    """List programs and what they start from; for slow ones, that may be less."""
    quick = [pytest.param(name, start) for name in QUICK for start in STARTS]
    return quick + [pytest.param(name, start, marks=pytest.mark.nightly) for name in SLOW for start in slow_starts]


def interrupt(
    program: Program, start: str, action: Callable[[Path], None], scratch: Path
) -> Iterator[tuple[Path, Outcome]]:
    """Run a program until its nth change, for n from 1 until it comes to its end; give the folder each time."""
    for number in range(1, 1000):
        folder = program.begin(scratch / str(number), start)
        outcome = program.run(folder, Event(folder, number, action))
        if not outcome.is_reached:
            assert outcome.status == 0, outcome.errors
            assert number > 2
            return
        yield folder, outcome
        shutil.rmtree(folder)
    pytest.fail("never came to the end")


def report(program: Program, what: str, start: str, found: Counter[str]) -> None:
    told = ", ".join(f"{found[state]} {state}" for state in ("absent", "old", "new"))
    print(f"{program.name}, {start} at the start, {what} at each of {found.total()} changes: {told}")


@pytest.mark.parametrize(("name", "start"), list_cases(STARTS))
def test_killed(name: str, start: str, programs: Programs, tmp_path: Path) -> None:
    program, found = programs[name], Counter[str]()
    for folder, outcome in interrupt(program, start, kill, tmp_path):
        assert outcome.status == -signal.SIGKILL
        found[program.judge(folder, start, may_leave=True)] += 1
        program.check_next(folder)
    report(program, "killed", start, found)


@pytest.mark.parametrize(("name", "start"), list_cases(["old"]))
def test_stopped(name: str, start: str, programs: Programs, tmp_path: Path) -> None:
    program, found = programs[name], Counter[str]()
    for folder, outcome in interrupt(program, start, terminate, tmp_path):
        assert outcome.status == 128 + signal.SIGTERM
        assert outcome.errors.splitlines()[-1] == "interrupted"
        assert "Traceback" not in outcome.errors
        found[program.judge(folder, start, may_leave=False)] += 1
    report(program, "stopped", start, found)


@pytest.mark.parametrize(("name", "start"), list_cases(["old"]))
def test_disk_full(name: str, start: str, programs: Programs, tmp_path: Path) -> None:
    program, found = programs[name], Counter[str]()
    for folder, outcome in interrupt(program, start, fill, tmp_path):
        is_done = outcome.status == 0  # of the swap, only the last rename has failed
        state = program.judge(folder, start, may_leave=is_done)
        if is_done:
            assert state == "new"
            program.check_next(folder)
        else:
            program.check_refusal(folder, outcome, "disk is full")
        found[state] += 1
    report(program, "no room", start, found)
