"""The meaning of each type of MIL operation, by its name, in torch."""

from convert.verify.operations import constexpr, elementwise, layers, routing, tensors
from convert.verify.operations.registry import OPERATIONS, Argument, Operation, Value

__all__ = ["OPERATIONS", "Argument", "Operation", "Value", "constexpr", "elementwise", "layers", "routing", "tensors"]
