"""Operations on each value alone, with broadcasting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from convert.verify.operations.registry import operation
from moddit.errors import FormatError

UNARY: Final[Mapping[str, Callable[[Tensor], Tensor]]] = {
    "identity": lambda x: x,
    "square": torch.square,
    "sin": torch.sin,
    "cos": torch.cos,
    "sigmoid": torch.sigmoid,
    "silu": lambda x: x * x.sigmoid(),
    "relu": torch.relu,
}
BINARY: Final[Mapping[str, tuple[Callable[[Tensor, Tensor], Tensor], tuple[str, ...]]]] = {  # with the dtype given
    "add": (torch.add, ()),
    "sub": (torch.sub, ()),
    "mul": (torch.mul, ()),
    "greater": (torch.gt, ("bool",)),
    "less": (torch.lt, ("bool",)),
    "equal": (torch.eq, ("bool",)),
}


def _register_unary(kind: str, compute: Callable[[Tensor], Tensor]) -> None:
    @operation(kind)
    def apply(x: Tensor) -> Tensor:
        return compute(x)


def _register_binary(kind: str, compute: Callable[[Tensor, Tensor], Tensor], dtypes: tuple[str, ...]) -> None:
    @operation(kind, dtypes=dtypes)
    def apply(x: Tensor, y: Tensor) -> Tensor:
        return compute(x, y)


for _kind, _unary in UNARY.items():
    _register_unary(_kind, _unary)
for _kind, _binary in BINARY.items():
    _register_binary(_kind, *_binary)


@operation("cast", dtypes=("dtype",), mixed=("x",))
def cast(x: Tensor, dtype: str) -> Tensor:
    """Change the dtype, floats towards zero. Rounding to fp16 is the interpreter's part."""
    if dtype == "bool":
        return x != 0
    return x.float() if dtype in ("fp16", "fp32") else x.int()


@operation("rsqrt", mixed=("epsilon",))
def rsqrt(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    return (x + epsilon).rsqrt()


@operation("gelu")
def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    if mode == "SIGMOID_APPROXIMATION":
        return x * (1.702 * x).sigmoid()
    if mode not in ("EXACT", "TANH_APPROXIMATION"):
        raise FormatError(f"mode, got {mode!r}, want EXACT, TANH_APPROXIMATION or SIGMOID_APPROXIMATION")
    return functional.gelu(x, approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")
