"""The tensors of one component as a package stores them, and their way into a graph under construction.

Every large tensor is packed once, however many functions use it: its constants carry a `weight_id`, by which
coremltools stores one copy. Constants are named after the canonical tensor, with underscores for dots.

No weight stays in memory. A matrix that is compressed is packed as its rows are read, and waits in a scratch file; a
tensor that is not is read when the package is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import IO, Any, Final

import numpy as np
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types
from numpy.typing import NDArray

from convert.coreml.compress import GROUP, Blockwise, Compressed, Palette, Plain, Scheme, compress, join
from convert.coreml.scratch import Array, Deferred, Kept
from moddit.checkpoint.parts import Part
from moddit.checkpoint.precision import cast, widen
from moddit.contract import constant_name
from moddit.tensors import UNCOMPRESSED, Role, TensorInfo

Var = Any  # a value of the graph; coremltools ships no types

_FULL_PRECISION: Final = frozenset({Role.ROUTER})  # small, and computed in float32
_DEFERRED: Final = 1024  # values, from which on an array is made when it is written
_PIECE: Final = 1 << 20  # values that are compressed at a time: they stay in the processor's cache
_FLOAT16: Final = 65520  # what float16 rounds to infinity
_INTEGERS: Final = {
    (Blockwise, 4): types.np_uint4_dtype,
    (Blockwise, 8): np.dtype(np.uint8),
    (Palette, 4): types.np_uint4_dtype,
    (Palette, 6): types.np_uint6_dtype,
}


@dataclass(frozen=True)
class Packed:
    """A compressed tensor in the scratch file."""

    kind: type[Blockwise] | type[Palette]
    arrays: Mapping[str, Kept]  # by the name of the field
    bits: int

    def read(self) -> Compressed:
        arrays: dict[str, Any] = {name: kept.read() for name, kept in self.arrays.items()}
        return self.kind(**arrays, bits=self.bits)


class Weights:
    """What the graphs of one component take from the checkpoint.

    `scratch` takes what is compressed; `advance` is told how many more bytes of the source are read.
    """

    def __init__(
        self, component: str, part: Part, scheme: Scheme, scratch: IO[bytes], advance: Callable[[int], object]
    ) -> None:
        self.part = part
        self.scheme = Scheme.NONE if component in UNCOMPRESSED else scheme
        self.scratch = scratch
        self.advance = advance
        self._packed: dict[str, Packed] = {}
        self._counted: set[str] = set()  # tensors whose bytes `advance` was told

    @property
    def compressed(self) -> tuple[str, ...]:
        """Names of the tensors that are compressed, of those that were used."""
        return tuple(self._packed)

    def __contains__(self, name: str) -> bool:
        return name in self.part.wanted

    def values(self, name: str) -> NDArray[np.float32]:
        """Compute what the device computes with: rounded to what the package holds, in PyTorch's layout.

        Raises:
            ValueRangeError: a value is not finite, or too large for float16.
        """
        if self._is_compressed(self.part.wanted[name]):
            return self._pack(name).read().values()
        return Plain(self._plain(name)).values()

    def emit(self, name: str, dtype: str, change: Callable[[Array], Array] | None = None, suffix: str = "") -> Var:
        """Add a tensor to the graph under construction.

        Args:
            name: canonical.
            dtype: "fp16" or "fp32", to compute in; a tensor stored in float16 is cast when the package is compiled.
            change: of its layout, for tensors that are never compressed.
            suffix: of the constant's name, if one tensor has several layouts.
        """
        info, label = self.part.wanted[name], constant_name(name) + suffix
        if not self._is_compressed(info):
            return _emit_plain(self._changed(name, change), dtype, label)
        assert change is None
        packed = self._pack(name)
        return (_emit_blockwise if packed.kind is Blockwise else _emit_palette)(packed, dtype, label)

    def _is_compressed(self, info: TensorInfo) -> bool:
        return info.role.is_quantisable and self.scheme.fits(*info.shape)

    def _pack(self, name: str) -> Packed:
        """Read a tensor and compress it, once."""
        if name not in self._packed:
            whole = join([compress(rows, self.scheme) for rows in self._read_rows(name)])
            kept = {key: Kept.of(array, self.scratch) for key, array in whole.arrays().items()}
            self._packed[name] = Packed(type(whole), kept, whole.bits)
        return self._packed[name]

    def _read_rows(self, name: str) -> Iterator[NDArray[np.float32]]:
        source = self.part.tensors[name]
        rows, columns = source.shape
        step = max(1, _PIECE // (GROUP * columns)) * GROUP
        for first in range(0, rows, step):
            raw = source.read(first, min(first + step, rows))
            values = np.ascontiguousarray(widen(raw, source.dtype))
            if not (values.min() > -_FLOAT16 and values.max() < _FLOAT16):
                cast(raw, source, "F16")  # raises: what it decompresses to has to fit as well
            self.advance(raw.nbytes)
            yield values

    def _plain(self, name: str) -> Array:
        info, source = self.part.wanted[name], self.part.tensors[name]
        raw = source.read()
        if name not in self._counted:
            self._counted.add(name)
            self.advance(raw.nbytes)
        return cast(raw, source, self._plain_dtype(info))

    def _plain_dtype(self, info: TensorInfo) -> str:
        return "F32" if info.role in _FULL_PRECISION else "F16"

    def _changed(self, name: str, change: Callable[[Array], Array] | None) -> Array:
        """Give a tensor in the layout of a constant, whose numbers are read when they are written."""
        info = self.part.wanted[name]

        def make() -> Array:
            array = self._plain(name)
            return array if change is None else np.ascontiguousarray(change(array))

        dtype = np.dtype(np.float32 if self._plain_dtype(info) == "F32" else np.float16)
        outline = np.broadcast_to(np.zeros((), dtype), info.shape)
        return _defer((outline if change is None else change(outline)).shape, dtype, make)


def shared_const(array: Array, name: str) -> Var:
    """Add a constant of which all functions of a package share one copy."""
    constant = mb.const(val=array, name=name)
    constant.op.weight_id = name
    return constant


def _defer(shape: tuple[int, ...], dtype: np.dtype[Any], make: Callable[[], Array]) -> Array:
    return make() if np.prod(shape) < _DEFERRED else Deferred.of(shape, dtype, make)


def _later(kept: Kept, change: Callable[[Array], Array]) -> Array:
    """Give a change, which keeps the number of values, of an array in the scratch file."""
    outline = change(np.broadcast_to(np.zeros((), kept.dtype), kept.shape))
    return _defer(outline.shape, outline.dtype, lambda: change(kept.read()))


def _emit_plain(array: Array, dtype: str, name: str) -> Var:
    if array.dtype == np.float16 and dtype == "fp32":
        return mb.constexpr_cast(source_val=shared_const(array, name + "_fp16"), output_dtype="fp32", name=name)
    assert array.dtype == (np.float16 if dtype == "fp16" else np.float32)
    return shared_const(array, name)


def _emit_blockwise(packed: Packed, dtype: str, name: str) -> Var:
    numbers, scales, offsets = (packed.arrays[part] for part in ("numbers", "scales", "offsets"))
    integers = partial(_as_integers, dtype=_INTEGERS[Blockwise, packed.bits])
    return mb.constexpr_blockwise_shift_scale(
        data=shared_const(_later(numbers, integers), name + "_numbers"),
        scale=shared_const(_later(scales, partial(_as_floats, dtype=dtype)), name + "_scales"),
        offset=shared_const(_later(offsets, integers), name + "_offsets"),
        name=name,
    )


def _emit_palette(packed: Packed, dtype: str, name: str) -> Var:
    integers = partial(_as_integers, dtype=_INTEGERS[Palette, packed.bits])
    return mb.constexpr_lut_to_dense(
        indices=shared_const(_later(packed.arrays["indices"], integers), name + "_indices"),
        lut=shared_const(
            _later(packed.arrays["tables"], lambda tables: _as_floats(tables, dtype)[:, None, :, None]),
            name + "_tables",
        ),
        name=name,
    )


def _as_integers(array: Array, dtype: np.dtype[Any]) -> Array:
    return array.view(dtype)


def _as_floats(array: Array, dtype: str) -> Array:
    return array.astype(np.float16 if dtype == "fp16" else np.float32, copy=False)
