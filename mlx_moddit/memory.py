"""Time and memory of the stages of a generation, and MLX's buffer cache."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import mlx.core as mx


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
        return int(mx.device_info()["max_recommended_working_set_size"])
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def cache_limit(limit_bytes: int) -> Iterator[None]:
    """Limit the freed buffers that MLX keeps for reuse; without a limit they may grow to all memory of a Mac."""
    before = mx.set_cache_limit(limit_bytes)
    try:
        yield
    finally:
        mx.set_cache_limit(before)
