"""Core ML may end or keep its process: the function is reported, and the others are run."""

from __future__ import annotations

import json
import os
import platform
import time
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from convert.cli import main
from convert.verify import command, device
from convert.verify.device import check_on_device
from convert.verify.device_process import Processes
from convert.verify.device_report import DeviceReport
from convert.verify.device_task import Compile, Describe, Link, Place, Run, Task, Trouble, read_task, write_task
from moddit.errors import UnsupportedError
from moddit.manifest import Manifest
from tests.convert.verify.fake_bundle import make_manifest

SECONDS: Final = 60.0  # far more than a process needs, also on a busy machine
HANGING: Final = 5.0  # enough for a process to start, and to answer where it does not hang


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return make_manifest(tmp_path)


def processes(fake: str, seconds: float = SECONDS) -> Processes:
    return Processes(f"tests.convert.verify.fake_coreml:{fake}", seconds)


def check(folder: Path, manifest: Manifest, fake: str, seconds: float = SECONDS) -> DeviceReport:
    return check_on_device(folder, manifest, perform=processes(fake, seconds).perform)


class TestFunctions:
    def test_all_answer(self, tmp_path, manifest):
        report = check(tmp_path, manifest, "Fake")
        assert report.passed, report.to_text()
        assert report.machine["chip"] == "Apple M9"
        assert list(report.compile_seconds) == ["Text.mlpackage", "First.mlpackage", "Second.mlpackage"]
        assert [item.found for item in report.placements][1] == {
            "add": {"unknown": 1}, "gather": {"GPU": 1, "CPU": 1}, "linear": {"GPU": 2}, "topk": {"CPU": 1},
        }  # fmt: skip

    def test_one_aborts(self, tmp_path, manifest):
        report = check(tmp_path, manifest, "Aborting")
        words = "while loading Second.mlpackage: SIGABRT (exit status -6), MPSGraph.mm:42: failed assertion `original'"
        text, transformer = report.predictions
        assert text.passed
        assert transformer.found == Trouble("crashed", words)
        assert all(item.passed for item in report.placements)
        assert report.failures == ["transformer/px8x8/t999"]
        assert f"transformer/px8x8/t999  crashed: {words}\n" in report.to_text()

    def test_one_hangs(self, tmp_path, manifest):
        start = time.monotonic()
        report = check(tmp_path, manifest, "Hanging", HANGING)
        assert time.monotonic() - start < 45
        assert report.predictions[0].found == Trouble("timed out", f"while loading Text.mlpackage, after {HANGING:g} s")
        assert report.predictions[1].passed
        assert not report.passed

    def test_a_package_is_not_compiled(self, tmp_path, manifest):
        report = check(tmp_path, manifest, "AbortingCompiler")
        trouble = Trouble("crashed", "while compiling Text.mlpackage: SIGSEGV (exit status -11), and no word of why")
        assert [item.found for item in (report.predictions[0], report.placements[0])] == [trouble, trouble]
        assert report.predictions[1].passed
        assert list(report.compile_seconds) == ["First.mlpackage", "Second.mlpackage"]
        assert report.failures == ["text_encoder/encode", "placement of Text.mlpackage, encode"]

    def test_a_placement_aborts(self, tmp_path, manifest):
        report = check(tmp_path, manifest, "AbortingPlacement")
        assert all(item.passed for item in report.predictions)
        assert [item.passed for item in report.placements] == [True, False, True]
        assert report.failures == ["placement of First.mlpackage, px8x8"]
        assert "operations of First.mlpackage, px8x8\n  crashed: while placing First.mlpackage: " in report.to_text()

    def test_an_exception_is_no_refusal(self, tmp_path, manifest):
        """coremltools raises bare exceptions where it cannot do its work."""
        found = check(tmp_path, manifest, "Raising").predictions[1].found
        wanted = "while loading First.mlpackage: exit status 1, Exception: only supported on macOS ?[31m"
        assert found == Trouble("crashed", wanted)

    def test_no_answer(self, tmp_path, manifest):
        with pytest.raises(UnsupportedError, match=r"cannot be used here; crashed: .*machine: exit status 0"):
            check(tmp_path, manifest, "Quitting")

    def test_no_such_entry(self):
        trouble = processes("Nothing").perform(Describe())
        assert isinstance(trouble, Trouble)
        assert trouble.detail.startswith("while starting: exit status 1, AttributeError: ")


class TestCommand:
    """What a user sees; `platform` says that this is a Mac, and the functions are fakes."""

    @pytest.fixture(autouse=True)
    def mac(self, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(platform, "system", lambda: "Darwin")
        monkeypatch.setattr(command, "read_manifest", lambda _: manifest)

    @staticmethod
    def run(folder: Path, fake: str, monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
        monkeypatch.setattr(device, "Processes", partial(Processes, f"tests.convert.verify.fake_coreml:{fake}"))
        return main(["verify", str(folder), "--on-device", *options])

    def test_passes(self, tmp_path, monkeypatch, capsys):
        assert self.run(tmp_path, "Fake", monkeypatch, "--compute-units", "cpuOnly") == 0
        captured = capsys.readouterr()
        assert captured.out.startswith("chip Apple M9, macOS 15.1, coremltools 9.0, cpuOnly\n")
        assert captured.out.endswith("passed\n")
        assert "running transformer/px8x8/t999\nplacing Text.mlpackage, encode\n" in captured.err

    def test_a_crash_fails(self, tmp_path, monkeypatch, capsys):
        assert self.run(tmp_path, "Aborting", monkeypatch, "--json") == 1
        captured = capsys.readouterr()
        report = json.loads(captured.out)
        assert [item["passed"] for item in report["functions"]] == [True, False]
        assert report["functions"][1]["trouble"]["kind"] == "crashed"
        assert captured.err.endswith(f"error: [verify] {tmp_path}: with Core ML these failed: transformer/px8x8/t999\n")

    def test_a_hang_fails(self, tmp_path, monkeypatch, capsys):
        assert self.run(tmp_path, "Hanging", monkeypatch, "--timeout", str(HANGING)) == 1
        line = f"text_encoder/encode     timed out: while loading Text.mlpackage, after {HANGING:g} s\n"
        assert line in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--compute-units", "cpuOnly"], "--compute-units means something with --on-device only"),
            (["--on-device", "--compute-units", "npu"], "'npu' is not one of 'cpuOnly', 'cpuAndGPU', "),
            (["--on-device", "--timeout", "0"], "0.0 is not in the range x>0"),
        ],
    )
    def test_usage(self, tmp_path, capsys, options, message):
        assert main(["verify", str(tmp_path), *options]) == 2
        assert message in capsys.readouterr().err


def test_tasks_survive_their_files(tmp_path):
    links = [Link("First.mlpackage", "/x/First.mlmodelc", "f", names) for names in (["latents", "timestep"], [])]
    tasks: list[Task] = [
        Describe(),
        Compile("a.mlpackage", "a.mlmodelc"),
        Run("f", "all", links, "reference.npz", "role/f/t0", "output.npy"),
        Place("a.mlpackage", "a.mlmodelc", "f", "cpuOnly", True, "folder"),
    ]
    for task in tasks:
        write_task(task, tmp_path / "task.json")
        assert read_task(tmp_path / "task.json") == task


def test_nothing_is_left_behind(tmp_path, manifest, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    assert not check(tmp_path, manifest, "Aborting").passed
    assert os.listdir(scratch) == []
