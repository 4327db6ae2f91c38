"""A folder that one program writes into for a long time: others are kept out, and what they left is put right."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

import moddit
from moddit.files import exclusive, new_folder, recover_all

ROOT: Final = Path(moddit.__file__).parents[1]
# Tries to have the folder of its argument, and says how that fails.
TRY: Final = """
import sys
from pathlib import Path
from moddit.errors import StorageError
from moddit.files import exclusive
try:
    with exclusive(Path(sys.argv[1])):
        pass
except StorageError as error:
    print(error)
"""
# Has the folder of its argument, and a child that lives until it is told to end.
HAVE: Final = """
import os, sys
from pathlib import Path
from moddit.files import exclusive
with exclusive(Path(sys.argv[1])):
    if os.fork() == 0:
        print("forked", flush=True)
        sys.stdin.readline()
        os._exit(0)
    os.wait()
"""


def try_to_have(folder: Path) -> str:
    command = [sys.executable, "-c", TRY, str(folder)]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def fill(folder: Path) -> None:
    folder.mkdir()
    (folder / "a").write_text("whole")


def test_others_are_told(tmp_path: Path) -> None:
    with exclusive(tmp_path / "run" / "checkpoints"):
        assert "checkpoints: another program is writing into it" in try_to_have(tmp_path / "run" / "checkpoints")
    assert try_to_have(tmp_path / "run" / "checkpoints") == ""


def test_its_program_writes_whole_folders_in_it(tmp_path: Path) -> None:
    with exclusive(tmp_path):
        with new_folder(tmp_path / "1", kind="thing", may_replace=None) as folder:
            (folder / "a").write_text("whole")
        assert (tmp_path / "1" / "a").read_text() == "whole"


def test_a_forked_process_does_not_keep_it(tmp_path: Path) -> None:
    """Workers that read data are such, and notice only after seconds that their program was killed."""
    command = [sys.executable, "-c", HAVE, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "forked\n"
        process.kill()
        process.wait()
        assert try_to_have(tmp_path) == ""


def test_what_dead_writers_left_of_anything_is_put_right(tmp_path: Path) -> None:
    fill(tmp_path / ".1.01234567.old")
    fill(tmp_path / ".2.01234567.partial")
    fill(tmp_path / ".3.01234567.trash")
    (tmp_path / ".a.png.01234567.partial").touch()
    with new_folder(tmp_path / "2", kind="thing", may_replace=None) as folder:
        recover_all(tmp_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["1", folder.name])
    assert (tmp_path / "1" / "a").read_text() == "whole"
