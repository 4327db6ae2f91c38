"""Operations on each value alone, with broadcasting."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from convert.verify.operations.registry import operation
from moddit.errors import FormatError


@operation("identity")
def identity(x: Tensor) -> Tensor:
    return x


@operation("cast", dtypes=("dtype",), mixed=("x",))
def cast(x: Tensor, dtype: str) -> Tensor:
    """Change the dtype, floats towards zero. Rounding to fp16 is the interpreter's part."""
    if dtype == "bool":
        return x != 0
    return x.float() if dtype in ("fp16", "fp32") else x.int()


@operation("add")
def add(x: Tensor, y: Tensor) -> Tensor:
    return x + y


@operation("sub")
def sub(x: Tensor, y: Tensor) -> Tensor:
    return x - y


@operation("mul")
def mul(x: Tensor, y: Tensor) -> Tensor:
    return x * y


@operation("rsqrt", mixed=("epsilon",))
def rsqrt(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    return (x + epsilon).rsqrt()


@operation("square")
def square(x: Tensor) -> Tensor:
    return x * x


@operation("sin")
def sin(x: Tensor) -> Tensor:
    return x.sin()


@operation("cos")
def cos(x: Tensor) -> Tensor:
    return x.cos()


@operation("sigmoid")
def sigmoid(x: Tensor) -> Tensor:
    return x.sigmoid()


@operation("silu")
def silu(x: Tensor) -> Tensor:
    return x * x.sigmoid()


@operation("relu")
def relu(x: Tensor) -> Tensor:
    return x.relu()


@operation("gelu")
def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    if mode == "SIGMOID_APPROXIMATION":
        return x * (1.702 * x).sigmoid()
    if mode not in ("EXACT", "TANH_APPROXIMATION"):
        raise FormatError(f"mode, got {mode!r}, want EXACT, TANH_APPROXIMATION or SIGMOID_APPROXIMATION")
    return functional.gelu(x, approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


@operation("greater", dtypes=("bool",))
def greater(x: Tensor, y: Tensor) -> Tensor:
    return x > y


@operation("less", dtypes=("bool",))
def less(x: Tensor, y: Tensor) -> Tensor:
    return x < y


@operation("equal", dtypes=("bool",))
def equal(x: Tensor, y: Tensor) -> Tensor:
    return x == y
