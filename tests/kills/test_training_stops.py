"""A fine-tuning that is stopped says how it goes on, with processes that read data too."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.forked import Event, kill, needs_linux, press_control_c, terminate_all
from tests.kills.programs import Programs

pytestmark = needs_linux

# Changes of the run's folder, and from where it goes on when it is stopped there.
PLACES: Final = {3: "the start, since there is no checkpoint yet", 30: "step 2", 44: "step 3"}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("action", "number"), [(press_control_c, signal.SIGINT), (terminate_all, signal.SIGTERM)])
def test_says_how_it_goes_on(
    action: Callable[[Path], None], number: int, workers: int, programs: Programs, tmp_path: Path
) -> None:
    program = programs["finetune"]
    folder = program.begin(tmp_path / "work", "absent")
    for change, place in PLACES.items():
        outcome = program.run(folder, Event(folder, change, action), ("--workers", str(workers)))
        assert outcome.status == 128 + number
        assert outcome.errors.splitlines()[-2:] == [f"stopped; the same command goes on from {place}", "interrupted"]
        assert "Traceback" not in outcome.errors
        program.judge(folder, "absent", may_leave=False)
        shutil.rmtree(folder / "run")
    program.check_next(folder)


def test_goes_on_at_once_when_processes_that_read_data_outlive_it(programs: Programs, tmp_path: Path) -> None:
    program = programs["finetune"]
    folder = program.begin(tmp_path / "work", "absent")
    outcome = program.run(folder, Event(folder, 20, kill), ("--workers", "1"))
    assert outcome.status == -signal.SIGKILL
    program.check_next(folder)
