"""The launcher that gives MLX a fast BLAS on Linux."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import fast_blas

ROOT = Path(__file__).parents[1]
LAUNCHER = str(ROOT / "scripts/fast_blas.py")
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
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


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
