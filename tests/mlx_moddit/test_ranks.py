"""Processes that mlx.launch starts share the pictures of a run; what one has written stays when another dies."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Final

import mlx.core as mx
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from mlx_moddit import cli
from mlx_moddit.memory import StageCost
from mlx_moddit.ranks import NAMED, Ranks, name_some
from mlx_moddit.report import slowest

ROOT: Final = Path(__file__).parents[2]
LAUNCH: Final = Path(sys.executable).with_name("mlx.launch")
PROMPTS: Final = ("a red circle", "a blue square", "green")
NAMES: Final = ("a-red-circle-0", "a-red-circle-1", "a-blue-square-0", "a-blue-square-1", "green-0", "green-1")
# What a rank runs: the program, changed as the test wants.
PROGRAM: Final = """
import os, signal, sys, time
from mlx_moddit import cli
from mlx_moddit.__main__ import main
from moddit.errors import StorageError
rank, written, save = int(os.environ["MLX_RANK"]), [], cli.save_picture
def save_picture(path, *arguments, **options):
    change()
    save(path, *arguments, **options)
    written.append(path)
def change(): pass
def wait_for(path):
    while not os.path.exists(path): time.sleep(0.05)
def die(): os.kill(os.getpid(), signal.SIGKILL)
{change}
cli.save_picture = save_picture
sys.exit(main())
"""


@pytest.fixture(autouse=True)
def work_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    return tmp_path


def arguments(bundle: Path, folder: str) -> list[str]:
    output = f"{folder}/{{prompt}}-{{seed}}.png"
    given = ["--prompt-file", "prompts.txt", "--seed", "0", "--seed", "1", "--steps", "2", "-o", output]
    return ["generate", "--model", str(bundle), *given]


def start(command: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([os.environ["PYTHONPATH"], str(ROOT)])},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def draw_alone(bundle: Path, folder: str) -> dict[str, bytes]:
    """Draw all pictures in one process; give its files."""
    result = start([sys.executable, "-m", "mlx_moddit", *arguments(bundle, folder)])
    assert result.returncode == 0, result.stderr
    return read(folder)


def launch(command: Sequence[str], change: str = "", ranks: int = 2) -> subprocess.CompletedProcess[str]:
    """Run the program in ranks of this machine; what it changes is source that sees `rank` and `written`."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    Path("program.py").write_text(PROGRAM.format(change=change))
    program = [sys.executable, "program.py", *command]
    return start([LAUNCH, "-n", str(ranks), "--starting-port", str(port), "--", *program])


def read(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@pytest.mark.parametrize("ranks", [1, 2])
def test_ranks_write_what_one_process_writes(routed_bundle: Path, ranks: int) -> None:
    result = launch(arguments(routed_bundle, "shared"), ranks=ranks)
    assert read("shared") == draw_alone(routed_bundle, "alone")
    assert result.stdout.splitlines() == [f"shared/{name}.png" for name in NAMES]
    assert result.stderr.count("12 steps, median") == 1


def test_a_rank_that_is_killed_takes_nothing_with_it_and_the_other_says_what_is_missing(routed_bundle: Path) -> None:
    """Rank 0 has drawn its half, and waits, when rank 1 dies with one of three pictures."""
    die = """
def change():
    if rank == 1 and written:
        wait_for("out/a-blue-square-0.png")
        time.sleep(1)
        die()
"""
    result = launch(arguments(routed_bundle, "out"), die)
    assert sorted(read("out")) == sorted(f"{name}.png" for name in NAMES[:4])
    told = "rank 0: stopped; 2 of 6 files are not on this disk: out/green-0.png, out/green-1.png"
    assert told in result.stderr.splitlines()
    assert not result.stdout


def test_a_rank_that_is_killed_ends_the_other_between_two_pictures(routed_bundle: Path) -> None:
    """What was there before does not count, and nothing half written stays."""
    before = draw_alone(routed_bundle, "out")
    die = """
def change():
    if rank == 1:
        wait_for("begun")
        die()
    if written:
        open("begun", "w").close()
        time.sleep(60)
"""
    result = launch([*arguments(routed_bundle, "out"), "--overwrite"], die)
    assert read("out") == before
    (told,) = (line for line in result.stderr.splitlines() if line.startswith("rank 0: stopped"))
    assert "5 of 6 files are not on this disk: out/a-red-circle-1.png" in told


def test_a_rank_that_fails_lets_the_others_finish(routed_bundle: Path) -> None:
    fail = "def change():\n    if rank == 0 and written: raise StorageError('[output] full')"
    result = launch(arguments(routed_bundle, "out"), fail)
    assert sorted(read("out")) == sorted(f"{name}.png" for name in (NAMES[0], *NAMES[3:]))
    lines = [line for line in result.stderr.splitlines() if line.startswith("rank")]
    missing = "2 of 6 pictures are missing: out/a-red-circle-1.png, out/a-blue-square-0.png"
    assert lines == ["rank 0: error: [output] full", f"rank 0: error: [ranks] {missing}"]


def run_as(ranks: Ranks, command: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the program as one of several ranks that has to fail before it needs the others; give what it says."""
    monkeypatch.setattr(Ranks, "join", lambda: ranks)
    result = CliRunner().invoke(cli.main, command)
    assert result.exit_code == 1, result.output
    return result.stderr


def test_ranks_that_were_asked_for_different_pictures_draw_none(
    routed_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ranks, "gather", lambda _, facts: [facts, {**facts, "prompts or settings": "others"}])
    told = run_as(Ranks(0, 2), arguments(routed_bundle, "out"), monkeypatch)
    assert told.startswith("rank 0: error: [ranks] rank 1 has other prompts or settings than rank 0, got others, want ")
    assert not read("out")


def test_a_file_that_is_there_stops_a_rank_that_would_not_write_it(
    routed_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("out").mkdir()
    Path("out", f"{NAMES[-1]}.png").touch()
    told = run_as(Ranks(0, 2), arguments(routed_bundle, "out"), monkeypatch)
    assert told.startswith(f"rank 0: error: [output] out/{NAMES[-1]}.png exists")


def test_standard_input_is_not_shared(routed_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = run_as(Ranks(1, 2), ["generate", "--model", str(routed_bundle), "--prompt-file", "-"], monkeypatch)
    assert told == "rank 1: error: [prompts] -: ranks cannot share standard input, want a file that each can read\n"


def test_without_a_launch_no_backend_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx.distributed, "init", None)
    ranks = Ranks.join()
    assert (ranks.is_alone, ranks.is_first, ranks.label, ranks.gather({"a": 1})) == (True, True, "", [{"a": 1}])


@given(st.integers(0, 30), st.integers(1, 9))
def test_parts_are_runs_of_about_one_length(count: int, size: int) -> None:
    parts = [list(range(count))[part] for part in Ranks(0, size).parts(count)]
    assert list(chain(*parts)) == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_stages_of_ranks_are_those_of_the_slowest() -> None:
    costs = [StageCost("load", 1.0, 5), StageCost("decode", 2.0, 7), StageCost("load", 3.0, 4)]
    assert slowest(costs) == (StageCost("load", 3.0, 5), StageCost("decode", 2.0, 7))


def test_few_of_many_files_are_named() -> None:
    paths = [Path(f"{number}.png") for number in range(NAMED + 2)]
    assert name_some(paths[:2]) == "0.png, 1.png"
    assert name_some(paths).endswith(f"{NAMED - 1}.png and 2 more")
