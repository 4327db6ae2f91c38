"""What a network computes, operation by operation: FLOPs, and the numbers that have to be moved for them.

Two FLOPs per multiply-accumulate; norms, activations, softmax, gather and scatter have none (below 1 % together), but
they move numbers, which takes time of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

MATMUL: Final = "matmul"
CONVOLUTION: Final = "convolution"
ATTENTION: Final = "attention"  # both of its matrix products, and the softmax between them
NORM: Final = "norm"
ACTIVATION: Final = "activation"  # that is not linear
ELEMENTWISE: Final = "elementwise"  # sums, products, and rows that are moved
KINDS: Final = (MATMUL, CONVOLUTION, ATTENTION, NORM, ACTIVATION, ELEMENTWISE)


@dataclass(frozen=True)
class Operation:
    """One operation for one row of a batch."""

    kind: str  # one of KINDS
    flops: int
    values: int  # numbers that are read and written, weights apart
    weights: int = 0  # numbers that are read once for all rows of a batch
    scores: int = 0  # of attention, which only a fused kernel never writes


def matmul(rows: int, inputs: int, outputs: int) -> Operation:
    """Multiply rows by a matrix."""
    return Operation(MATMUL, 2 * rows * inputs * outputs, rows * (inputs + outputs), inputs * outputs)


def attend(queries: int, keys: int, width: int, heads: int) -> Operation:
    """Attend from queries to keys, all heads of `width` together."""
    return Operation(ATTENTION, 4 * queries * keys * width, 2 * (queries + keys) * width, scores=heads * queries * keys)


def convolve(pixels: int, inputs: int, outputs: int, side: int = 3) -> Operation:
    """Convolve an image of so many pixels with a square kernel."""
    weights = side * side * inputs * outputs
    return Operation(CONVOLUTION, 2 * pixels * weights, pixels * (inputs + outputs), weights)


def normalise(values: int) -> Operation:
    """Normalise: the numbers are read for the statistics, read again and written."""
    return Operation(NORM, 0, 3 * values)


def activate(values: int) -> Operation:
    """Apply a function to every number."""
    return Operation(ACTIVATION, 0, 2 * values)


def combine(values: int, operands: int = 2) -> Operation:
    """Combine arrays of so many numbers into one."""
    return Operation(ELEMENTWISE, 0, (operands + 1) * values)


def count_flops(operations: Iterable[Operation]) -> int:
    """Add up the FLOPs of operations, for a batch of one."""
    return sum(operation.flops for operation in operations)
