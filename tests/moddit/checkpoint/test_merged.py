"""Merged tensors: any rows of them are those of the whole, and reading them takes no more memory than the base does."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from benchmarks.conversion import run_metered
from moddit.checkpoint.merged import Addition, MergedTensor
from moddit.checkpoint.safetensors import FileTensor, read_tensors
from moddit.checkpoint.stored import Rows
from moddit.errors import FormatError, ValueRangeError

TOLERANCE: Final = 1e-5  # of sums of 3 products of the order of 1, in float32
SIDE: Final = 4096  # of a float32 matrix of 64 MiB
# A has 0.25 MiB, what is merged at once 1 MiB, held thrice; the first product lets OpenBLAS make its buffers. 4.1 here.
MEMORY_LIMIT: Final = 8 << 20
READER: Final = """
import sys
from pathlib import Path
from moddit.checkpoint.merged import Addition, MergedTensor
from moddit.checkpoint.safetensors import read_tensors

tensors = read_tensors(Path(sys.argv[1]))
tensor = tensors["base"]
if sys.argv[2] == "merged":
    tensor = MergedTensor.of(tensor, Addition(tensors["up"], tensors["down"], 0.5))
rows = int(sys.argv[3])
for first in range(0, tensor.shape[0], rows):
    tensor.read(first, first + rows)
"""


def store(path: Path, **arrays: Any) -> dict[str, FileTensor]:
    save_file({name: np.ascontiguousarray(array, array.dtype) for name, array in arrays.items()}, path)
    return read_tensors(path)


def draw(*shape: int, seed: int = 0, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("merged") / "x.safetensors"
    store(path, base=draw(SIDE, SIDE), up=draw(SIDE, 16), down=draw(16, SIDE))
    return path


@pytest.mark.parametrize("shape", [(6, 5), (6, 3, 2, 2), (600, 1000)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_whole(tmp_path: Path, shape: tuple[int, ...], dtype: Any) -> None:
    rows, *rest = shape
    base, up, down = draw(*shape, dtype=dtype), draw(rows, 3, dtype=dtype), draw(3, *rest, dtype=dtype)
    tensors = store(tmp_path / "x", base=base, up=up.reshape(rows, 3, *(1 for _ in rest[1:])), down=down)
    merged = MergedTensor.of(tensors["base"], Addition(tensors["up"], tensors["down"], -0.3))
    wanted = base.astype(np.float64) - 0.3 * np.tensordot(up.astype(np.float64), down.astype(np.float64), 1)
    found = merged.read()
    assert (merged.dtype, merged.shape, merged.nbytes) == ("F32", shape, found.nbytes)
    assert (merged.path, merged.name) == (tmp_path / "x", "base")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=TOLERANCE)


def test_bias_and_rows(tmp_path: Path) -> None:
    tensors = store(tmp_path / "x", base=draw(4), up=draw(9))
    merged = MergedTensor.of(tensors["base"], Addition(Rows.of(tensors["up"], 3, 7), None, 2.0))
    np.testing.assert_allclose(merged.read(), tensors["base"].read() + 2 * tensors["up"].read(3, 7), atol=TOLERANCE)


def test_bfloat16(tmp_path: Path) -> None:
    values = {"base": torch.randn(5, 4).bfloat16(), "up": torch.randn(5, 2).bfloat16(), "down": torch.randn(2, 4)}
    save_torch(values, tmp_path / "x")
    tensors = read_tensors(tmp_path / "x")
    merged = MergedTensor.of(tensors["base"], Addition(tensors["up"], tensors["down"], 1.0))
    wanted = values["base"].float() + values["up"].float() @ values["down"]
    np.testing.assert_allclose(merged.read(), wanted.numpy(), atol=TOLERANCE)


@given(first=st.integers(0, 700), count=st.integers(0, 700), is_twice=st.booleans())
def test_pieces(tmp_path_factory: pytest.TempPathFactory, first: int, count: int, is_twice: bool) -> None:
    path = tmp_path_factory.getbasetemp() / "pieces.safetensors"
    if not path.exists():
        store(path, base=draw(700, 900), up=draw(700, 3), down=draw(3, 900))
    tensors = read_tensors(path)
    addition = Addition(tensors["up"], tensors["down"], 0.5)
    merged = MergedTensor.of(tensors["base"], addition)
    merged = MergedTensor.of(merged, addition) if is_twice else merged
    last = min(700, first + count)
    np.testing.assert_allclose(merged.read(first, last), merged.read()[first:last], atol=TOLERANCE)


@pytest.mark.parametrize("name", ["up", "down"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite(tmp_path: Path, name: str, value: float) -> None:
    arrays = {"base": draw(6, 5), "up": draw(6, 2), "down": draw(2, 5)}
    arrays[name][-1, 1] = value
    tensors = store(tmp_path / "x", **arrays)
    with pytest.raises(ValueRangeError, match=rf"\[lora\] .*: tensor '{name}' is not finite"):
        MergedTensor.of(tensors["base"], Addition(tensors["up"], tensors["down"], 1.0)).read()


def test_a_file_that_vanishes(tmp_path: Path) -> None:
    tensors, lora = store(tmp_path / "x", base=draw(6, 5)), store(tmp_path / "y", up=draw(6, 2), down=draw(2, 5))
    (tmp_path / "y").unlink()
    with pytest.raises(FormatError, match="cannot be read"):
        MergedTensor.of(tensors["base"], Addition(lora["up"], lora["down"], 1.0)).read()


@pytest.mark.parametrize("rows", [256, SIDE], ids=["pieces", "whole"])
def test_memory(large: Path, rows: int) -> None:
    peaks = {kind: _peak(large, kind, rows) for kind in ("base", "merged")}
    print({kind: f"{peak / 2**20:.1f} MiB" for kind, peak in peaks.items()})
    assert peaks["merged"] - peaks["base"] < MEMORY_LIMIT


def _peak(path: Path, kind: str, rows: int) -> int:
    """Measure the largest resident set of a fresh process that reads a tensor, bytes."""
    return run_metered([sys.executable, "-c", READER, str(path), kind, str(rows)])[1]
