"""A function alone: the same function, and nothing else to place."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb

from convert.verify.device_task import Place, perform
from convert.verify.interpreter import Arithmetic, Interpreter
from convert.verify.package import copy_function, read_package
from moddit.errors import MissingError
from tests.convert.verify.fake_coreml import Fake
from tests.convert.verify.packages import MODEL, WEIGHTS, save

X = np.linspace(-1, 1, 32, dtype=np.float32)[None]
WEIGHT = np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def double(x: Any) -> Any:
        return mb.mul(x=mb.linear(x=x, weight=WEIGHT), y=np.float32(2), name="y")

    def negate(x: Any) -> Any:
        return mb.sub(x=np.float32(0), y=mb.linear(x=x, weight=WEIGHT), name="y")

    functions = {"double": (double, {"x": X}), "negate": (negate, {"x": X})}
    return save(tmp_path_factory.mktemp("excerpt"), functions)


def digest(package: Path) -> dict[str, str]:
    return {
        str(path.relative_to(package)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(package.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("function", ["double", "negate"])
def test_a_function_alone(function: str, package: Path, tmp_path: Path) -> None:
    before = digest(package)
    copy = Interpreter(copy_function(package, function, tmp_path / "copy.mlpackage"), Arithmetic.EXACT)
    assert list(copy.functions) == [copy.default_function] == [function]
    whole = Interpreter(package, Arithmetic.EXACT)
    for features in ("inputs", "outputs"):
        assert getattr(copy.functions[function], features) == getattr(whole.functions[function], features)
    assert np.array_equal(copy.run(function, {"x": X})["y"], whole.run(function, {"x": X})["y"])
    assert digest(package) == before
    assert os.path.samefile(package / WEIGHTS, copy.path / WEIGHTS)
    assert not os.path.samefile(package / MODEL, copy.path / MODEL)


def test_copies_where_there_are_no_hard_links(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: str) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    copy = copy_function(package, "negate", tmp_path / "copy.mlpackage")
    assert Interpreter(copy, Arithmetic.EXACT).default_function == "negate"
    assert (copy / WEIGHTS).read_bytes() == (package / WEIGHTS).read_bytes()


def test_no_such_function(package: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no function 'main', want one of double, negate"):
        copy_function(package, "main", tmp_path / "copy.mlpackage")
    assert list(tmp_path.iterdir()) == []


class Compiler(Fake):
    """Notes the functions of what it compiles, and the placements it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.compiled: dict[str, list[str]] = {}

    def compile(self, package: Path, compiled: Path) -> None:
        super().compile(package, compiled)
        description = read_package(package).model.description
        self.compiled[str(compiled)] = [description.defaultFunctionName, *(item.name for item in description.functions)]

    def place(self, compiled: Path, function: str, units: str) -> Any:
        assert self.compiled[str(compiled)] == [function, function]
        yield "linear", "GPU"


@pytest.mark.parametrize("function", ["double", "negate"])
def test_a_placement_is_that_of_the_function(function: str, package: Path, tmp_path: Path) -> None:
    """Core ML places the default function alone, so each has to be that of what is compiled."""
    task = Place(str(package), str(tmp_path / "whole" / "model.mlmodelc"), function, "all", False, str(tmp_path))
    assert perform(task, Compiler()) == {"operations": {"linear": {"GPU": 1}}}
