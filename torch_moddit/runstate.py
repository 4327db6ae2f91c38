"""The state of a run on disk: tensors in `state.safetensors`, all else in `state.json`, so that reading runs nothing.

Optimizers and averages give trees of dictionaries, lists and tuples. In the JSON each is an object of one entry that
names its kind; a tensor's is its name in the other file. Numbers come back exactly: tensors as bytes, floats by JSON's
shortest digits that give the same number.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from safetensors.torch import load_file
from torch import Tensor

from moddit.checkpoint.safetensors import read_tensors
from moddit.errors import FormatError, InputError
from moddit.record import Origin, read_json
from torch_moddit.tensorfiles import write_tensors

TREE: Final = "state.json"
TENSORS: Final = "state.safetensors"
# Of Adam, of Muon, and of bitsandbytes' Adam, which has tables of other shapes beside them.
_MOMENTS: Final = {"exp_avg", "exp_avg_sq", "momentum_buffer", "state1", "state2"}
_ADVICE: Final = "delete this checkpoint"

Tensors = dict[str, Tensor]


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write a tree into a folder: dictionaries (of any keys that JSON has), lists, tuples, tensors, numbers, texts and
    None.

    Raises TypeError if it holds something else, OSError if the files cannot be written.
    """
    tensors: Tensors = {}
    tree = _encode(state, tensors)
    write_tensors(folder / TENSORS, tensors, {})
    (folder / TREE).write_text(json.dumps(tree) + "\n", encoding="utf-8")


def read_state(folder: Path) -> dict[str, Any]:
    """Read what `write_state` has written, onto the CPU; raises MissingError or FormatError if a file is absent or
    damaged.
    """
    path = folder / TREE
    origin = Origin("finetune", str(path), _ADVICE)
    tree = read_json(path, origin, absent=_ADVICE, strict=False)  # an average may be infinite
    try:
        state = _decode(tree, _read_tensors(folder / TENSORS))
    except (ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{origin}: not the state of a run ({type(error).__name__}: {error}); {_ADVICE}") from None
    if not isinstance(state, dict):
        raise FormatError(f"{origin}: holds no dictionary; {_ADVICE}")
    return state


def _read_tensors(path: Path) -> Tensors:
    try:
        read_tensors(path)  # the library reads what is no regular file, too
        return load_file(path)
    except (InputError, OSError, KeyError) as error:  # damaged, unreadable, or a type that PyTorch has not
        raise FormatError(f"[finetune] {path}: not the state of a run ({error}); {_ADVICE}") from None


def _encode(value: Any, tensors: Tensors) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        return {"dict": [[_encode(key, tensors), _encode(item, tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return {"tuple" if isinstance(value, tuple) else "list": [_encode(item, tensors) for item in value]}
    raise TypeError(f"[finetune] the state of a run holds a {type(value).__name__}, which is not stored")


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    return _KINDS[kind](content, tensors)


_KINDS: Final[Mapping[str, Callable[[Any, Mapping[str, Tensor]], Any]]] = {
    "tensor": lambda name, tensors: tensors[name].clone(),  # the file is mapped, and may be written again
    "dict": lambda pairs, tensors: {_decode(key, tensors): _decode(item, tensors) for key, item in pairs},
    "list": lambda items, tensors: [_decode(item, tensors) for item in items],
    "tuple": lambda items, tensors: tuple(_decode(item, tensors) for item in items),
}


def restore(folder: Path, parts: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Give each part, which has `load_state_dict`, its state back; raises FormatError if one is absent or another's."""
    where = f"[finetune] {folder / TREE}"
    if state.keys() != parts.keys():
        raise FormatError(f"{where}: holds {', '.join(map(str, state))}, want {', '.join(parts)}; {_ADVICE}")
    for name, part in parts.items():
        try:
            _compare(part.state_dict(), state[name], name)
            part.load_state_dict(state[name])
            _compare_moments(part)
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError, AssertionError) as error:
            raise FormatError(f"{where}: {name} does not fit ({error}); {_ADVICE}") from None


def _compare(present: Any, found: Any, place: str) -> None:
    """Raise ValueError unless what a part has now is there, of the same kind and shape; there may be more."""
    if isinstance(present, Tensor):
        if not isinstance(found, Tensor) or found.shape != present.shape:
            raise ValueError(f"{place} is no tensor of shape {tuple(present.shape)}")
    elif isinstance(present, Mapping):
        for key, value in present.items():
            _compare(value, found[key], f"{place}.{key}")
    elif isinstance(present, (list, tuple)):
        for index, (value, other) in enumerate(zip(present, found, strict=True)):
            _compare(value, other, f"{place}[{index}]")


def _compare_moments(part: Any) -> None:
    """Raise ValueError if an optimizer keeps tensors of another shape than the parameter's."""
    for parameter, moments in getattr(part, "state", {}).items():
        for name in _MOMENTS & moments.keys():
            value = moments[name]
            if value.shape != parameter.shape:
                raise ValueError(f"{name} has shape {tuple(value.shape)}, want {tuple(parameter.shape)}")
