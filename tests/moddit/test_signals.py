"""Signals end a program wherever they come, also where a library takes their exception for its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from moddit.signals import STOP_SIGNALS, raise_if_stopped, run_program


def swallow(number: int) -> None:
    """Receive a signal as the import of a library does that goes on whatever happens."""
    try:
        os.kill(os.getpid(), number)
        signal.sigpending()  # the handler has run by now
    except BaseException:  # noqa: BLE001 # what is shown here
        return


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_during_the_imports_is_not_lost(number: int, capsys: pytest.CaptureFixture[str]) -> None:
    def program() -> int:
        pytest.fail("runs although it was stopped")

    def load() -> Callable[[], int]:
        swallow(number)
        return program

    assert run_program(load) == 128 + number
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_that_a_library_swallows_comes_back(number: int) -> None:
    def program() -> int:
        swallow(number)
        raise_if_stopped()
        return 0

    assert run_program(lambda: program) == 128 + number


def test_handlers_are_as_they_were() -> None:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    assert run_program(lambda: lambda: 3) == 3
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before
