"""MLX's compiled kernels, which all tests run where they can, against the same operations one by one."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import mlx.core as mx
import pytest

from mlx_moddit.layers import add_gated, modulate
from mlx_moddit.pipeline import Pipeline
from tests.mlx_moddit.test_cli import FAST, command
from tests.parity.bridge import PICTURE_PSNRS, psnr, relative_error
from tests.startup.sitecustomize import VARIABLE as DEVICE

ROOT: Final = Path(__file__).parents[2]
IS_MAC: Final = platform.system() == "Darwin"
# What the tests set, on a machine that is not here.
SETTINGS: Final = """
import os, platform, sys
system, machine = sys.argv[1:]
platform.system, platform.machine = lambda: system, lambda: machine
import tests.conftest
print(os.environ.get("MLX_DISABLE_COMPILE"), os.environ["MLX_ENABLE_TF32"])
"""
compiles = pytest.mark.skipif(
    "MLX_DISABLE_COMPILE" in os.environ or not (IS_MAC or shutil.which("g++")),
    reason="MLX compiles for a CPU with g++ on x86-64",
)


@compiles
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_compiled_kernels_give_the_same_picture(dense_bundle: Path, dtype: str) -> None:
    pictures = []
    for change in (mx.disable_compile, mx.enable_compile):
        change()
        try:
            result = Pipeline.load(dense_bundle, dtype=dtype).generate("a large red circle", steps=2)
        finally:
            mx.enable_compile()
        pictures.append(result.images[0] / 255)
    assert psnr(*pictures) > PICTURE_PSNRS[dtype]


@compiles
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
@pytest.mark.parametrize("shapes", [[(2, 5, 6), (6,)], [(1, 7, 6), (1, 1, 6), (1, 7, 1)], [(2, 7, 6), (2, 1, 6)]])
def test_operations_that_a_gpu_joins_compute_the_same(
    monkeypatch: pytest.MonkeyPatch, dtype: mx.Dtype, shapes: list[tuple[int, ...]]
) -> None:
    x, y, *gates = (mx.random.normal(shape).astype(dtype) for shape in (shapes[0], *shapes))
    results = []
    for device in (mx.cpu, mx.gpu):  # where it says that it computes: on the same device, one by one and joined
        monkeypatch.setattr(mx, "default_device", lambda device=device: mx.Device(device, 0))
        results.append([add_gated(x, y, *gates), modulate(x, gates[0], gates[0])])
        mx.eval(results[-1])
    for plain, joined in zip(*results, strict=True):
        assert joined.dtype == dtype
        assert relative_error(joined, plain) < mx.finfo(dtype).eps  # one multiplication and addition may round once


@compiles
@pytest.mark.skipif(IS_MAC, reason="Metal keeps its kernels elsewhere")
def test_the_program_is_compiled(dense_bundle: Path, tmp_path: Path) -> None:
    arguments, environment = command("generate", "--model", str(dense_bundle), *FAST, "-o", str(tmp_path / "a.png"))
    subprocess.run(arguments, env={**environment, "TMPDIR": str(tmp_path)}, capture_output=True, check=True)
    assert list(tmp_path.glob("mlx/**/*.so"))


def test_float32_is_not_rounded_to_tf32() -> None:
    assert os.environ["MLX_ENABLE_TF32"] == "0"  # read by MLX when it first multiplies


@pytest.mark.parametrize(
    ("system", "machine", "disabled"),
    [("Darwin", "arm64", None), ("Linux", "x86_64", None), ("Linux", "aarch64", "1")],
)
def test_kernels_are_compiled_wherever_that_works(system: str, machine: str, disabled: str | None) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLX_")}
    environment[DEVICE] = "default"  # another imports MLX as Python starts, before the settings
    command = [sys.executable, "-c", SETTINGS, system, machine]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"{disabled} 0\n"
