"""The script that runs Swift: what it does on Macs and Linux systems that are not here, with programs that pretend."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from shutil import which
from typing import Final

import pytest

from tests.machines import make_machine, run_script

ROOT: Final = Path(__file__).parents[2]
SCRIPT: Final = ROOT / "scripts/swift_linux.sh"
SKIPPED: Final = 77
SWIFT: Final = 'case $1 in --version) echo "Apple Swift version 6.0.3" >&1 ;; *) echo "swift $*" ;; esac'
OLD_SWIFT: Final = 'echo "Apple Swift version 5.10"'
MAC: Final = {
    "uname": "echo Darwin",
    "sw_vers": "echo 15.1",
    "swift": SWIFT,
    "xcode-select": "echo /Applications/Xcode.app/Contents/Developer",
}
NO_TESTS: Final[list[tuple[dict[str, str], str]]] = [
    ({"xcode-select": "echo /Library/Developer/CommandLineTools"}, "the Command Line Tools cannot build tests"),
    ({"xcode-select": "exit 2"}, "no developer tools are chosen"),
]
NO_SWIFT: Final[list[tuple[dict[str, str], str]]] = [
    ({"sw_vers": "echo 14.6.1"}, "the package needs macOS 15 or newer; this is macOS 14.6.1"),
    ({"swift": OLD_SWIFT}, "Swift 6 is not on PATH, or does not run; install Xcode 16 or newer"),
    ({"swift": "echo 'You have not agreed to the Xcode license' >&2; exit 69"}, "or does not run"),
]


def swift(folder: Path, programs: Mapping[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    return run_script(SCRIPT, *words, machine=make_machine(folder / "bin", programs), MODDIT_SWIFT_INSTALL="0")


@pytest.mark.parametrize("words", [("test", "-j", "1"), ("run", "moddit-cli", "tokens", "a red circle")])
def test_a_mac_with_xcode(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = swift(tmp_path, MAC, *words)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"swift {' '.join(words)}\n", "")


@pytest.mark.parametrize(("programs", "reason"), [*NO_TESTS, *NO_SWIFT])
def test_a_mac_that_cannot_run_the_tests_skips_them(tmp_path: Path, programs: dict[str, str], reason: str) -> None:
    done = swift(tmp_path, {**MAC, **programs}, "test")
    assert (done.returncode, done.stdout) == (SKIPPED, "")
    assert done.stderr.startswith("Swift is skipped: ")
    assert reason in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("programs", "_reason"), NO_TESTS)
def test_a_mac_without_xcode_runs_the_program(tmp_path: Path, programs: dict[str, str], _reason: str) -> None:
    assert swift(tmp_path, {**MAC, **programs}, "run", "moddit-cli").stdout == "swift run moddit-cli\n"


@pytest.mark.parametrize(("programs", "reason"), NO_SWIFT)
def test_a_mac_that_cannot_run_the_program(tmp_path: Path, programs: dict[str, str], reason: str) -> None:
    done = swift(tmp_path, {**MAC, **programs}, "run", "moddit-cli")
    assert done.returncode == SKIPPED
    assert reason in done.stderr


def test_failing_tests_fail(tmp_path: Path) -> None:
    programs = {**MAC, "swift": 'case $1 in --version) echo "Swift version 6.1" ;; *) exit 1 ;; esac'}
    assert swift(tmp_path, programs, "test").returncode == 1


@pytest.mark.parametrize(
    ("programs", "reason"),
    [
        ({"uname": "echo Linux", "id": "echo 1000"}, "only "),  # root on Debian, and this is neither or not both
        ({"uname": "echo FreeBSD"}, "Swift 6 is not on PATH; install it"),
    ],
    ids=["linux", "other"],
)
def test_a_system_without_swift(tmp_path: Path, programs: dict[str, str], reason: str) -> None:
    done = swift(tmp_path, programs, "test")
    assert done.returncode == SKIPPED
    assert reason in done.stderr


@pytest.mark.parametrize(("programs", "reason"), [*NO_TESTS, *NO_SWIFT])
def test_make_passes_and_says_why(tmp_path: Path, programs: dict[str, str], reason: str) -> None:
    machine = make_machine(tmp_path / "bin", {**MAC, **programs})
    make = which("make")
    assert make is not None
    command = [make, "--no-print-directory", "-C", str(ROOT), "swift-test"]
    environment = {"PATH": os.fspath(machine), "HOME": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert reason in done.stderr
    assert done.stdout == "The Swift package was not tested, for the reason above\n"
