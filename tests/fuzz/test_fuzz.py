"""A sample of `make fuzz`: no damaged input ends a program otherwise than with an error that names it."""

from __future__ import annotations

import pytest

from tests.forked import needs_linux
from tests.fuzz.__main__ import run_cases, table
from tests.fuzz.programs import PROGRAMS, Case, draw_cases

COUNT = 300
SEED = 1


@needs_linux
def test_damaged_inputs_end_with_one_error_that_names_them(capsys: pytest.CaptureFixture[str]) -> None:
    verdicts = list(run_cases(draw_cases(COUNT, SEED), jobs=2))
    with capsys.disabled():
        print(f"\n{table(verdicts)}")
    assert [str(verdict) for verdict in verdicts if verdict.faults] == []
    accepted = sum(verdict.run.status == 0 for verdict in verdicts)
    assert 0.1 < accepted / COUNT < 0.5  # neither is all of it harmless, nor does nothing run at all
    assert {verdict.case.program for verdict in verdicts} == PROGRAMS.keys()


def test_cases_are_the_same_again() -> None:
    assert draw_cases(50, 3) == draw_cases(50, 3) != draw_cases(50, 4)
    case = Case("convert", "0-1")
    assert case.chance.random() == case.chance.random()
