"""Operations on each value alone, with broadcasting."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from convert.verify.operations.registry import operation
from moddit.errors import FormatError, UnsupportedError


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


@operation("real_div")
def real_div(x: Tensor, y: Tensor) -> Tensor:
    if not x.is_floating_point():
        raise UnsupportedError("division of integers, whose rounding MIL does not describe; cast to fp32 first")
    return x / y


@operation("maximum")
def maximum(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x, y)


@operation("minimum")
def minimum(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(x, y)


@operation("pow")
def power(x: Tensor, y: Tensor) -> Tensor:
    return x**y


@operation("exp")
def exp(x: Tensor) -> Tensor:
    return x.exp()


@operation("sqrt")
def sqrt(x: Tensor) -> Tensor:
    return x.sqrt()


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


@operation("tanh")
def tanh(x: Tensor) -> Tensor:
    return x.tanh()


@operation("erf")
def erf(x: Tensor) -> Tensor:
    return x.erf()


@operation("gelu")
def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    if mode == "SIGMOID_APPROXIMATION":
        return x * (1.702 * x).sigmoid()
    if mode not in ("EXACT", "TANH_APPROXIMATION"):
        raise FormatError(f"mode, got {mode!r}, want EXACT, TANH_APPROXIMATION or SIGMOID_APPROXIMATION")
    return functional.gelu(x, approximate="tanh" if mode == "TANH_APPROXIMATION" else "none")


@operation("clip", mixed=("alpha", "beta"))
def clip(x: Tensor, alpha: float, beta: float) -> Tensor:
    return x.clamp(alpha, beta)


@operation("greater", dtypes=("bool",))
def greater(x: Tensor, y: Tensor) -> Tensor:
    return x > y


@operation("greater_equal", dtypes=("bool",))
def greater_equal(x: Tensor, y: Tensor) -> Tensor:
    return x >= y


@operation("less", dtypes=("bool",))
def less(x: Tensor, y: Tensor) -> Tensor:
    return x < y


@operation("less_equal", dtypes=("bool",))
def less_equal(x: Tensor, y: Tensor) -> Tensor:
    return x <= y


@operation("equal", dtypes=("bool",))
def equal(x: Tensor, y: Tensor) -> Tensor:
    return x == y


@operation("not_equal", dtypes=("bool",))
def not_equal(x: Tensor, y: Tensor) -> Tensor:
    return x != y


@operation("logical_and", dtypes=("bool",))
def logical_and(x: Tensor, y: Tensor) -> Tensor:
    return x.logical_and(y)


@operation("logical_not", dtypes=("bool",))
def logical_not(x: Tensor) -> Tensor:
    return x.logical_not()


@operation("select", dtypes=("a",))
def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(cond, a, b)
