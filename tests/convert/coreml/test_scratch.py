"""Arrays that wait in a file, and arrays that are made when they are written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types
from numpy.typing import NDArray

from convert.coreml.package import build_program, save_package
from convert.coreml.scratch import Deferred, Kept
from convert.coreml.weights import shared_const
from convert.verify.interpreter import Arithmetic, Interpreter
from moddit.errors import ShapeError


def test_what_is_kept_is_read_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((3, 5)).astype(dtype) for dtype in (np.float16, np.float32, np.uint8)]
    with TemporaryFile(dir=tmp_path) as file:
        kept = [Kept.of(array.T, file) for array in arrays]  # not in one piece
        for array, item in reversed(list(zip(arrays, kept, strict=True))):
            found = item.read()
            assert (found.dtype, found.shape) == (array.dtype, (5, 3))
            np.testing.assert_array_equal(found, array.T)
    assert not list(tmp_path.iterdir())


def save(tmp_path: Path, make: Callable[[], NDArray[Any]]) -> Path:
    """Save two functions that share a constant, which `make` makes."""

    def build(inputs: Any) -> list[Any]:
        array = Deferred.of((100, 200), np.dtype(np.float32), make)
        return [mb.add(x=inputs["image"], y=shared_const(array, "table"), name="moments")]

    functions = [(name, {"image": mb.placeholder([100, 200], dtype=types.fp32)}, build) for name in ("one", "two")]
    save_package(build_program(functions), tmp_path / "P.mlpackage", "")
    return tmp_path / "P.mlpackage"


def test_a_deferred_array_is_made_once_when_it_is_written(tmp_path: Path) -> None:
    table = np.random.default_rng(0).standard_normal((100, 200)).astype(np.float32)
    made: list[int] = []

    def make() -> NDArray[Any]:
        made.append(1)
        return table

    assert Deferred.of((10**6, 10**6), np.dtype(np.float32), make).nbytes == 4 * 10**12  # takes no memory
    package = save(tmp_path, make)
    assert len(made) == 1
    for function in ("one", "two"):
        outputs = Interpreter(package, Arithmetic.EXACT).run(function, {"image": np.zeros((100, 200), np.float32)})
        np.testing.assert_array_equal(outputs["moments"], table)


def test_what_goes_wrong_then_is_told(tmp_path: Path) -> None:
    def make() -> NDArray[Any]:
        raise ShapeError("of a checkpoint")

    with pytest.raises(ShapeError, match="of a checkpoint"):
        save(tmp_path, make)
    assert not list(tmp_path.iterdir())
