"""Every kind of saved program, read back: by Apple's own loader, which infers all types again, and blob by blob."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from coremltools.converters.mil.frontend.milproto import load
from coremltools.proto import MIL_pb2, Model_pb2
from numpy.typing import NDArray

from convert.coreml.compress import Scheme
from convert.coreml.package import MODEL_FILE, WEIGHT_FILE
from convert.verify.blobs import BlobFile
from convert.verify.interpreter import Arithmetic, Interpreter
from tests.convert.coreml.bundles import Sources, make_bundle

SHIFT_SCALE: Final = "constexpr_blockwise_shift_scale"
LOOK_UP: Final = "constexpr_lut_to_dense"
# Both routings, chains of packages, dense models and every compression; text encoder and VAE are in each.
CASES: Final = [
    ("sigma", True, Scheme.NONE, ()),
    ("sigma", True, Scheme.INT8, ("--chunks", "2", "--batch", "1", "--batch", "2")),
    ("sigma", True, Scheme.INT4, ("--size", "16x24", "--size", "32x16")),
    ("alpha", True, Scheme.INT4, ("--routing", "onehot",)),
    ("sigma", True, Scheme.PALETTE4, ("--routing", "onehot", "--chunks", "3")),
    ("alpha-micro", True, Scheme.PALETTE6, ("--size", "32x48")),
    ("alpha-micro", False, Scheme.NONE, ("--size", "32x48", "--chunks", "2")),
    ("sigma", False, Scheme.INT8, ()),
]  # fmt: skip


@pytest.fixture(
    scope="module",
    params=CASES,
    ids=lambda case: " ".join([case[0], "routed" if case[1] else "dense", case[2].value, *case[3]]).replace("--", ""),
)
def exported(
    request: pytest.FixtureRequest, sources: Sources, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Scheme, dict[Path, Any]]:
    """The compression of a bundle, and the saved model of each of its packages."""
    kind, routed, scheme, options = request.param
    folder = tmp_path_factory.mktemp("programs") / "bundle"
    make_bundle(sources(kind, routed=routed), folder, "--compress", scheme.value, *options)
    models = {}
    for package in sorted(folder.glob("*.mlpackage")):
        models[package] = Model_pb2.Model()
        models[package].ParseFromString((package / MODEL_FILE).read_bytes())
    return scheme, models


def block_of(function: Any) -> Any:
    (found,) = function.block_specializations.values()
    return found


def test_apple_s_loader_infers_the_same_types(exported: tuple[Scheme, dict[Path, Any]]) -> None:
    """It raises where a type that it infers contradicts the saved one, or where an operation refuses its arguments."""
    _, models = exported
    assert len(models) >= 4
    for package, model in models.items():
        program = load.load(model, model.specificationVersion, str((package / WEIGHT_FILE).parent))
        assert program.functions.keys() == model.mlProgram.functions.keys()
        for name, function in program.functions.items():
            saved = model.mlProgram.functions[name]
            assert list(function.inputs) == [item.name for item in saved.inputs]
            assert [output.name for output in function.outputs] == list(block_of(saved).outputs)


def test_apple_s_loader_can_tell(exported: tuple[Scheme, dict[Path, Any]]) -> None:
    _, models = exported
    package, model = next(iter(models.items()))
    changed = Model_pb2.Model()
    changed.CopyFrom(model)
    name = next(iter(changed.mlProgram.functions))
    linear = next(item for item in block_of(changed.mlProgram.functions[name]).operations if item.type == "linear")
    linear.outputs[0].type.tensorType.dimensions[0].constant.size += 1
    with pytest.raises(AssertionError, match="Mismatch between var types"):
        load.load(changed, changed.specificationVersion, str((package / WEIGHT_FILE).parent))


def test_apple_s_formulas_decompress_to_what_the_interpreter_reads(exported: tuple[Scheme, dict[Path, Any]]) -> None:
    _, models = exported
    for package, model in models.items():
        program = load.load(model, model.specificationVersion, str((package / WEIGHT_FILE).parent))
        interpreter = Interpreter(package, Arithmetic.EXACT)
        constants = interpreter.constants(interpreter.default_function)
        for operation in program.functions[interpreter.default_function].operations:
            if operation.op_type in (SHIFT_SCALE, LOOK_UP):
                wanted = operation.materialized_val_inference()
                found = constants[operation.outputs[0].name]
                assert np.array_equal(found.astype(wanted.dtype), wanted), operation.outputs[0].name


def constants_of(package: Path, model: Any, kind: str, parameter: str) -> dict[str, NDArray[Any]]:
    """An argument of all operations of one type, as the files have it."""
    blobs = BlobFile(package / WEIGHT_FILE)
    found = {}
    for function in model.mlProgram.functions.values():
        operations = block_of(function).operations
        values = {item.outputs[0].name: item.attributes["val"] for item in operations if item.type == "const"}
        for item in operations:
            if item.type == kind:
                (binding,) = item.inputs[parameter].arguments
                name = item.outputs[0].name
                found[name] = read_value(blobs, values[binding.name] if binding.name else binding.value)
    return found


def read_value(blobs: BlobFile, value: Any) -> NDArray[Any]:
    tensor = value.type.tensorType
    dtype = MIL_pb2.DataType.Name(tensor.dataType).lower().replace("float", "fp")
    shape = tuple(dimension.constant.size for dimension in tensor.dimensions)
    assert value.WhichOneof("value") == "blobFileValue"  # these are all large
    return blobs.find(value.blobFileValue.offset, dtype, shape).read()


def test_scales_are_positive(exported: tuple[Scheme, dict[Path, Any]]) -> None:
    scheme, models = exported
    kinds = {item.type for model in models.values() for function in model.mlProgram.functions.values()
             for item in block_of(function).operations if item.type in (SHIFT_SCALE, LOOK_UP)}  # fmt: skip
    assert kinds == ({LOOK_UP} if scheme.is_palette else {SHIFT_SCALE} if scheme is not Scheme.NONE else set())
    if SHIFT_SCALE not in kinds:
        return
    offsets: set[int] = set()
    for package, model in models.items():
        for name, scale in constants_of(package, model, SHIFT_SCALE, "scale").items():
            assert np.all(scale > 0), name
        for name, offset in constants_of(package, model, SHIFT_SCALE, "offset").items():
            assert offset.dtype == np.uint8, name
            offsets |= set(offset.ravel().tolist())
    half = 1 << (scheme.bits - 1)
    assert offsets == {half - 1, half}  # of blocks whose largest number is positive, and negative
