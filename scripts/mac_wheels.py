"""Check that the pins of constraints.txt are what a Mac can install (`make mac-wheels`).

    python -m scripts.mac_wheels [--python 3.12]

For each Python that moddit supports, as pip sees it on a Mac with Apple Silicon and the oldest macOS that MLX runs on:

- every pin has a wheel, so that nothing is built on the Mac, where it may end up without its native libraries;
- every distribution that moddit's extras come to there is pinned.

pip takes the environment markers from the machine it runs on, whatever --platform says; so they are judged here.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT: Final = Path(__file__).resolve().parent.parent
PYTHONS: Final = ("3.11", "3.12", "3.13")
PLATFORM: Final = "macosx_14_0_arm64"  # older systems' wheels and those for both processors fit too
# What `packaging` would find on such a Mac; the releases are of 14.0 and of no consequence.
MAC: Final = {
    "implementation_name": "cpython",
    "os_name": "posix",
    "platform_machine": "arm64",
    "platform_python_implementation": "CPython",
    "platform_release": "23.0.0",
    "platform_system": "Darwin",
    "platform_version": "Darwin Kernel Version 23.0.0",
    "sys_platform": "darwin",
}
# What pip says of a pin without a wheel.
ABSENT: Final = re.compile(r"^ERROR: No matching distribution found for (\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Report:
    """What is wrong with the pins for one Python."""

    python: str
    pins: int
    without_wheel: tuple[str, ...]
    unpinned: tuple[str, ...]

    def lines(self) -> list[str]:
        """Write what is wrong, or that nothing is."""
        problems = [f"{pin}: no wheel for {PLATFORM}" for pin in self.without_wheel]
        problems += [f"{name}: a Mac installs it, and constraints.txt does not pin it" for name in self.unpinned]
        if not problems:
            return [f"Python {self.python}: {self.pins} pins have a wheel for {PLATFORM}, and a Mac installs no other"]
        return [f"Python {self.python}: {problem}" for problem in problems]


def environment(python: str) -> dict[str, str]:
    """Describe a Mac to environment markers."""
    return {**MAC, "python_version": python, "python_full_version": f"{python}.0", "implementation_version": "3"}


def read_pins(text: str, python: str) -> list[str]:
    """List the pins of a constraints file that hold on a Mac, without their markers."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    pins = [Requirement(line) for line in lines if line]
    return [
        f"{pin.name}{pin.specifier}" for pin in pins if pin.marker is None or pin.marker.evaluate(environment(python))
    ]


def find_wheels(pins: Sequence[str], python: str) -> tuple[list[str], list[dict[str, Any]]]:
    """Ask pip for a wheel of each pin; list the pins that have none, and the metadata of the others' wheels."""
    absent: list[str] = []
    while True:
        wanted = [pin for pin in pins if pin not in absent]
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder, "report.json")
            options = ["--dry-run", "--no-deps", "--only-binary=:all:", "--ignore-installed", "--quiet"]
            target = ["--platform", PLATFORM, "--python-version", python, "--implementation", "cp", "--target", folder]
            command = [sys.executable, "-m", "pip", "install", *options, *target, "--report", str(report), *wanted]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode == 0:
                return absent, [item["metadata"] for item in json.loads(report.read_text())["install"]]
        found = [pin for pin in ABSENT.findall(done.stderr) if pin in wanted]
        if not found:
            raise SystemExit(f"pip could not be asked about Python {python}:\n{done.stderr}")
        absent += found


def find_unpinned(wheels: Sequence[Mapping[str, Any]], project: Mapping[str, Any], python: str) -> list[str]:
    """List what moddit with all its extras comes to on a Mac and is not among the wheels."""
    known = {canonicalize_name(wheel["name"]): wheel for wheel in wheels}
    wanted = [
        *project["dependencies"],
        *(line for lines in project["optional-dependencies"].values() for line in lines),
    ]
    waiting = [(Requirement(line), "") for line in wanted]
    done: set[tuple[str, str]] = set()
    unpinned: set[str] = set()
    while waiting:
        requirement, extra = waiting.pop()
        marker = requirement.marker
        if marker is not None and not marker.evaluate({**environment(python), "extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        if name not in known:
            unpinned.add(name)
            continue
        for chosen in ("", *requirement.extras):
            if (name, chosen) not in done:
                done.add((name, chosen))
                waiting += [(Requirement(line), chosen) for line in known[name].get("requires_dist", ())]
    return sorted(unpinned)


def check(python: str) -> Report:
    """Check the repository's pins for one Python."""
    pins = read_pins((ROOT / "constraints.txt").read_text(encoding="utf-8"), python)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    absent, wheels = find_wheels(pins, python)
    lost = {canonicalize_name(Requirement(pin).name) for pin in absent}
    unpinned = (name for name in find_unpinned(wheels, project, python) if name not in lost)
    return Report(python, len(pins), tuple(absent), tuple(unpinned))


def main() -> int:
    parser = argparse.ArgumentParser(description="Check that a Mac can install what constraints.txt pins.")
    parser.add_argument("--python", choices=PYTHONS, action="append", help="only this one (default: all)")
    reports = [check(python) for python in parser.parse_args().python or PYTHONS]
    print("\n".join(line for report in reports for line in report.lines()))
    return int(any(report.without_wheel or report.unpinned for report in reports))


if __name__ == "__main__":
    sys.exit(main())
