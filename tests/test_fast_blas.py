"""The launcher that gives MLX a fast BLAS on Linux."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts import fast_blas
from tests.machines import make_machine, run_script

ROOT = Path(__file__).parents[1]
LAUNCHER = str(ROOT / "scripts/fast_blas.py")
LINUX = {"uname": "echo Linux", "ldconfig": "", "gcc": "", "id": "echo 1000"}
PROBE = """
import pathlib, sys
import mlx.core as mx
mx.eval(mx.ones((4, 4)) @ mx.ones((4, 4)))
print(sys.argv[1:], __name__)
print(pathlib.Path("/proc/self/maps").read_text())
"""


def run(folder: Path, *arguments: str) -> str:
    (folder / "probe.py").write_text(PROBE)
    command = [sys.executable, LAUNCHER, "run", "probe", *arguments]
    environment = {**os.environ, "PYTHONPATH": ""}  # what conftest puts there may load MLX first
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module", autouse=True)
def stub_is_left_alone() -> Iterator[None]:
    """Every program that starts after these tests would compute slowly."""
    before = fast_blas.STUB.exists()
    yield
    assert fast_blas.STUB.exists() == before


@pytest.mark.skipif(platform.system() != "Linux", reason="MLX has its own BLAS elsewhere")
def test_mlx_uses_openblas_where_the_stub_was_built(tmp_path: Path) -> None:
    if not fast_blas.STUB.exists():
        pytest.skip("there is no OpenBLAS or no gcc here")
    maps = run(tmp_path)
    bundled = fast_blas.bundled_blas()
    assert bundled is not None
    assert "/libopenblas" in maps
    assert str(bundled) not in maps


@pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc")
def test_launcher_passes_options_on_and_runs_the_module_as_main(tmp_path: Path) -> None:
    assert run(tmp_path, "-h", "--steps", "4").startswith("['-h', '--steps', '4'] __main__\n")


def test_a_mac_has_its_own_blas(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    monkeypatch.setattr(fast_blas, "STUB", tmp_path / "stub.so")  # `build` removes the one that is there
    monkeypatch.setattr(fast_blas, "bundled_blas", lambda: None)
    assert fast_blas.load() == "Accelerate"
    assert fast_blas.build() == "MLX needs no other BLAS here."


def test_without_a_stub_modules_run_on_the_slow_blas(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What `make generate` does where there is no OpenBLAS, which it does not install."""
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr(fast_blas, "STUB", tmp_path / "stub.so")
    monkeypatch.setattr(fast_blas, "bundled_blas", lambda: tmp_path / "libblas.so")
    assert fast_blas.load().startswith("the reference BLAS of its wheel (slow")
    (tmp_path / "probe.py").write_text("print(__name__)")
    copy = tmp_path / "fast_blas.py"
    copy.write_text(Path(LAUNCHER).read_text().replace('Path(sys.prefix, "lib", ', f'Path("{tmp_path}", '))
    done = subprocess.run(
        [sys.executable, str(copy), "run", "probe"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "__main__\n"


@pytest.mark.parametrize(
    ("programs", "has_font", "installed", "errors"),
    [
        ({"uname": "echo Darwin"}, False, False, ""),
        (LINUX | {"ldconfig": "echo libopenblas.so.0"}, True, False, ""),
        (LINUX | {"ldconfig": "echo libopenblas.so.0"}, False, False, "install: fonts-noto-color-emoji"),
        (LINUX, True, False, "install: libopenblas0-pthread"),
        (LINUX | {"id": "echo 0", "apt-get": 'echo "$*" >>apt'}, True, True, ""),
        (LINUX | {"id": "echo 0", "apt-get": "exit 1"}, True, False, "slow"),
    ],
    ids=["mac", "there", "no font", "not root", "root", "no network"],
)
def test_system_packages_are_installed_where_they_may_be(
    tmp_path: Path, programs: dict[str, str], has_font: bool, installed: bool, errors: str
) -> None:
    machine = make_machine(tmp_path / "bin", programs)
    script = (ROOT / "scripts/install_system.sh").read_text()
    # its own PATH would find this machine's programs
    script = script.replace("PATH=$PATH:/usr/sbin:/sbin", f"cd '{tmp_path}'").replace("/usr/share/fonts", str(tmp_path))
    (tmp_path / "install.sh").write_text(script)
    if has_font:
        (tmp_path / "truetype/noto").mkdir(parents=True)
        (tmp_path / "truetype/noto/NotoColorEmoji.ttf").touch()
    done = run_script(tmp_path / "install.sh", machine=machine)
    assert done.returncode == 0
    assert errors in done.stderr
    assert (tmp_path / "apt").exists() == installed


def test_build_without_a_compiler_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fast_blas, "STUB", tmp_path / "stub.so")
    monkeypatch.setattr(fast_blas, "bundled_blas", lambda: tmp_path / "libblas.so")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert fast_blas.build() == "MLX keeps its slow reference BLAS: there is no gcc."
    assert not fast_blas.STUB.exists()


def test_build_without_openblas_names_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fast_blas, "STUB", tmp_path / "stub.so")
    monkeypatch.setattr(fast_blas, "bundled_blas", lambda: tmp_path / "libblas.so")
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/gcc")
    monkeypatch.setattr(fast_blas, "OPENBLAS", "libabsent.so.0")
    assert "libopenblas0-pthread" in fast_blas.build()
