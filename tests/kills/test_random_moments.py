"""Programs are killed at random moments, in their imports, in the libraries that they call and while they write.

Seeded, so that a failure can be had again; `make nightly` kills more.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Final

import pytest

from tests.forked import needs_linux
from tests.kills.programs import STARTS, Program, Programs

pytestmark = needs_linux

SIGNALS: Final = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
SEED: Final = 20261125


def kill(program: Program, folder: Path, after: float, number: signal.Signals) -> int:
    """Start a program, wait, kill it; return its exit status."""
    with subprocess.Popen(
        program.command(folder), stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=_restore
    ) as process:
        try:
            process.wait(after)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    if number != signal.SIGKILL and b"Traceback" in errors:
        # Python itself starts for some 50 ms before a program can say what to do with a signal
        assert b"site.py" in errors or b"<frozen " in errors or b"runpy" in errors, errors.decode()
    return process.returncode


def _restore() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest may itself run with it ignored


def measure(program: Program, folder: Path) -> tuple[float, float]:
    """Say how long a program lives before it writes something, and in all."""
    before, start, silence = list(os.walk(folder)), time.monotonic(), 0.0
    with subprocess.Popen(program.command(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            if list(os.walk(folder)) == before:
                silence = time.monotonic() - start
            time.sleep(0.005)
    assert process.returncode == 0
    return silence, time.monotonic() - start


def torment(program: Program, count: int, scratch: Path) -> Counter[str]:
    """Kill a program at random moments, each time in a folder of its own; count what it leaves at its target.

    Half of the moments lie in its whole life, half in the part in which it writes.
    """
    chance = random.Random(SEED)
    # the first time it may be slower, with nothing cached
    silence, lifetime = min(measure(program, program.begin(scratch / f"life{index}", "old")) for index in range(2))
    found: Counter[str] = Counter()
    while found.total() - found["finished"] < count:
        assert found["finished"] < 5 * count, "the program ends before it is killed"
        start, number = STARTS[found.total() % 2], chance.choice(SIGNALS)
        folder = program.begin(scratch / str(found.total()), start)
        status = kill(program, folder, chance.uniform(chance.choice((0, silence)), 1.1 * lifetime), number)
        state = program.judge(folder, start, may_leave=number == signal.SIGKILL)
        found["finished" if status == 0 else state] += 1
        program.check_next(folder)
        shutil.rmtree(folder)
    told = ", ".join(f"{found[state]} {state}" for state in ("absent", "old", "new"))
    print(f"{count} kills of {program.name}: {told}; {found['finished']} came too late")
    return found


def test_some_kills(programs: Programs, tmp_path: Path) -> None:
    for name in ("convert", "generate"):
        assert torment(programs[name], 4, tmp_path / name).total() >= 4  # of which four were killed in time


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "count"),
    [("convert", 100), ("generate", 80), ("coreml", 50), ("coreml verified", 30), ("finetune", 60), ("verify", 40)],
)
def test_many_kills(name: str, count: int, programs: Programs, tmp_path: Path) -> None:
    found = torment(programs[name], count, tmp_path)
    assert found["absent"] > 0
    assert found["old"] > 0
