"""Programs on disks that are full or read-only, and with outputs that cannot be: one error, and nothing changes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.forked import Event, needs_linux, remove
from tests.kills.namespaces import needs_mounts, run_on_small_disk, run_read_only
from tests.kills.programs import STARTS, Programs

pytestmark = needs_linux

PROGRAMS = ("convert", "coreml", "generate", "finetune", "verify")
WRITERS = ("convert", "generate", "finetune")
FULL = "disk is full|is the disk full?"  # of which coremltools' native writer does not tell
each_program = pytest.mark.parametrize("name", PROGRAMS)


@needs_mounts
@pytest.mark.nightly
@pytest.mark.parametrize("start", STARTS)
@each_program
def test_full(name: str, start: str, programs: Programs, tmp_path: Path) -> None:
    program, found = programs[name], Counter[str]()
    for free in (0, *(2**power for power in range(16))):
        folder = tmp_path / str(free)
        outcome = run_on_small_disk(program, folder, start, free)
        state = program.judge(folder, start, may_leave=False)
        if outcome.status == 0:
            break
        program.check_refusal(folder, outcome, FULL)
        found[state] += 1
        program.check_next(folder)
    else:
        pytest.fail("never had room")
    assert state == "new"
    # where `verify` takes its old report away, the new ones have room
    assert found.total() > 0 or (name, start) == ("verify", "old")
    print(f"{name}, {start} at the start, on {found.total()} full disks: {found['absent']} absent, {found['old']} old")


@needs_mounts
@pytest.mark.nightly
@each_program
def test_read_only(name: str, programs: Programs, tmp_path: Path) -> None:
    program = programs[name]
    folder = program.begin(tmp_path / "work", "old")
    program.check_refusal(folder, run_read_only(program, folder), "(?i)read-only")
    assert program.judge(folder, "old", may_leave=False) == "old"


@pytest.mark.parametrize("name", WRITERS)
def test_in_a_file(name: str, programs: Programs, tmp_path: Path) -> None:
    program, file = programs[name], tmp_path / "file"
    file.write_text("old")
    program.check_refusal(file, program.run(file), "is a file, want a folder")
    assert file.read_text() == "old"


@pytest.mark.parametrize("name", ["convert", "finetune"])  # `generate` replaces a link, by tests/moddit/test_files.py
def test_a_link_to_nothing(name: str, programs: Programs, tmp_path: Path) -> None:
    program = programs[name]
    link = tmp_path / program.units[0]
    link.parent.mkdir(exist_ok=True)
    link.symlink_to("nothing")
    program.check_refusal(tmp_path, program.run(tmp_path), "so it is not replaced")
    assert link.is_symlink()
    assert list(link.parent.iterdir()) == [link]


@pytest.mark.parametrize("name", WRITERS)
def test_a_folder_that_disappears(name: str, programs: Programs, tmp_path: Path) -> None:
    program = programs[name]
    changes = (1, 2, 4, 8, 16, 32)
    for number in changes:
        folder = program.begin(tmp_path / str(number), "old")
        outcome = program.run(folder, Event(folder, number, remove))
        if not outcome.is_reached:
            break
        if outcome.status == 0:  # it was made again
            program.judge(folder, "absent", may_leave=False)
        else:
            program.check_refusal(folder, outcome, "No such file or directory")
            assert not folder.exists()
    else:
        assert name == "finetune"  # which makes more changes
