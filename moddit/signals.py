"""Signals that ask a program to end: raised as an exception, and kept waiting where half a thing would be left."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):  # as KeyboardInterrupt, it is no error
    """A signal asked the program to end; no Exception, so that nothing takes it for a failure."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number

    @property
    def status(self) -> int:
        """Exit status of a program that a signal ended."""
        return 128 + self.number


_received: list[int] = []  # since the outermost `end_on_stop` began


def end_on_stop(program: Callable[[], int]) -> int:
    """Run a program; a signal that asks it to end becomes Stopped in it, so that all is cleaned up on the way out.

    Returns:
        what the program returned, or 128 + number after a signal, with one line on standard error.
    """
    if threading.current_thread() is not threading.main_thread():
        return program()
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    try:
        for number in STOP_SIGNALS:
            signal.signal(number, _stop)
        return program()
    except Stopped as stopped:
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # nothing disturbs the last words
        print("interrupted", file=sys.stderr)
        return stopped.status
    finally:
        _received.clear()
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def run_program(load: Callable[[], Callable[[], int]]) -> int:
    """Import a program and run it as `end_on_stop`: a signal, from now on, leaves nothing half written.

    Signals wait while `load` imports it, since the libraries that it loads may swallow exceptions.
    """

    def run() -> int:
        with uninterrupted():
            program = load()
        return program()

    return end_on_stop(run)


def raise_if_stopped() -> None:
    """Raise Stopped again if a library swallowed it: what was stopped must not come to its end."""
    if _received:
        raise Stopped(_received[0])


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let signals wait until the block has ended, and deliver them then.

    For what must not be left half done, and for imports of libraries that swallow exceptions. Blocks may be nested.
    Threads other than the main one never run handlers, and need no protection.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []

    def wait(number: int, _: FrameType | None) -> None:
        waiting.append(number)

    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    # None: a handler that was not installed from Python, which cannot be put back
    replaced = {number: handler for number, handler in before.items() if handler not in (None, signal.SIG_IGN)}
    try:
        for number in replaced:
            signal.signal(number, wait)
        yield
    finally:
        for number, handler in replaced.items():
            signal.signal(number, handler)
        for delivered in dict.fromkeys(waiting):
            os.kill(os.getpid(), delivered)


def _stop(number: int, _: FrameType | None) -> None:
    _received.append(number)
    raise Stopped(number)
