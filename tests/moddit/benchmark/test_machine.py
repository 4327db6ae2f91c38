"""What a machine says of itself; a Mac's programs are played by what they print there."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import pytest

from moddit.benchmark import machine
from moddit.benchmark.record import Conditions, Machine

NAME: Final = "com.apple.system.thermalpressurelevel"
MAC: Final[Mapping[str, str]] = {
    "sysctl -n machdep.cpu.brand_string": "Apple M3 Pro\n",
    "sysctl -n hw.model": "Mac15,6\n",
    "sysctl -n hw.physicalcpu": "12\n",
    "sysctl -n hw.memsize": "19327352832\n",
    "system_profiler -json SPDisplaysDataType": json.dumps(
        {"SPDisplaysDataType": [{"_name": "Display"}, {"sppci_cores": "18", "sppci_model": "Apple M3 Pro"}]}
    ),
    "pmset -g batt": "Now drawing from 'Battery Power'\n -InternalBattery-0 (id=1)\t80%; discharging\n",
    "pmset -g": "System-wide power settings:\nCurrently in use:\n lowpowermode         1\n sleep                1\n",
    f"notifyutil -g {NAME}": f"{NAME} 2\n",
}


def on_mac(monkeypatch: pytest.MonkeyPatch, printed: Mapping[str, str]) -> None:
    def run(command: tuple[str, ...], **_: Any) -> subprocess.CompletedProcess[str]:
        text = printed.get(" ".join(command))
        return subprocess.CompletedProcess(command, 0 if text is not None else 1, text or "", "")

    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr("platform.mac_ver", lambda: ("26.1", ("", "", ""), "arm64"))
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr("os.getloadavg", lambda: (1.5, 1.0, 1.0))


def test_a_mac(monkeypatch: pytest.MonkeyPatch) -> None:
    on_mac(monkeypatch, MAC)
    assert machine.read_machine() == Machine("Apple M3 Pro", "Mac15,6", 18, 12, 18 * 2**30, "macOS 26.1")
    assert machine.read_conditions() == Conditions("battery", True, "serious", 1.5)


def test_a_mac_on_mains_that_is_cool(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {
        "pmset -g batt": "Now drawing from 'AC Power'\n",
        "pmset -g": " lowpowermode         0\n",
        f"notifyutil -g {NAME}": f"{NAME} 0\n",
    }
    on_mac(monkeypatch, {**MAC, **changes})
    assert machine.read_conditions() == Conditions("mains", False, "nominal", 1.5)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"SPDisplaysDataType": 3}', '{"SPDisplaysDataType": [{"sppci_cores": "x"}]}']
)
def test_a_mac_whose_programs_fail_is_described_as_far_as_it_goes(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    on_mac(monkeypatch, {"system_profiler -json SPDisplaysDataType": text})
    found = machine.read_machine()
    assert (found.model, found.gpu_cores) == (None, None)
    assert found.memory_bytes > 2**20
    assert machine.read_conditions() == Conditions("unknown", None, "unknown", 1.5)


def test_this_machine() -> None:
    found = machine.read_machine()
    assert found.chip
    assert found.memory_bytes > 2**30
    assert machine.read_conditions().load_average is not None


def test_a_commit(tmp_path: Path) -> None:
    assert machine.read_commit(tmp_path) is None

    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    git("init")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "a")
    clean = machine.read_commit(tmp_path)
    assert clean is not None
    assert len(clean) == 40
    (tmp_path / "a").write_text("2")
    assert machine.read_commit(tmp_path) == f"{clean}-dirty"
