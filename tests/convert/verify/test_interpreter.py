"""Saved packages as a whole: functions, arithmetic, constants, and packages that are damaged or beyond us."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types
from coremltools.proto import MIL_pb2
from numpy.typing import NDArray

from convert.verify.interpreter import Arithmetic, Interpreter
from convert.verify.values import Feature
from moddit.errors import FormatError, MissingError, ShapeError, UnsupportedError, ValueRangeError
from tests.convert.verify.packages import MODEL, WEIGHTS, block, edit, save

X: NDArray[Any] = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
WEIGHT: NDArray[Any] = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)


def build(x: Any) -> Any:
    return mb.linear(x=mb.mul(x=x, y=np.float32(2), name="twice"), weight=WEIGHT, name="y")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("saved"), {"main": (build, {"x": X})})


@pytest.fixture
def package(saved: Path, tmp_path: Path) -> Path:
    """A package of one function, to be changed at will."""
    return Path(shutil.copytree(saved, tmp_path / saved.name))


def read(package: Path, arithmetic: Arithmetic = Arithmetic.EXACT) -> Interpreter:
    return Interpreter(package, arithmetic)


def find(model: Any, kind: str) -> Any:
    return next(operation for operation in block(model).operations if operation.type == kind)


class TestFunctions:
    def test_one(self, package: Path) -> None:
        interpreter = read(package)
        assert interpreter.default_function == "main"
        assert interpreter.functions.keys() == {"main"}
        assert interpreter.functions["main"].inputs == {"x": Feature((2, 4), "fp32")}
        assert interpreter.functions["main"].outputs == {"y": Feature((2, 3), "fp32")}
        found = interpreter.run("main", {"x": X})
        np.testing.assert_allclose(found["y"], 2 * X @ WEIGHT.T, rtol=1e-5)

    def test_several(self, tmp_path: Path) -> None:
        def other(x: Any, i: Any) -> Any:
            return [mb.gather(x=x, indices=i, axis=0, name="rows"), mb.add(x=i, y=np.int32(1), name="next")]

        i = np.array([1, 0, 0], np.int32)
        interpreter = read(save(tmp_path, {"first": (build, {"x": X}), "second": (other, {"x": X, "i": i})}))
        assert interpreter.default_function == "first"
        assert interpreter.functions["second"].inputs == {"x": Feature((2, 4), "fp32"), "i": Feature((3,), "int32")}
        np.testing.assert_allclose(interpreter.run("first", {"x": X})["y"], 2 * X @ WEIGHT.T, rtol=1e-5)
        found = interpreter.run("second", {"x": X.astype(np.float64), "i": i.astype(np.int64)})
        assert found.keys() == {"rows", "next"}
        assert np.array_equal(found["rows"], X[[1, 0, 0]])
        assert found["next"].dtype == np.int32
        assert found["next"].tolist() == [2, 1, 1]

    def test_watch(self, package: Path) -> None:
        def unname(model: Any) -> None:
            del find(model, "linear").attributes["name"]

        edit(package, unname)
        seen: list[tuple[str, tuple[int, ...]]] = []
        read(package).run("main", {"x": X}, lambda name, values: seen.append((name, tuple(values[0].shape))))
        assert seen == [("twice", (2, 4)), ("y", (2, 3))]

    def test_runs_are_alike_and_leave_inputs_alone(self, package: Path) -> None:
        interpreter, x = read(package), X.copy()
        first, second = (interpreter.run("main", {"x": x})["y"] for _ in range(2))
        assert np.array_equal(first, second)
        assert np.array_equal(x, X)


class TestArithmetic:
    @pytest.fixture
    def half(self, tmp_path: Path) -> Path:
        """x in fp16, half of its square, and a sum that fp16 cannot hold."""

        def build(x: Any) -> Any:
            x = mb.cast(x=x, dtype="fp16", name="x16")
            square = mb.square(x=x, name="square")
            mb.add(x=x, y=np.float16(2048), name="sum")
            weight = mb.constexpr_blockwise_shift_scale(
                data=np.array([[3]], np.int8), scale=np.array([[0.333]], np.float16)
            )
            mb.linear(x=mb.reshape(x=x, shape=[3, 1]), weight=weight, name="product")
            return mb.cast(x=mb.mul(x=square, y=np.float16(0.5)), dtype="fp32", name="y")

        return save(tmp_path, {"main": (build, {"x": self.x})})

    x: NDArray[Any] = np.array([1 + 2**-12, 300, 3], np.float32)

    def run(self, package: Path, arithmetic: Arithmetic) -> dict[str, NDArray[Any]]:
        seen: dict[str, NDArray[Any]] = {}
        interpreter = read(package, arithmetic)
        interpreter.run("main", {"x": self.x}, lambda name, values: seen.update({name: values[0].numpy().copy()}))
        return seen

    def test_exact_never_rounds(self, half: Path) -> None:
        seen = self.run(half, Arithmetic.EXACT)
        assert seen["x16"].tolist() == self.x.tolist()
        assert seen["square"].tolist() == (self.x**2).tolist()
        assert seen["sum"].tolist() == (self.x + np.float32(2048)).tolist()
        assert seen["y"].tolist() == (self.x**2 / 2).tolist()
        scale = float(np.float16(0.333))
        assert seen["product"].ravel().tolist() == pytest.approx((self.x * 3 * scale).tolist(), rel=1e-7)

    def test_rounded_rounds_each_value_and_overflows(self, half: Path) -> None:
        seen = self.run(half, Arithmetic.ROUNDED)
        assert seen["x16"].tolist() == [1, 300, 3]
        assert seen["square"].tolist() == [1, np.inf, 9]  # 90000 is more than 65504
        assert seen["sum"].tolist() == [2048, 2348, 2052]  # 2049 and 2051 lie between two values: ties to even
        assert seen["y"].tolist() == [0.5, np.inf, 4.5]
        weight = np.float16(3 * np.float32(np.float16(0.333)))
        assert seen["product"][0, 0] == weight

    def test_constants_are_what_the_file_holds(self, half: Path) -> None:
        constants = read(half, Arithmetic.EXACT).constants("main")
        (scaled,) = (name for name in constants if constants[name].shape == (1, 1))
        assert constants[scaled].dtype == np.float32
        assert constants[scaled][0, 0] == 3 * np.float32(np.float16(0.333))


class TestConstants:
    def test_values_by_name(self, tmp_path: Path) -> None:
        whole, half = np.arange(20, dtype=np.int32), np.linspace(0, 1, 15).astype(np.float16)
        packed = np.arange(-8, 8).reshape(2, 8)

        def build(x: Any) -> Any:
            scale = np.array([[1], [0.5]], np.float32)
            data = packed.astype(types.np_int4_dtype)
            mb.constexpr_blockwise_shift_scale(data=data, scale=scale, name="packed")
            mb.const(val=whole, name="whole")
            mb.const(val=half, name="half")
            mb.const(val=np.array([True, False]), name="flags")
            mb.const(val=np.float16(0.1), name="small")
            return mb.gelu(x=x, mode="EXACT", name="y")

        constants = read(save(tmp_path, {"main": (build, {"x": X})})).constants("main")
        assert constants.keys() >= {"packed", "whole", "half", "flags", "small"}
        assert len(constants) == len(list(constants))
        assert np.array_equal(constants["packed"], packed * np.array([[1], [0.5]]))
        assert np.array_equal(constants["whole"], whole)
        assert np.array_equal(constants["half"], half.astype(np.float32))
        assert constants["flags"].tolist() == [True, False]
        assert constants["small"].shape == ()
        assert constants["small"] == np.float16(0.1)
        assert not any("mode" in name for name in constants)  # a string

    def test_no_such_function(self, package: Path) -> None:
        with pytest.raises(MissingError, match="no function 'other', want one of main"):
            read(package).constants("other")


class TestInputs:
    @pytest.mark.parametrize(
        ("inputs", "error", "message"),
        [
            ({}, MissingError, "inputs: x is missing"),
            ({"x": X, "z": X}, MissingError, "inputs: z is not an input"),
            ({"z": X}, MissingError, "inputs: x is missing, z is not an input"),
            ({"x": X.T}, ShapeError, r"inputs: x is \[4, 2\], want fp32 \[2, 4\]"),
            ({"x": X.astype(np.int32)}, ValueRangeError, r"input 'x': values are of dtype int32, want fp32"),
        ],
    )
    def test_wrong(self, inputs: Any, error: type[Exception], message: str, package: Path) -> None:
        with pytest.raises(error, match=rf"{package.name}: function 'main': {message}"):
            read(package).run("main", inputs)

    def test_too_large_for_int32(self, tmp_path: Path) -> None:
        i = np.zeros(2, np.int32)
        interpreter = read(save(tmp_path, {"main": (lambda i: mb.add(x=i, y=i, name="y"), {"i": i})}))
        with pytest.raises(ValueRangeError, match=r"values are in 0\.\.4294967296, which int32 \[2\] does not hold"):
            interpreter.run("main", {"i": np.array([0, 2**32])})

    def test_no_such_function(self, package: Path) -> None:
        with pytest.raises(MissingError, match="no function 'other'"):
            read(package).run("other", {"x": X})


def _retype(model: Any) -> None:
    find(model, "linear").type = "einsum"


def _add_parameter(model: Any) -> None:
    find(model, "mul").inputs["alpha"].arguments.add().name = "x"


def _drop_parameter(model: Any) -> None:
    del find(model, "mul").inputs["y"]


def _make_symbolic(model: Any) -> None:
    find(model, "mul").outputs[0].type.tensorType.dimensions[0].unknown.variadic = False


def _declare_half(model: Any) -> None:
    find(model, "linear").outputs[0].type.tensorType.dataType = MIL_pb2.FLOAT16


def _misname_argument(model: Any) -> None:
    find(model, "mul").inputs["x"].arguments[0].name = "nowhere"


def _repeat_value(model: Any) -> None:
    find(model, "mul").outputs[0].name = "x"


def _mix_floats(model: Any) -> None:
    constant = next(item for item in block(model).operations if "twice" in item.outputs[0].name)
    for value_type in (constant.outputs[0].type, constant.attributes["val"].type):
        value_type.tensorType.dataType = MIL_pb2.FLOAT16
    constant.attributes["val"].immediateValue.tensor.bytes.values = np.float16(2).tobytes()


def _find_blob(model: Any) -> Any:
    constants = (item for item in block(model).operations if item.type == "const")
    return next(item.attributes["val"] for item in constants if item.attributes["val"].HasField("blobFileValue"))


def _shift_blob(model: Any) -> None:
    _find_blob(model).blobFileValue.offset += 64


def _leave_package(model: Any) -> None:
    _find_blob(model).blobFileValue.fileName = "@model_path/../../weight.bin"


def _describe_other_shape(model: Any) -> None:
    model.description.input[0].type.multiArrayType.shape[0] = 3


def _describe_other_function(model: Any) -> None:
    model.description.functions.add().name = "other"


def _change_opset(model: Any) -> None:
    model.mlProgram.functions["main"].opset = "CoreML7"


def _replace_program(model: Any) -> None:
    model.identity.SetInParent()


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            (_retype, UnsupportedError, "function 'main': operation 'y' of type einsum: .*not implemented"),
            (_add_parameter, UnsupportedError, "operation 'twice' of type mul: parameters alpha are not implemented"),
            (_drop_parameter, FormatError, "operation 'twice' of type mul: parameters y are absent"),
            (_make_symbolic, UnsupportedError, "output 'twice': shape has symbolic dimensions"),
            (_declare_half, FormatError, "output 'y' is declared fp16, want fp32"),
            (_misname_argument, FormatError, "argument x: value 'nowhere' is not defined before"),
            (_repeat_value, FormatError, "value 'x' is defined twice"),
            (_mix_floats, FormatError, r"mixes floats \(x fp32, y fp16\)"),
            (_shift_blob, FormatError, "weight.bin: array at offset 128: no place for metadata"),
            (_leave_package, FormatError, "file of weights is named"),
            (_describe_other_shape, FormatError, r"inputs: are x fp32 \[3, 4\], want x fp32 \[2, 4\]"),
            (_describe_other_function, FormatError, r"describes functions \['other'\], want \['main'\]"),
            (_change_opset, FormatError, "no block for its opset 'CoreML7'"),
            (_replace_program, UnsupportedError, "kind of model, got identity, want mlProgram"),
        ],
    )
    def test_when_read(
        self, change: Callable[[Any], None], error: type[Exception], message: str, package: Path
    ) -> None:
        edit(package, change)
        with pytest.raises(error, match=message):
            read(package)

    def test_a_declared_shape_that_is_not_what_comes_out(self, package: Path) -> None:
        def change(model: Any) -> None:
            find(model, "mul").outputs[0].type.tensorType.dimensions[0].constant.size = 5

        edit(package, change)
        with pytest.raises(FormatError, match=r"'twice': is torch.float32 \[2, 4\], want fp32 \[5, 4\] as declared"):
            read(package).run("main", {"x": X})

    def test_what_torch_cannot_compute(self, package: Path) -> None:
        def change(model: Any) -> None:
            find(model, "linear").inputs["x"].arguments[0].name = "x"
            model.mlProgram.functions["main"].inputs[0].type.tensorType.dimensions[1].constant.size = 5
            model.description.input[0].type.multiArrayType.shape[1] = 5
            find(model, "mul").outputs[0].type.tensorType.dimensions[1].constant.size = 5

        edit(package, change)
        with pytest.raises(FormatError, match=r"operation 'y' of type linear: cannot be computed \("):
            read(package).run("main", {"x": np.ones((2, 5), np.float32)})

    def test_truncated_weights(self, package: Path) -> None:
        weights = package / WEIGHTS
        weights.write_bytes(weights.read_bytes()[:160])
        with pytest.raises(FormatError, match=r"weight.bin: array at offset 64: data is at 128\.\.176, .* at most 160"):
            read(package)

    def test_absent_files(self, package: Path, tmp_path: Path) -> None:
        (package / WEIGHTS).unlink()
        with pytest.raises(MissingError, match=r"weight\.bin: no such file"):
            read(package)
        (package / MODEL).unlink()
        with pytest.raises(MissingError, match=r"model\.mlmodel: no such file"):
            read(package)
        with pytest.raises(MissingError, match=r"Manifest\.json: no such file"):
            read(tmp_path / "other.mlpackage")

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "not JSON"),
            ("[]", "does not name a model"),
            ("{}", "does not name a model"),
            (
                json.dumps({"rootModelIdentifier": "a", "itemInfoEntries": {"a": {"path": "../../model.mlmodel"}}}),
                "want one inside the package",
            ),
        ],
    )
    def test_damaged_manifest(self, text: str, message: str, package: Path) -> None:
        (package / "Manifest.json").write_text(text, encoding="utf-8")
        with pytest.raises(FormatError, match=f"Manifest.json: .*{message}"):
            read(package)

    def test_damaged_model(self, package: Path) -> None:
        (package / MODEL).write_bytes(b"\xff" * 40)
        with pytest.raises(FormatError, match=r"model\.mlmodel: not a Core ML model"):
            read(package)
