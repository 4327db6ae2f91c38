"""The largest memory of this process, in the whole or since it was last asked.

The resident size is that of the pages in memory. On a Mac the footprint (`phys_footprint`, what the system charges a
process with, and what it kills it for) counts compressed pages too, and not those of files.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_STATUS: Final = Path("/proc/self/status")  # on Linux
_CLEAR: Final = Path("/proc/self/clear_refs")
_RESET_PEAK: Final = "5"  # of what is written there (proc(5)): the peak of the resident size
_LIBPROC: Final = "/usr/lib/libproc.dylib"
_FLAVOR: Final = 4  # RUSAGE_INFO_V4 of sys/resource.h
_UUID_BYTES: Final = 16
_NUMBERS: Final = 36  # 64-bit, after the UUID; more than the flavour has
_INTERVAL_PEAK: Final = 33  # ri_interval_max_phys_footprint among them


@dataclass(frozen=True)
class ProcessPeak:
    """The largest memory since the last reset, bytes; None for what the system does not tell."""

    resident: int | None
    footprint: int | None


def peak_rss_bytes() -> int:
    """Find the largest resident size that this process had; on a Mac it counts MLX's buffers too."""
    # Linux hands ru_maxrss of whoever starts a program on to the program; VmHWM is the program's own.
    if _STATUS.exists():
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else peak * 1024


def take_peak() -> ProcessPeak:
    """Give the largest memory since the last call, or since the start, and begin anew."""
    if platform.system() == "Darwin":
        return ProcessPeak(None, _take_footprint())
    peak = peak_rss_bytes()
    with suppress(OSError):  # not everywhere allowed: then the next is the largest since the start
        _CLEAR.write_text(_RESET_PEAK, encoding="ascii")
    return ProcessPeak(peak, None)


def _take_footprint() -> int | None:
    """Read the largest footprint since the last call (proc_pid_rusage of libproc.h), and begin anew."""
    try:
        library = ctypes.CDLL(_LIBPROC)
        numbers = (ctypes.c_uint64 * (_UUID_BYTES // 8 + _NUMBERS))()
        if library.proc_pid_rusage(os.getpid(), _FLAVOR, ctypes.byref(numbers)):
            return None
        library.proc_reset_footprint_interval(os.getpid())
    except (OSError, AttributeError):
        return None
    return int(numbers[_UUID_BYTES // 8 + _INTERVAL_PEAK])
