"""Time and memory of the stages of a generation, and MLX's buffer cache."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

import mlx.core as mx

LOW_RAM_CACHE_BYTES: Final = 512 * 2**20  # of freed buffers that MLX may keep
# Otherwise a quarter of what macOS lets a GPU use: of 16 GB about 2.7, several times what a step of 1024 pixels frees.
CACHE_PARTS: Final = 4
WORKING_SET: Final = "max_recommended_working_set_size"


@dataclass(frozen=True)
class StageCost:
    """What one kind of stage took, over all the times it ran."""

    name: str
    seconds: float  # sum
    peak_bytes: int  # largest, of MLX's buffers: neither Python's own memory nor the tokenizer's


class Meter:
    """Divide a run into laps; each lap has a name, a duration and a peak of memory."""

    def __init__(self) -> None:
        self.laps: list[StageCost] = []  # one for each stage that ran
        self.begin()

    def lap(self, name: str) -> float:
        """End a lap, and begin the next; return its seconds."""
        seconds = time.perf_counter() - self._start
        self.laps.append(StageCost(name, seconds, mx.get_peak_memory()))
        self.begin()
        return seconds

    @property
    def costs(self) -> tuple[StageCost, ...]:
        """Sums and largest peaks by name, in the order in which the stages first ran."""
        found: dict[str, StageCost] = {}
        for lap in self.laps:
            cost = found.get(lap.name, StageCost(lap.name, 0.0, 0))
            found[lap.name] = StageCost(lap.name, cost.seconds + lap.seconds, max(cost.peak_bytes, lap.peak_bytes))
        return tuple(found.values())

    def begin(self) -> None:
        """Begin a lap; what happened since the last one ended counts for nothing."""
        mx.reset_peak_memory()
        self._start = time.perf_counter()


def usable_bytes() -> int:
    """Find the memory that models may fill: what Metal recommends for the GPU, elsewhere that of the machine."""
    if mx.metal.is_available():
        return int(mx.device_info()[WORKING_SET])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def memory_limits(*, low_ram: bool) -> Iterator[None]:
    """Limit the freed buffers that MLX keeps for reuse, and on a Mac's GPU keep those in use from being paged out.

    Without the first they may grow to all memory of a Mac: after a picture they are what decoding it took. macOS before
    15 takes no notice of the second.
    """
    working_set = int(mx.device_info().get(WORKING_SET, 0))  # bytes; a CPU names none
    with ExitStack() as limits:
        cached = LOW_RAM_CACHE_BYTES if low_ram else working_set // CACHE_PARTS
        if cached:
            limits.callback(mx.set_cache_limit, mx.set_cache_limit(cached))
        if working_set:
            limits.callback(mx.set_wired_limit, mx.set_wired_limit(working_set))
            limits.callback(mx.synchronize)  # first: what the GPU still uses stays
        yield
