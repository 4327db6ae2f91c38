"""pytest's option --device: what runs, and in which precisions, on Linux and on a Mac that platform.system pretends."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from shutil import which
from typing import Final

import pytest

from tests.machines import make_machine

ROOT: Final = Path(__file__).parents[1]
PROGRAM: Final = """
import platform, sys
platform.system = lambda system=sys.argv[1]: system
import pytest
sys.exit(pytest.main(sys.argv[2:]))
"""
TESTS: Final = r"""
import os
import subprocess
import sys
import mlx.core as mx
import pytest

def test_stored(stored_dtype):
    print(f"\nin {stored_dtype}")

@pytest.mark.without_mlx
def test_elsewhere():
    print("\nelsewhere")

@pytest.mark.mac
def test_metal():
    print("\nmetal")

def test_device():
    print(f"\n{mx.default_device()}")
    program = "import mlx.core as mx; print(mx.default_device(), mx.ones(2).tolist())"
    print(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
"""


def run(folder: Path, system: str, device: str, *options: str) -> list[str]:
    """Run four tests with this repository's conftest; list what they print."""
    (folder / "test_it.py").write_text(TESTS)
    config = ("-c", str(ROOT / "pyproject.toml"), "-p", "tests.conftest", "-p", "no:cacheprovider")
    command = [sys.executable, "-c", PROGRAM, system, *config, "-q", "-s", "--device", device, *options, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ("system", "device", "dtypes", "is_metal_tested"),
    [
        ("Linux", "default", ["float32"], False),
        ("Linux", "cpu", ["float32"], False),
        ("Linux", "reported-gpu", ["float32", "float16", "bfloat16"], False),
        ("Darwin", "default", ["float32", "float16", "bfloat16"], True),
        ("Darwin", "cpu", ["float32"], False),
    ],
)
def test_what_runs(tmp_path: Path, system: str, device: str, dtypes: list[str], is_metal_tested: bool) -> None:
    lines = run(tmp_path, system, device)
    found = [line for line in lines if line.startswith("in ")]
    assert found == [f"in {dtype}" for dtype in dtypes]
    assert ("metal" in lines) == is_metal_tested
    assert ("elsewhere" in lines) == (device != "reported-gpu")
    if device != "default":
        name = f"Device({'gpu' if device == 'reported-gpu' else 'cpu'}, 0)"
        assert name in lines
        assert f"{name} [1.0, 1.0]" in lines  # in a program that a test starts, and computed


def test_verify_mac_is_for_macs(tmp_path: Path) -> None:
    make = which("make")
    assert make is not None
    machine = make_machine(tmp_path / "bin", {"uname": "echo Linux"})
    command = [make, "--no-print-directory", "-C", str(ROOT), "verify-mac"]
    done = subprocess.run(command, env={"PATH": os.fspath(machine)}, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("verify-mac runs on macOS only\n")


def test_workers_start_although_they_import_mlx_first(tmp_path: Path) -> None:
    """They inherit the choice of a device, for which MLX is imported before conftest loads the fast BLAS."""
    lines = run(tmp_path, "Linux", "reported-gpu", "-n", "2")
    assert re.search(r"\d+ passed", lines[-1]), lines
