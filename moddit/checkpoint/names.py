"""Names of tensors in checkpoints, and their canonical names: those that diffusers and transformers write today.

Tables are data, complete for what they cover: a name that no table mentions stays as it is, and the comparison with the
canonical tensors of the specification (moddit.tensors) decides whether it is right.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from moddit.checkpoint.precision import DTYPE_NAMES
from moddit.checkpoint.stored import StoredTensor
from moddit.contract import TEXT_ENCODER
from moddit.errors import FormatError

# A second name of one tensor. Where both are there and differ, the encoder reads the second, as in transformers.
ALIASES: Final[Mapping[str, Mapping[str, str]]] = {
    TEXT_ENCODER: {"encoder.embed_tokens.weight": "shared.weight"},
}

# Older names, by the part of the name that differs. Attention of AutoencoderKL before diffusers 0.17.
_OLD_ATTENTION: Final[Mapping[str, str]] = {
    f"{half}.mid_block.attentions.0.{old}.{kind}": f"{half}.mid_block.attentions.0.{new}.{kind}"
    for half in ("encoder", "decoder")
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))
    for kind in ("weight", "bias")
}
RENAMED: Final[Mapping[str, Mapping[str, str]]] = {"vae": _OLD_ATTENTION}
# Where a larger model has this one, whose weights the library takes from it too.
PREFIXES: Final[Mapping[str, str]] = {TEXT_ENCODER: "transformer."}
_COMPARED_ROWS: Final = 1024


def canonical_tensors(
    component: str, tensors: Mapping[str, StoredTensor], where: str
) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Give the tensors of a component their canonical names.

    Returns:
        the tensors, and those that a second name made redundant with the reason.

    Raises:
        FormatError: two tensors of the file would have one canonical name.
    """
    named: dict[str, StoredTensor] = {}
    renamed = RENAMED.get(component, {})
    for name, tensor in tensors.items():
        canonical = name.removeprefix(PREFIXES.get(component, ""))
        canonical = renamed.get(canonical, canonical)
        if canonical in named:
            raise FormatError(
                f"[{component}] {where}: {named[canonical].name!r} and {name!r} are both {canonical!r}; remove the "
                "wrong one"
            )
        named[canonical] = tensor
    dropped = {}
    for alias, name in ALIASES.get(component, {}).items():
        if alias not in named:
            continue
        second = named.pop(alias)
        if name not in named:
            named[name] = second
        elif _is_equal(second, named[name]):
            dropped[alias] = f"equal to {name}"
        else:
            named[name] = second
            dropped[name] = f"differs from {alias}, which the encoder reads"
    return named, dropped


def _is_equal(one: StoredTensor, other: StoredTensor) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape) or one.dtype not in DTYPE_NAMES:
        return False
    rows = one.shape[0] if one.shape else 1
    for first in range(0, rows, _COMPARED_ROWS):
        last = min(rows, first + _COMPARED_ROWS)
        if one.read(first, last).tobytes() != other.read(first, last).tobytes():
            return False
    return True
