"""The environment that make builds: of which Python, with what in it, and when it is made anew."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from convert.coreml.package import MINIMUM_OS
from scripts import mac_wheels
from tests.machines import add_program, make_machine, run_script

ROOT: Final = Path(__file__).parents[1]
SCRIPT: Final = "scripts/environment.sh"
EXTRAS: Final = {"generate": "mlx,convert", "setup": "mlx,convert,coreml,train,dev"}
LINUX: Final = {"uname": "echo Linux"}
MAC: Final = {"uname": "echo Darwin", "sw_vers": "echo 15.1"}


def python(version: str, architecture: str = "arm64") -> str:
    """Write a Python that says what it is, makes environments of itself, and notes what it is told to install."""
    return f"""
    case "$1 $2" in
    "-c import platform"*) echo "{version} {architecture}" ;;
    "-c import sys"*) cat "$(dirname "$0")/base" 2>/dev/null || echo "$0" ;;
    "-m venv") mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; echo "$0" >"$3/bin/base"; echo "venv {version}" >>log ;;
    "-m pip") [ ! -e broken ] || exit 1; for last in "$@"; do :; done; echo "pip $last" >>log ;;
    *) echo "run $*" >>log ;;
    esac
    """


class Clone:
    """A clone of the repository with the files that the script reads, on a machine with some Pythons."""

    def __init__(self, folder: Path, programs: Mapping[str, str]) -> None:
        self.folder = folder / "clone"
        (self.folder / "scripts").mkdir(parents=True)
        shutil.copy(ROOT / SCRIPT, self.folder / "scripts")
        (self.folder / "scripts/install_system.sh").write_text("echo system >>log\n")
        for name in ("constraints.txt", "pyproject.toml"):
            (self.folder / name).write_text(name)
        self.machine = make_machine(folder / "bin", programs)

    def make(self, level: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return run_script(self.folder / SCRIPT, level, machine=self.machine, **variables)

    def log(self, level: str, **variables: str) -> list[str]:
        """Make the environment; list what that took."""
        (self.folder / "log").write_text("")
        done = self.make(level, **variables)
        assert done.returncode == 0, done.stderr
        return (self.folder / "log").read_text().splitlines()


def full(version: str, level: str) -> list[str]:
    """List what a new environment takes."""
    system = ["system"] if level == "setup" else []
    return [f"venv {version}", f"pip .[{EXTRAS[level]}]", *system, "run scripts/fast_blas.py build"]


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path, {**LINUX, "python3": python("3.12.4"), "python3.13": python("3.13.0")})


class TestContents:
    @pytest.mark.parametrize("level", EXTRAS)
    def test_is_made_once(self, clone: Clone, level: str) -> None:
        assert clone.log(level) == full("3.12.4", level)
        assert clone.log(level) == []

    def test_tests_add_to_what_a_picture_takes_and_a_picture_takes_no_more(self, clone: Clone) -> None:
        clone.log("generate")
        assert clone.log("setup") == full("3.12.4", "setup")[1:]
        assert clone.log("generate") == []

    def test_a_picture_takes_neither_torch_nor_coremltools(self) -> None:
        text = (ROOT / "pyproject.toml").read_text()
        for extra in EXTRAS["generate"].split(","):
            (wanted,) = re.findall(rf"^{extra} = \[(.*?)\]$", text, re.MULTILINE | re.DOTALL)
            assert not re.search("torch|coremltools|diffusers|transformers|pytest", wanted)


class TestRebuild:
    @pytest.mark.parametrize("file", ["constraints.txt", "pyproject.toml"])
    @pytest.mark.parametrize("level", EXTRAS)
    def test_other_pins(self, clone: Clone, level: str, file: str) -> None:
        clone.log(level)
        (clone.folder / file).write_text("other pins")
        (clone.folder / ".venv/old").write_text("")
        assert clone.log(level) == full("3.12.4", level)
        assert not (clone.folder / ".venv/old").exists()

    def test_another_python_is_asked_for(self, clone: Clone) -> None:
        clone.log("setup")
        assert clone.log("setup", PYTHON="python3.13") == full("3.13.0", "setup")
        assert clone.log("setup") == []  # nobody asked for another
        assert clone.log("setup", PYTHON="python3") == full("3.12.4", "setup")

    def test_a_python_that_will_no_longer_do_or_was_upgraded(self, clone: Clone) -> None:
        clone.log("setup")
        add_program(clone.folder / ".venv/bin", "python", "exit 1")
        assert clone.log("setup") == full("3.12.4", "setup")
        add_program(clone.folder / ".venv/bin", "python", python("3.14.0"))
        assert clone.log("setup") == full("3.12.4", "setup")
        add_program(clone.machine, "python3", python("3.12.5"))
        assert clone.log("setup", PYTHON="python3") == full("3.12.5", "setup")

    def test_an_environment_that_make_did_not_finish(self, clone: Clone) -> None:
        (clone.folder / "broken").write_text("")
        assert clone.make("setup").returncode != 0
        (clone.folder / "broken").unlink()
        assert clone.log("setup") == full("3.12.4", "setup")

    def test_a_folder_that_moved(self, clone: Clone) -> None:
        clone.log("generate")
        clone.folder = clone.folder.rename(clone.folder.parent / "moved")
        assert clone.log("generate") == full("3.12.4", "generate")

    def test_a_link_is_replaced_and_what_it_led_to_stays(self, clone: Clone, tmp_path: Path) -> None:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere/file").write_text("")
        (clone.folder / ".venv").symlink_to(tmp_path / "elsewhere")
        assert clone.log("setup") == full("3.12.4", "setup")
        assert (tmp_path / "elsewhere/file").exists()


class TestPython:
    @pytest.mark.parametrize("version", ["3.11.0", "3.12.9", "3.13.2"])
    def test_fits(self, tmp_path: Path, version: str) -> None:
        for system in (LINUX, MAC):
            (tmp_path / system["uname"]).mkdir()
            clone = Clone(tmp_path / system["uname"], {**system, "python3": python(version)})
            assert clone.log("generate") == full(version, "generate")

    @pytest.mark.parametrize("version", ["2.7.18", "3.9.6", "3.10.1", "3.14.0", "4.0.0"])
    def test_another_is_found_beside_one_that_does_not_fit(self, tmp_path: Path, version: str) -> None:
        clone = Clone(tmp_path, {**MAC, "python3": python(version), "python3.12": python("3.12.4")})
        assert clone.log("generate") == full("3.12.4", "generate")

    @pytest.mark.parametrize(
        ("programs", "reason"),
        [
            ({"python3": python("3.9.6")}, "python3 is Python 3.9.6"),
            ({"python3": python("3.14.0"), "python3.13": "exit 127"}, "python3 is Python 3.14.0"),
            ({"python3": "echo 'xcode-select: note: no developer tools' >&2; exit 1"}, "python3 does not run"),
            ({}, "python3 does not run"),
            ({"python3": python("3.12.1", "x86_64")}, "python3 is built for Intel; MLX needs one for Apple Silicon"),
        ],
        ids=["3.9", "3.14", "no tools", "none", "intel"],
    )
    def test_none_fits(self, tmp_path: Path, programs: dict[str, str], reason: str) -> None:
        done = Clone(tmp_path, {**MAC, **programs}).make("generate")
        assert done.returncode == 1
        assert done.stderr.startswith(f"moddit needs Python 3.11, 3.12 or 3.13; {reason}")
        assert "make PYTHON=" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert not (tmp_path / "clone/.venv").exists()

    @pytest.mark.parametrize("version", ["3.9.6", "3.14.0"])
    def test_the_one_asked_for_does_not_fit(self, clone: Clone, version: str) -> None:
        add_program(clone.machine, "python3.x", python(version))
        clone.log("setup")
        done = clone.make("setup", PYTHON="python3.x")
        assert (done.returncode, done.stdout) == (1, "")
        assert f"PYTHON=python3.x is Python {version}" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert (clone.folder / ".venv/.setup-done").exists()

    def test_old_macos(self, tmp_path: Path) -> None:
        programs = {**MAC, "sw_vers": "echo 13.6.1", "python3": python("3.12.4")}
        done = Clone(tmp_path, programs).make("generate")
        assert done.stderr == "moddit needs macOS 14 or newer for MLX; this is macOS 13.6.1\n"

    def test_intel_is_refused_on_a_mac_alone(self, tmp_path: Path) -> None:
        clone = Clone(tmp_path, {**LINUX, "python3": python("3.12.4", "x86_64")})
        assert clone.log("generate") == full("3.12.4", "generate")

    def test_what_an_old_python_is_asked_is_old_python(self) -> None:
        for code in re.findall(r"-c '(.*?)'", (ROOT / SCRIPT).read_text()):
            ast.parse(code, feature_version=(3, 7))
            assert "f'" not in code

    def test_project_and_readme_say_the_same(self) -> None:
        project = (ROOT / "pyproject.toml").read_text()
        assert 'requires-python = ">=3.11,<3.14"' in project
        assert re.findall(r'"Programming Language :: Python :: (3\.\d+)"', project) == ["3.11", "3.12", "3.13"]
        for file in ("README.md", "Makefile", SCRIPT):
            assert "Python 3.11, 3.12 or 3.13" in (ROOT / file).read_text(), file


def test_the_readme_says_what_a_mac_needs_as_the_programs_do() -> None:
    first = (ROOT / "README.md").read_text().partition("```sh")[0]  # before the first command
    assert "a Mac with Apple Silicon" in first
    found = re.search(r"macOS (\d+) for MLX, macOS (\d+) and\s+Xcode (\d+) for Core ML and Swift", first)
    assert found is not None
    for_mlx, for_coreml, xcode = found.groups()
    assert f'"${{major:-{for_mlx}}}" -ge {for_mlx} ]' in (ROOT / SCRIPT).read_text()
    assert f"macosx_{for_mlx}_0_arm64" == mac_wheels.PLATFORM
    assert MINIMUM_OS["macOS"] == f"{for_coreml}.0"
    assert f".macOS(.v{for_coreml})" in (ROOT / "swift_bridge/Package.swift").read_text()
    swift = (ROOT / "scripts/swift_linux.sh").read_text()
    assert f"-ge {for_coreml} ] || skip" in swift
    assert set(re.findall(r"Xcode (\d+)", swift)) == {xcode}
