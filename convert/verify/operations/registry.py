"""How a function becomes the meaning of a MIL operation.

The function's parameters are the operation's, by name. Their annotations say how an argument is read, so that the
functions themselves see tensors, numbers and strings. Floats of every width are computed in float32.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar, get_type_hints

import torch
from torch import Tensor

from moddit.errors import FormatError

Value = Tensor | str
Argument = tuple[Value, ...]  # several values where a parameter takes a tuple
Tensors = tuple[Tensor, ...]
Ints = tuple[int, ...]
_Function = TypeVar("_Function", bound=Callable[..., Tensor | Tensors])


@dataclass(frozen=True)
class Operation:
    """The meaning of one type of operation."""

    function: Callable[..., Tensor | Tensors]
    readers: Mapping[str, Callable[[Argument], Any]]  # of each parameter
    required: frozenset[str]
    dtypes: tuple[str, ...]  # see `operation`
    mixed: frozenset[str]  # floats that may have another dtype than the rest

    def evaluate(self, arguments: Mapping[str, Argument]) -> Tensors:
        """Compute the outputs; raise FormatError if an argument is not what its parameter takes."""
        read = {}
        for parameter, argument in arguments.items():
            try:
                read[parameter] = self.readers[parameter](argument)
            except FormatError as error:
                raise FormatError(f"argument {parameter}: {error}") from None
        result = self.function(**read)
        return result if isinstance(result, tuple) else (result,)


OPERATIONS: Final[dict[str, Operation]] = {}


def operation(
    kind: str, *, dtypes: tuple[str, ...] = (), mixed: tuple[str, ...] = ()
) -> Callable[[_Function], _Function]:
    """Register a function as the meaning of the operations of type `kind`.

    Args:
        kind: the type's name in MIL.
        dtypes: for each output, where its dtype comes from: a dtype, a parameter that has it, or a parameter that
            names it (int32 if the argument is absent). The last one stands for all that follow; without any, all
            outputs have the dtype of the first parameter.
        mixed: parameters whose floats may have another dtype than those of the other parameters.
    """

    def register(function: _Function) -> _Function:
        hints = get_type_hints(function)
        parameters = inspect.signature(function).parameters
        assert kind not in OPERATIONS
        OPERATIONS[kind] = Operation(
            function,
            {name: _READERS[hints[name]] for name in parameters},
            frozenset(name for name, parameter in parameters.items() if parameter.default is parameter.empty),
            dtypes or (next(iter(parameters)),),
            frozenset(mixed),
        )
        return function

    return register


def _read_value(argument: Argument) -> Value:
    if len(argument) != 1:
        raise FormatError(f"got {len(argument)} values, want one")
    return argument[0]


def _read_tensor(argument: Argument) -> Tensor:
    value = _read_value(argument)
    if not isinstance(value, Tensor):
        raise FormatError(f"got {value!r}, want a tensor")
    return value


def _read_tensors(argument: Argument) -> Tensors:
    return tuple(_read_tensor((value,)) for value in argument)


def _read_string(argument: Argument) -> str:
    value = _read_value(argument)
    if not isinstance(value, str):
        raise FormatError("got a tensor, want a string")
    return value


def _read_list(argument: Argument, dtype: torch.dtype) -> tuple[Any, ...]:
    value = _read_tensor(argument)
    if value.dtype != dtype or value.dim() > 1:
        raise FormatError(f"got {value.dtype} {list(value.shape)}, want a list of {dtype}")
    return tuple(value.reshape(-1).tolist())


def _read_scalar(argument: Argument, dtype: torch.dtype) -> Any:
    values = _read_list(argument, dtype)
    if len(values) != 1:
        raise FormatError(f"got {len(values)} numbers, want one")
    return values[0]


def _read_number(argument: Argument) -> float:
    value = _read_tensor(argument)
    return float(_read_scalar(argument, torch.float32 if value.is_floating_point() else torch.int32))


_read_int = partial(_read_scalar, dtype=torch.int32)
_read_ints = partial(_read_list, dtype=torch.int32)
_READERS: Final[Mapping[Any, Callable[[Argument], Any]]] = {
    Tensor: _read_tensor,
    Tensor | None: _read_tensor,
    Tensors: _read_tensors,
    str: _read_string,
    float: _read_number,
    int: _read_int,
    int | None: _read_int,
    bool: partial(_read_scalar, dtype=torch.bool),
    Ints: _read_ints,
    Ints | None: _read_ints,
}
