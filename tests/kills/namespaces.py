"""Programs in namespaces of their own: with a small disk, with a disk that cannot be written, as process 1."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tests.forked import Outcome
from tests.kills.programs import Program

PAGE: Final = 4096  # bytes, which a tmpfs gives out
UNSHARE: Final = ("unshare", "--map-root-user")  # which works for users too, where the system lets them
# Mounts a disk of $1 bytes at $2, puts $3 bytes and the folder $4 on it, runs the rest, copies the folder to $5.
SMALL_DISK: Final = """
size=$1 disk=$2 filling=$3 start=$4 copy=$5; shift 5
mount -t tmpfs -o size="$size" tmpfs "$disk" && cp -a "$start" "$disk/work" &&
    head -c "$filling" /dev/zero > "$disk/filling" || exit 77
"$@"; status=$?
cp -a "$disk/work/." "$copy"; exit $status
"""
READ_ONLY: Final = """
folder=$1; shift
mount --bind "$folder" "$folder" && mount -o remount,bind,ro "$folder" || exit 77
exec "$@"
"""
# As `python -m`, when others fill the disk after the program has asked how much room there is.
UNCHECKED: Final = (
    "import runpy, sys; from moddit import files; files.check_space = lambda *_: None; "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def can_unshare(*kinds: str, script: str = "true") -> bool:
    """Say whether this machine gives namespaces, and what a script needs in them."""
    if shutil.which("unshare") is None:
        return False
    command = [*UNSHARE, *kinds, "sh", "-c", script]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


needs_mounts = pytest.mark.skipif(
    not can_unshare("--mount", script="mount -t tmpfs tmpfs /mnt"), reason="needs Linux's mount namespaces"
)
needs_processes = pytest.mark.skipif(
    not can_unshare("--pid", "--fork", "--mount-proc"), reason="needs Linux's process-id namespaces"
)


def run_on_small_disk(program: Program, folder: Path, start: str, free: int) -> Outcome:
    """Run a program in a folder on a disk of its own; what it leaves there is in `folder` afterwards.

    Args:
        program: to run.
        folder: which is made.
        start: what is on the disk before.
        free: pages that are free then.
    """
    disk = folder.with_name(f"{folder.name}-disk")
    for each in (folder, disk):
        each.mkdir(parents=True)
    used = sum(-(-path.stat().st_size // PAGE) for path in program.starts[start].rglob("*") if path.is_file())
    size, filling = (used + free + 1) * PAGE, PAGE  # a disk of no pages would be one without bounds
    command = [sys.executable, "-c", UNCHECKED, program.module, *program.arguments(disk / "work")]
    places = [str(size), str(disk), str(filling), str(program.starts[start]), str(folder)]
    outcome = _run([*UNSHARE, "--mount", "sh", "-c", SMALL_DISK, "sh", *places, *command])
    errors = outcome.errors.replace(str(disk / "work"), str(folder))
    return Outcome(outcome.status, outcome.output, errors, is_reached=True)


def run_read_only(program: Program, folder: Path) -> Outcome:
    """Run a program in a folder that cannot be written."""
    return _run([*UNSHARE, "--mount", "sh", "-c", READ_ONLY, "sh", str(folder), *program.command(folder)])


def _run(command: list[str]) -> Outcome:
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode != 77, done.stderr
    return Outcome(done.returncode, done.stdout, done.stderr, is_reached=True)
