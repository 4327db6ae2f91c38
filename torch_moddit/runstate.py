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

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from moddit.errors import FormatError
from torch_moddit.tensorfiles import write_tensors

TREE: Final = "state.json"
TENSORS: Final = "state.safetensors"

Tensors = dict[str, Tensor]


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write a tree of tensors, numbers and texts into a folder.

    Args:
        folder: that is there.
        state: dictionaries (of any keys that JSON has), lists, tuples, tensors, numbers, texts and None.

    Raises:
        TypeError: the tree holds something else.
        OSError: the files cannot be written.
    """
    tensors: Tensors = {}
    tree = _encode(state, tensors)
    write_tensors(folder / TENSORS, tensors, {})
    (folder / TREE).write_text(json.dumps(tree) + "\n", encoding="utf-8")


def read_state(folder: Path) -> dict[str, Any]:
    """Read what `write_state` has written; tensors are on the CPU.

    Raises:
        FormatError: a file is absent or damaged.
    """
    try:
        tree = json.loads((folder / TREE).read_text(encoding="utf-8"))
        state = _decode(tree, load_file(folder / TENSORS))
    except (OSError, ValueError, RecursionError, KeyError, TypeError, SafetensorError) as error:
        raise FormatError(f"[finetune] {folder}: not the state of a run ({error}); delete this checkpoint") from None
    if not isinstance(state, dict):
        raise FormatError(f"[finetune] {folder / TREE}: holds no dictionary; delete this checkpoint")
    return state


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
    "tensor": lambda name, tensors: tensors[name],
    "dict": lambda pairs, tensors: {_decode(key, tensors): _decode(item, tensors) for key, item in pairs},
    "list": lambda items, tensors: [_decode(item, tensors) for item in items],
    "tuple": lambda items, tensors: tuple(_decode(item, tensors) for item in items),
}


def restore(path: Path, parts: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Give each part its state back.

    Args:
        path: of the state, for messages.
        parts: by name: what has `load_state_dict`.
        state: by the same names.

    Raises:
        FormatError: a part is absent, or does not fit.
    """
    if state.keys() != parts.keys():
        raise FormatError(
            f"[finetune] {path}: holds {', '.join(state)}, want {', '.join(parts)}; delete this checkpoint"
        )
    for name, part in parts.items():
        try:
            part.load_state_dict(state[name])
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            raise FormatError(f"[finetune] {path}: {name} does not fit ({error}); delete this checkpoint") from None
