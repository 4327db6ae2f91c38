"""Machines that are not here: folders of small programs, to be the whole PATH of a shell script."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

# What the scripts use of a system; everything else that they call is faked, or absent.
TOOLS: Final = ("sh", "cat", "cksum", "cp", "dirname", "env", "grep", "mkdir", "mktemp", "nice", "rm", "sed", "tail")


def make_machine(folder: Path, programs: Mapping[str, str]) -> Path:
    """Make a folder with the usual tools and some programs, given as shell scripts."""
    folder.mkdir()
    for name in TOOLS:
        found = shutil.which(name)
        assert found is not None, name
        (folder / name).symlink_to(found)
    for name, text in programs.items():
        add_program(folder, name, text)
    return folder


def add_program(folder: Path, name: str, text: str) -> None:
    """Add a program to a machine."""
    (folder / name).write_text(f"#!{shutil.which('sh')}\n{text}\n")
    (folder / name).chmod(0o755)


def run_script(script: Path, *arguments: str, machine: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a shell script where only the machine's programs exist."""
    environment = {"PATH": str(machine), "HOME": str(machine.parent), **variables}
    return subprocess.run(
        [os.fspath(machine / "sh"), str(script), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
