"""The check that a Mac can install the pins, without a package index: pip is played."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pytest

from scripts import mac_wheels
from scripts.mac_wheels import MAC, PYTHONS, Report, find_unpinned, find_wheels, read_pins

CONSTRAINTS: Final = (mac_wheels.ROOT / "constraints.txt").read_text()
PINS: Final = """
# a comment
one==1.0
Two==2.0; sys_platform == "darwin"  # another
three==3.0; sys_platform == "linux"
four==4.0; python_version < "3.12"
"""


def wheel(name: str, *requires: str) -> dict[str, Any]:
    return {"name": name, "requires_dist": list(requires)}


def project(*core: str, **extras: list[str]) -> dict[str, Any]:
    return {"dependencies": list(core), "optional-dependencies": extras}


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Play a pip that has wheels for all but pins of version 9; list how it is called."""
    calls: list[list[str]] = []

    def run(command: Sequence[str], **_: Any) -> subprocess.CompletedProcess[str]:
        calls.append(list(command))
        names = [word for word in command if re.fullmatch(r"\w+==[\d.]+", word)]
        for name in names:
            if name.endswith("==9"):
                errors = f"ERROR: Could not find a version\nERROR: No matching distribution found for {name}\n"
                return subprocess.CompletedProcess(command, 1, "", errors)
        report = {"install": [{"metadata": wheel(name.partition("==")[0])} for name in names]}
        Path(command[command.index("--report") + 1]).write_text(json.dumps(report))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_pins_of_a_mac() -> None:
    assert read_pins(PINS, "3.11") == ["one==1.0", "Two==2.0", "four==4.0"]
    assert read_pins(PINS, "3.12") == ["one==1.0", "Two==2.0"]


def test_every_pin_without_a_wheel_is_found(pip: list[list[str]]) -> None:
    absent, wheels = find_wheels(["one==1", "two==9", "three==9", "four==4"], "3.12")
    assert absent == ["two==9", "three==9"]
    assert [item["name"] for item in wheels] == ["one", "four"]
    assert len(pip) == 3
    for words in (["--platform", "macosx_14_0_arm64"], ["--python-version", "3.12"]):
        assert pip[0][pip[0].index(words[0]) :][:2] == words
    assert {"--only-binary=:all:", "--no-deps", "--dry-run"} <= set(pip[0])


def test_another_failure_of_pip_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 2, "", "no network")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(SystemExit, match="no network"):
        find_wheels(["one==1"], "3.12")


def test_what_a_mac_installs_must_be_pinned() -> None:
    wheels = [wheel("One", "deep>=1; sys_platform == 'darwin'", "linux-only; sys_platform == 'linux'"), wheel("two")]
    assert find_unpinned(wheels, project("one", all=["two[more]>=1"]), "3.12") == ["deep"]
    wheels = [wheel("one", "old; python_version < '3.12'", "rare; extra == 'x'"), wheel("two", "one[x]")]
    assert find_unpinned(wheels, project("two", none=[]), "3.12") == ["rare"]
    assert find_unpinned(wheels, project("two", none=[]), "3.11") == ["old", "rare"]


def test_report() -> None:
    assert Report("3.11", 7, (), ()).lines() == [
        "Python 3.11: 7 pins have a wheel for macosx_14_0_arm64, and a Mac installs no other"
    ]
    assert Report("3.13", 7, ("a==1",), ("b",)).lines() == [
        "Python 3.13: a==1: no wheel for macosx_14_0_arm64",
        "Python 3.13: b: a Mac installs it, and constraints.txt does not pin it",
    ]


def test_program_fails_where_a_pin_has_no_wheel(
    pip: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mac_wheels, "ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["mac_wheels"])
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["one"]\n[project.optional-dependencies]\n')
    for version, status in (("9", 1), ("8", 0)):
        (tmp_path / "constraints.txt").write_text(f"one=={version}\n")
        assert mac_wheels.main() == status
    assert len(capsys.readouterr().out.splitlines()) == 2 * len(PYTHONS)


def test_the_backends_of_mlx_are_of_its_version_and_each_on_its_system() -> None:
    found = dict(re.findall(r"^(mlx\S*)==(\S+?);? *(?:sys_platform.*)?$", CONSTRAINTS, re.MULTILINE))
    assert sorted(found) == ["mlx", "mlx-cpu", "mlx-metal"]
    assert len(set(found.values())) == 1
    names = {pin.partition("==")[0] for pin in read_pins(CONSTRAINTS, PYTHONS[0])}
    assert {"mlx", "mlx-metal"} <= names
    assert "mlx-cpu" not in names
    assert MAC["sys_platform"] == "darwin"
