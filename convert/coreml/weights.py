"""The tensors of one component as a package stores them, and their way into a graph under construction.

Every large tensor is packed once, however many functions use it: its constants carry a `weight_id`, by which
coremltools stores one copy. Constants are named after the canonical tensor, with underscores for dots.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import types
from numpy.typing import NDArray

from convert.coreml.compress import Blockwise, Palette, Plain, Scheme, Stored, compress
from moddit.checkpoint.parts import Part
from moddit.checkpoint.precision import cast, widen
from moddit.contract import constant_name
from moddit.tensors import UNCOMPRESSED, Role

Var = Any  # a value of the graph; coremltools ships no types
Array = NDArray[Any]

_FULL_PRECISION: Final = frozenset({Role.ROUTER})  # small, and computed in float32
_INTEGERS: Final = {
    (Blockwise, 4): types.np_uint4_dtype,
    (Blockwise, 8): np.uint8,
    (Palette, 4): types.np_uint4_dtype,
    (Palette, 6): types.np_uint6_dtype,
}


class Weights:
    """What the graphs of one component take from the checkpoint, read when it is first asked for.

    `advance` is told how many more bytes of the source are read.
    """

    def __init__(self, component: str, part: Part, scheme: Scheme, advance: Callable[[int], object]) -> None:
        self.part = part
        self.scheme = Scheme.NONE if component in UNCOMPRESSED else scheme
        self.advance = advance
        self._stored: dict[str, Stored] = {}

    @property
    def compressed(self) -> tuple[str, ...]:
        """Names of the tensors that are compressed, of those that were used."""
        return tuple(name for name, stored in self._stored.items() if not isinstance(stored, Plain))

    def __contains__(self, name: str) -> bool:
        return name in self.part.wanted

    def values(self, name: str) -> NDArray[np.float32]:
        """Compute what the device computes with: rounded to what the package holds, in PyTorch's layout.

        Raises:
            ValueRangeError: a value is not finite, or too large for float16.
        """
        return self.stored(name).values()

    def stored(self, name: str) -> Stored:
        """Read a tensor and pack it, once."""
        if name not in self._stored:
            info, source = self.part.wanted[name], self.part.tensors[name]
            raw = source.read()
            if info.role.is_quantisable and self.scheme.fits(*info.shape):
                cast(raw, source, "F16")  # what it decompresses to has to fit as well
                matrix = widen(raw, source.dtype)
                self._stored[name] = compress(np.ascontiguousarray(matrix), self.scheme)
            else:
                self._stored[name] = Plain(cast(raw, source, "F32" if info.role in _FULL_PRECISION else "F16"))
            self.advance(raw.nbytes)
        return self._stored[name]

    def emit(self, name: str, dtype: str, change: Callable[[Array], Array] | None = None, suffix: str = "") -> Var:
        """Add a tensor to the graph under construction.

        Args:
            name: canonical.
            dtype: "fp16" or "fp32", to compute in; a tensor stored in float16 is cast when the package is compiled.
            change: of its layout, for tensors that are never compressed.
            suffix: of the constant's name, if one tensor has several layouts.
        """
        stored, label = self.stored(name), constant_name(name) + suffix
        if isinstance(stored, Plain):
            array = stored.array if change is None else np.ascontiguousarray(change(stored.array))
            return _emit_plain(array, dtype, label)
        assert change is None
        if isinstance(stored, Blockwise):
            return _emit_blockwise(stored, dtype, label)
        return _emit_palette(stored, dtype, label)


def shared_const(array: Array, name: str) -> Var:
    """Add a constant of which all functions of a package share one copy."""
    constant = mb.const(val=array, name=name)
    constant.op.weight_id = name
    return constant


def _emit_plain(array: Array, dtype: str, name: str) -> Var:
    if array.dtype == np.float16 and dtype == "fp32":
        return mb.constexpr_cast(source_val=shared_const(array, name + "_fp16"), output_dtype="fp32", name=name)
    return shared_const(array.astype(np.float16 if dtype == "fp16" else np.float32, copy=False), name)


def _emit_blockwise(stored: Blockwise, dtype: str, name: str) -> Var:
    integers = _INTEGERS[Blockwise, stored.bits]
    scales = stored.scales if dtype == "fp16" else stored.scales.astype(np.float32)
    return mb.constexpr_blockwise_shift_scale(
        data=shared_const(stored.numbers.astype(integers), name + "_numbers"),
        scale=shared_const(scales, name + "_scales"),
        offset=shared_const(stored.offsets.astype(integers), name + "_offsets"),
        name=name,
    )


def _emit_palette(stored: Palette, dtype: str, name: str) -> Var:
    tables = stored.tables if dtype == "fp16" else stored.tables.astype(np.float32)
    return mb.constexpr_lut_to_dense(
        indices=shared_const(stored.indices.astype(_INTEGERS[Palette, stored.bits]), name + "_indices"),
        lut=shared_const(tables[:, None, :, None], name + "_tables"),
        name=name,
    )
