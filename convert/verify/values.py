"""Types and constants of a MIL program, as its protobuf holds them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from coremltools.proto import MIL_pb2
from numpy.typing import NDArray
from torch import Tensor

from convert.verify.blobs import NUMPY_DTYPES, PACKED_BITS, StoredArray, count_bytes, decode
from moddit.errors import FormatError, UnsupportedError

FLOATS: Final = ("fp16", "fp32")
DTYPES: Final = frozenset({"bool", "string", *NUMPY_DTYPES, *PACKED_BITS})
_DTYPES: Final[Mapping[int, str]] = {
    MIL_pb2.DataType.Value(dtype.upper().replace("FP", "FLOAT")): dtype for dtype in DTYPES
}


@dataclass(frozen=True)
class Feature:
    """What a program declares of a value."""

    shape: tuple[int, ...]
    dtype: str  # one of DTYPES

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


@dataclass(frozen=True)
class Literal:
    """A constant, decoded when asked for and not kept."""

    feature: Feature
    stored: StoredArray | NDArray[Any] | str

    def read(self) -> Tensor | str:
        """Decode the constant: floats as float32, integers as int32."""
        if isinstance(self.stored, str):
            return self.stored
        array = self.stored.read() if isinstance(self.stored, StoredArray) else self.stored
        return hold(torch.from_numpy(array))


def hold(value: Tensor) -> Tensor:
    """Hold a value as the interpreter does: floats as float32, integers as int32, booleans as they are."""
    if value.dtype == torch.bool:
        return value
    return value.to(torch.float32 if value.is_floating_point() else torch.int32)


def holds(dtype: str) -> torch.dtype:
    """Give the torch dtype in which values that a program declares as `dtype` are held."""
    if dtype in FLOATS:
        return torch.float32
    return torch.bool if dtype == "bool" else torch.int32


def read_feature(value_type: Any, where: str) -> Feature:
    """Read a type.

    Raises:
        UnsupportedError: it is not a tensor of a known dtype, or has dimensions that are not numbers.
        FormatError: it contradicts itself.
    """
    kind = value_type.WhichOneof("type")
    if kind != "tensorType":
        raise UnsupportedError(f"{where}: type, got {kind}, want tensorType")
    tensor = value_type.tensorType
    if tensor.dataType not in _DTYPES:
        raise UnsupportedError(
            f"{where}: dtype, got {MIL_pb2.DataType.Name(tensor.dataType)}, want one of {', '.join(sorted(DTYPES))}"
        )
    if any(dimension.WhichOneof("dimension") != "constant" for dimension in tensor.dimensions):
        raise UnsupportedError(f"{where}: shape has symbolic dimensions; convert with fixed shapes")
    shape = tuple(int(dimension.constant.size) for dimension in tensor.dimensions)
    if tensor.rank != len(shape):
        raise FormatError(f"{where}: rank, got {tensor.rank}, want {len(shape)}, the number of its dimensions")
    return Feature(shape, _DTYPES[tensor.dataType])


def read_literal(value: Any, find_blob: Callable[[str, int, Feature], StoredArray], where: str) -> Literal:
    """Read a constant, a MIL_pb2.Value, or find it in the weights, by the name of its file and its metadata's offset.

    Raises:
        UnsupportedError: the constant is not a tensor of a known dtype.
        FormatError: it does not have the values that its type declares.
    """
    feature = read_feature(value.type, where)
    if value.WhichOneof("value") == "blobFileValue":
        if feature.dtype in ("bool", "string"):
            raise UnsupportedError(f"{where}: constant of dtype {feature.dtype} in a file of weights")
        return Literal(feature, find_blob(value.blobFileValue.fileName, value.blobFileValue.offset, feature))
    immediate = value.immediateValue
    if immediate.WhichOneof("value") != "tensor":
        raise UnsupportedError(f"{where}: constant, got {immediate.WhichOneof('value')}, want tensor")
    return Literal(feature, _read_tensor(immediate.tensor, feature, where))


def _read_tensor(tensor: Any, feature: Feature, where: str) -> NDArray[Any] | str:
    field = tensor.WhichOneof("value")
    values: Any = getattr(tensor, field).values if field else ()
    if feature.dtype == "string":
        if field != "strings" or len(values) != 1 or feature.shape:
            raise UnsupportedError(f"{where}: constant of strings, got {len(values)} of {field}, want a single one")
        return str(values[0])
    if field == "bytes":
        return _read_bytes(values, feature, where)
    dtype = "?" if feature.dtype == "bool" else NUMPY_DTYPES.get(feature.dtype, "<i4")
    wanted = {"bool": "bools", "fp32": "floats"}.get(feature.dtype, "ints")
    array = np.array(values, dtype)
    if (field or wanted) != wanted or array.size != math.prod(feature.shape):
        raise FormatError(f"{where}: constant, got {array.size} values in {field}, want {feature} in {wanted}")
    return array.reshape(feature.shape)


def _read_bytes(values: bytes, feature: Feature, where: str) -> NDArray[Any]:
    if feature.dtype not in NUMPY_DTYPES and feature.dtype not in PACKED_BITS:
        raise FormatError(f"{where}: constant of dtype {feature.dtype} is stored as bytes")
    wanted = count_bytes(feature.dtype, feature.shape)
    if len(values) != wanted:
        raise FormatError(f"{where}: constant, got {len(values)} bytes, want {wanted} for {feature}")
    return decode(np.frombuffer(bytearray(values), np.uint8), feature.dtype, feature.shape)
