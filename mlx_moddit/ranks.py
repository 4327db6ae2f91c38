"""Processes that `mlx.launch` started for one run, on one machine or several: each draws a part of its pictures.

    ranks = Ranks.join()                 # one, and alone, unless mlx.launch started this process
    mine = requests[ranks.parts(len(requests))[ranks.rank]]
    everything = ranks.gather(what_i_did)  # of all ranks, in their order

They talk twice: before the first picture, and after the last. In between none needs another, so what a rank has written
stays whatever becomes of the others.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, Final, Self

import click
import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from moddit.errors import ModditError, ValueRangeError
from moddit.signals import Stopped
from moddit.text import printable_lines

LAUNCHED: Final = ("MLX_RANK", "OMPI_COMM_WORLD_RANK")  # what mlx.launch, and for it mpirun, tells a process
HOSTS: Final = "MLX_HOSTFILE"  # of MLX's ring
NAMED: Final = 10  # of what is missing; mlx.launch reads no more than a pipe holds of a rank that it ends


@dataclass(frozen=True)
class Ranks:
    """A process among those of its run."""

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls) -> Self:
        """Meet the other processes of a run; without mlx.launch there are none, and nothing is asked of MLX.

        Raises:
            ModditError: they cannot be reached.
        """
        if not any(name in os.environ for name in LAUNCHED) or _is_only():
            return cls()
        try:
            group = mx.distributed.init()
        except RuntimeError as error:
            raise ModditError(f"[ranks] the other ranks cannot be reached: {error}") from error
        return cls(group.rank(), group.size())

    @property
    def is_alone(self) -> bool:
        return self.size == 1

    @property
    def is_first(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0

    @property
    def label(self) -> str:
        """What messages of this process begin with."""
        return "" if self.is_alone else f"rank {self.rank}: "

    def say(self, message: str) -> None:
        """Write a message to standard error."""
        click.echo(f"{self.label}{printable_lines(message)}", err=True)

    def parts(self, count: int) -> list[slice]:
        """Divide `count` things among all ranks, each a run of them: neighbours share a text that is encoded once."""
        return [slice(count * rank // self.size, count * (rank + 1) // self.size) for rank in range(self.size)]

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Wait for all ranks; raise ValueRangeError where one was asked for something else than the first."""
        first, *others = self.gather(facts)
        for rank, other in enumerate(others, 1):
            for name, value in other.items():
                if value != first[name]:
                    raise ValueRangeError(
                        f"[ranks] rank {rank} has other {name} than rank 0, got {value}, want {first[name]}; give all "
                        "ranks the same command, files and versions"
                    )

    def gather(self, value: Any) -> list[Any]:
        """Give what every rank hands in, which JSON can tell, in their order; waits for all of them.

        Raises ModditError if MLX cannot exchange it.
        """
        if self.is_alone:
            return [value]
        text = np.frombuffer(json.dumps(value).encode(), np.uint8)
        lengths = _exchange(np.array([len(text)], np.int32))
        padded = np.zeros(max(lengths), np.uint8)
        padded[: len(text)] = text
        rows = _exchange(padded).reshape(self.size, -1)
        return [json.loads(row[:length].tobytes()) for row, length in zip(rows, lengths, strict=True)]

    @contextmanager
    def watch(self, files: Sequence[Path]) -> Iterator[None]:
        """Say which files of a run are not there if a signal ends this rank, as mlx.launch does when another one died.

        A file that was there before the block is there when it is another.
        """
        before = [_identity(path) for path in files]
        try:
            yield
        except Stopped:
            absent = [path for path, old in zip(files, before, strict=True) if _identity(path) in (None, old)]
            if absent and not self.is_alone:
                self.say(f"stopped; {len(absent)} of {len(files)} files are not on this disk: {name_some(absent)}")
            raise


def name_some(paths: Sequence[Path]) -> str:
    """Name files, but not more than people read."""
    more = f" and {len(paths) - NAMED} more" if len(paths) > NAMED else ""
    return ", ".join(map(str, paths[:NAMED])) + more


def _is_only() -> bool:
    """Say whether mlx.launch started this process alone: it leaves the list of hosts empty, which MLX cannot read."""
    hosts = os.environ.get(HOSTS)
    return hosts is not None and Path(hosts).is_file() and not Path(hosts).read_text(encoding="utf-8").strip()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _exchange(values: NDArray[Any]) -> NDArray[Any]:
    """Collect the values (N) of all ranks, rank by rank (size * N).

    MLX waits for a rank that died as long as for one that is slow, and cannot be interrupted. So it waits in a thread,
    while this one hears the signal by which mlx.launch then ends the others.
    """
    future: Future[NDArray[Any]] = Future()

    def wait() -> None:
        try:
            future.set_result(np.array(mx.distributed.all_gather(mx.array(values))))
        except RuntimeError as error:
            future.set_exception(error)

    Thread(target=wait, daemon=True).start()
    try:
        return future.result()
    except Stopped as stopped:
        atexit.register(_leave, stopped.status)
        raise
    except RuntimeError as error:
        raise ModditError(f"[ranks] the other ranks cannot be reached: {error}") from error


def _leave(status: int) -> None:
    """End the process without MLX's own farewell, which would wait for the exchange that was given up."""
    sys.stdout.flush()
    os._exit(status)
