"""Programs in a process that is forked when all that they import is loaded: a run takes a second then, not ten.

An Event happens to the program when it is about to make its nth change of the files in a folder. Python tells audit
hooks of them; what native code writes lies between two of those moments.

Linux only: elsewhere a process that has loaded frameworks, such as Metal, cannot be forked.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import resource
import runpy
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Final

import pytest

PRELOAD: Final = (
    *("convert.coreml.writer", "convert.mlx.writer", "convert.verify.verification", "convert.verify.generation"),
    *("mlx_moddit.cli", "torch_moddit.cli", "tests.classes"),
)
TAKES: Final = frozenset({"open", "os.mkdir", "os.rename", "os.link", "os.symlink"})  # room on a disk
CHANGES: Final = TAKES | {"os.remove", "os.rmdir", "os.truncate"}
TIMEOUT: Final = 300  # seconds, of a program
LIMITS: Final[Mapping[int, int]] = {  # a program that goes mad is stopped before it takes the machine along
    resource.RLIMIT_DATA: 6 << 30,
    resource.RLIMIT_FSIZE: 1 << 30,
    resource.RLIMIT_CORE: 0,
}


needs_linux: Final = pytest.mark.skipif(
    sys.platform != "linux", reason="forks a process that has loaded frameworks, which only Linux can"
)
# Whoever starts a process asks all others for their end, which only one thread at a time may do.
_LOCK: Final = threading.Lock()


@dataclass(frozen=True)
class Outcome:
    """How a program ended."""

    status: int  # negative: the signal that killed it
    output: str
    errors: str
    is_reached: bool = False  # whether the event has happened
    seconds: float = 0.0
    peak_bytes: int = 0  # resident; 0 if a signal killed it
    timed_out: bool = False


@dataclass(frozen=True)
class Event:
    """What happens to a program before its nth change of what is in a folder."""

    folder: Path
    number: int  # from 1
    action: Callable[[Path], None]  # given the folder

    def is_change(self, name: str, values: tuple[Any, ...]) -> bool:
        """Say whether this is what is counted, from what Python tells an audit hook."""
        if name not in (TAKES if self.action is fill else CHANGES):
            return False
        if name == "open" and not values[2] & (os.O_WRONLY | os.O_RDWR):
            return False
        path = values[0]
        if not isinstance(path, (str, bytes, os.PathLike)) or (name == "os.mkdir" and os.path.isdir(path)):
            return False
        # a name alone is within an open folder: shutil.rmtree works so
        return not os.path.isabs(path) or Path(os.fsdecode(path)).is_relative_to(self.folder)


def kill(_: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def terminate(_: Path) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def press_control_c(_: Path) -> None:
    os.killpg(0, signal.SIGINT)


def terminate_all(_: Path) -> None:
    os.killpg(0, signal.SIGTERM)


def fill(_: Path) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def run_forked(
    module: str,
    arguments: Sequence[str],
    event: Event | None = None,
    *,
    folder: Path | None = None,
    seconds: float = TIMEOUT,
) -> Outcome:
    """Run a module to its end, as `python -m` does.

    Args:
        module: that is run as `__main__`.
        arguments: of its command line.
        event: that happens to it.
        folder: where it runs, which is its home folder too; by default where this process does.
        seconds: after which it is killed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOAD))
    with tempfile.TemporaryDirectory() as name:
        notes = Path(name)
        process = context.Process(target=_main, args=(notes, module, list(arguments), event, folder))
        start = time.monotonic()
        with _LOCK:
            process.start()
        timed_out = not wait([process.sentinel], seconds)
        if timed_out:
            assert process.pid is not None
            os.killpg(process.pid, signal.SIGKILL)
        with _LOCK:
            process.join()
        assert process.exitcode is not None
        output, errors = ((notes / part).read_text("utf-8", "replace") for part in ("output", "errors"))
        peak = int((notes / "peak").read_text()) if (notes / "peak").exists() else 0
        is_reached, taken = (notes / "reached").exists(), time.monotonic() - start
        return Outcome(process.exitcode, output, errors, is_reached, taken, peak, timed_out)


def _main(notes: Path, module: str, arguments: list[str], event: Event | None, folder: Path | None) -> None:
    for descriptor, name in ((1, "output"), (2, "errors")):
        os.dup2(os.open(notes / name, os.O_WRONLY | os.O_CREAT, 0o600), descriptor)
    os.setsid()  # a group of its own, as in a shell
    multiprocessing.set_start_method(None, force=True)  # what a program has
    if folder is not None:
        os.chdir(folder)
        os.environ["HOME"] = str(folder)
    for kind, limit in LIMITS.items():
        resource.setrlimit(kind, (limit, limit))
    sys.argv[1:] = arguments
    if event is not None:
        _watch(event, notes / "reached")
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        (notes / "peak").write_text(str(peak if sys.platform == "darwin" else peak << 10))


def _watch(event: Event, reached: Path) -> None:
    """Count changes, and act once."""
    count = 0

    def hook(name: str, values: tuple[Any, ...]) -> None:
        nonlocal count
        if count < event.number and event.is_change(name, values):
            count += 1
            if count == event.number:
                reached.touch()
                event.action(event.folder)

    sys.addaudithook(hook)
