"""What a benchmark runs on: the machine, and what may slow it down. On a Mac by the system's own programs."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any, Final

from moddit.benchmark.record import Conditions, Machine

_SECONDS: Final = 30  # that a program of the system may take; that of the GPU's cores needs some
_CPUINFO: Final = Path("/proc/cpuinfo")
_PRESSURE: Final = {0: "nominal", 1: "fair", 2: "serious", 3: "critical", 4: "critical"}  # OSThermalNotification.h
_SUPPLIES: Final = Path("/sys/class/power_supply")


def read_machine() -> Machine:
    """Describe this machine."""
    return _read_mac() if platform.system() == "Darwin" else _read_other()


def read_conditions() -> Conditions:
    """Say what may slow this machine down now; "unknown" or None for what the system does not tell."""
    if platform.system() == "Darwin":
        return Conditions(_mac_power(), _low_power_mode(), _thermal_state(), _load())
    return Conditions(_linux_power(), None, "unknown", _load())


def read_commit(folder: Path) -> str | None:
    """Name the commit that a folder of a Git repository is at, "-dirty" if it was changed; None outside of one."""
    commit = _run("git", "-C", str(folder), "rev-parse", "--verify", "HEAD").strip()
    if not re.fullmatch(r"[0-9a-f]{40,64}", commit):
        return None
    changed = _run("git", "-C", str(folder), "status", "--porcelain", "--untracked-files=no").strip()
    return f"{commit}-dirty" if changed else commit


def _read_mac() -> Machine:
    names = ("machdep.cpu.brand_string", "hw.model", "hw.physicalcpu", "hw.memsize")
    chip, model, cores, memory = (_run("sysctl", "-n", name).strip() for name in names)
    return Machine(
        chip=chip or platform.processor() or "unknown",
        model=model or None,
        gpu_cores=_gpu_cores(),
        cpu_cores=int(cores) if cores.isdecimal() else os.cpu_count() or 1,
        memory_bytes=int(memory) if memory.isdecimal() else _memory_bytes(),
        system=f"macOS {platform.mac_ver()[0]}",
    )


def _gpu_cores() -> int | None:
    try:
        displays: Any = json.loads(_run("system_profiler", "-json", "SPDisplaysDataType"))["SPDisplaysDataType"]
        return next(int(item["sppci_cores"]) for item in displays if "sppci_cores" in item)
    except (ValueError, KeyError, TypeError, StopIteration):
        return None


def _read_other() -> Machine:
    found = re.search(r"^model name\s*:\s*(.+)$", _read(_CPUINFO), re.MULTILINE)
    return Machine(
        chip=found[1].strip() if found else platform.processor() or platform.machine() or "unknown",
        model=None,
        gpu_cores=None,
        cpu_cores=os.cpu_count() or 1,
        memory_bytes=_memory_bytes(),
        system=f"{platform.system()} {platform.release()}",
    )


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _load() -> float | None:
    try:
        return os.getloadavg()[0]
    except OSError:
        return None


def _mac_power() -> str:
    text = _run("pmset", "-g", "batt")
    return "mains" if "AC Power" in text else "battery" if "Battery Power" in text else "unknown"


def _linux_power() -> str:
    online = [_read(folder / "online").strip() for folder in sorted(_SUPPLIES.glob("A*"))]
    return "mains" if "1" in online else "battery" if "0" in online else "unknown"


def _low_power_mode() -> bool | None:
    found = re.search(r"^\s*(?:lowpowermode|powermode)\s+(\d+)\s*$", _run("pmset", "-g"), re.MULTILINE)
    return None if found is None else found[1] == "1"


def _thermal_state() -> str:
    """Ask for the pressure that the system tells programs of: 0 none, 1 moderate, 2 heavy, 3 and more critical."""
    name = "com.apple.system.thermalpressurelevel"
    found = re.fullmatch(rf"{re.escape(name)}\s+(\d+)", _run("notifyutil", "-g", name).strip())
    return "unknown" if found is None else _PRESSURE.get(int(found[1]), "unknown")


def _run(*command: str) -> str:
    """Run a program of the system; return what it prints, or nothing if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
