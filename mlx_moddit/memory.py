"""Time and memory of the stages of a generation, and MLX's buffer cache."""

from __future__ import annotations

import os
import platform
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import mlx.core as mx

STATUS: Final = Path("/proc/self/status")  # on Linux


@dataclass(frozen=True)
class StageCost:
    """What one kind of stage took, over all the times it ran."""

    name: str
    seconds: float  # sum
    peak_bytes: int  # largest, of MLX's buffers: neither Python's own memory nor the tokenizer's


class Meter:
    """Divide a run into laps; each lap has a name, a duration and a peak of memory."""

    def __init__(self) -> None:
        self._costs: dict[str, StageCost] = {}
        self.begin()

    def lap(self, name: str) -> float:
        """End a lap, add it to the cost of `name`, and begin the next; return its seconds."""
        seconds, peak = time.perf_counter() - self._start, mx.get_peak_memory()
        cost = self._costs.get(name, StageCost(name, 0.0, 0))
        self._costs[name] = StageCost(name, cost.seconds + seconds, max(cost.peak_bytes, peak))
        self.begin()
        return seconds

    @property
    def costs(self) -> tuple[StageCost, ...]:
        """In the order in which the stages first ran."""
        return tuple(self._costs.values())

    def begin(self) -> None:
        """Begin a lap; what happened since the last one ended counts for nothing."""
        mx.reset_peak_memory()
        self._start = time.perf_counter()


def peak_rss_bytes() -> int:
    """Find the largest resident size that this process ever had; on a Mac it counts MLX's buffers too."""
    # Linux hands ru_maxrss of whoever starts a program on to the program; VmHWM is the program's own.
    if STATUS.exists():
        for line in STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


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
