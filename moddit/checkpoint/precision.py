"""Floating-point numbers as numpy holds them here: bfloat16, which numpy lacks, is an array of its bits (uint16)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from moddit.checkpoint.stored import StoredTensor
from moddit.errors import UnsupportedError, ValueRangeError

DTYPES: Final[Mapping[str, str]] = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}  # to safetensors' names
DTYPE_NAMES: Final[Mapping[str, str]] = {code: name for name, code in DTYPES.items()}
DOUBLE: Final = "F64"  # read as float32, as diffusers and transformers load it
_READ: Final = (*DTYPE_NAMES, DOUBLE)
_SHIFT: Final = np.uint32(16)
_HALF: Final = np.uint32(0x7FFF)  # just under half of bfloat16's last bit


@dataclass(frozen=True)
class SingleTensor(StoredTensor):
    """A tensor of float64, as one of float32."""

    double: StoredTensor

    @classmethod
    def of(cls, double: StoredTensor) -> Self:
        return cls(double.path, double.name, "F32", double.shape, double)

    def read(self, first: int = 0, last: int | None = None) -> NDArray[Any]:
        return widen(self.double.read(first, last), DOUBLE)


def widen(array: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Read F32, F16 or BF16 as float32, exactly, and F64 rounded; too large becomes infinite."""
    if dtype == "BF16":
        return (array.astype(np.uint32) << _SHIFT).view(np.float32)
    with np.errstate(over="ignore"):
        return array.astype(np.float32, copy=False)


def narrow(array: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Round float32 to F32, F16 or BF16: to nearest, ties to even; too large becomes infinite."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(array).view(np.uint32)
        is_odd = (bits >> _SHIFT) & np.uint32(1)
        return ((bits + (_HALF + is_odd)) >> _SHIFT).astype(np.uint16)
    with np.errstate(over="ignore"):
        return array.astype(np.float16 if dtype == "F16" else np.float32, copy=False)


def is_finite(array: NDArray[Any], dtype: str) -> bool:
    """Say whether F32, F16 or BF16 numbers are all finite."""
    if dtype == "BF16":
        return bool(np.all((array & np.uint16(0x7F80)) != np.uint16(0x7F80)))
    return bool(np.isfinite(array).all())


def check_finite(component: str, raw: NDArray[Any], source: StoredTensor) -> None:
    """Raise ValueRangeError if numbers just read from `source` are not all finite."""
    if not is_finite(raw, source.dtype):
        raise ValueRangeError(
            f"[{component}] {source.path}: tensor {source.name!r} is not finite (NaN or infinity); "
            "the checkpoint is damaged or its training diverged"
        )


def cast(raw: NDArray[Any], source: StoredTensor, dtype: str) -> NDArray[Any]:
    """Convert numbers just read from `source` to a dtype (safetensors' name).

    Raises:
        ValueRangeError: a value is NaN or infinite, or becomes so in the new dtype.
    """
    check_finite("convert", raw, source)
    if source.dtype == dtype:
        return raw
    values = widen(raw, source.dtype)
    array = narrow(values, dtype)
    if not is_finite(array, dtype):
        raise ValueRangeError(
            f"[convert] {source.path}: tensor {source.name!r} reaches {np.abs(values).max():g}, too "
            "large for float16 (65504); convert for MLX, with --dtype bfloat16 or float32"
        )
    return array


def check_dtypes(component: str, tensors: Mapping[str, StoredTensor], read: Iterable[str] = _READ) -> None:
    """Raise UnsupportedError if a tensor's numbers are no floats of 16, 32 or 64 bits, or of another list."""
    for name, tensor in tensors.items():
        if tensor.dtype not in read:
            raise UnsupportedError(
                f"[{component}] {tensor.path}: {name!r} has dtype {tensor.dtype}, want {', '.join(read)}; "
                "save the model in float16, bfloat16 or float32"
            )
