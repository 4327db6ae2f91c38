"""Names of tensors in checkpoints, and their canonical names: those that diffusers and transformers write today.

Tables are data, complete for what they cover: a name that no table mentions stays as it is, and the comparison with the
canonical tensors of the specification (moddit.tensors) decides whether it is right.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from moddit.errors import FormatError

ROUTER: Final = re.compile(r"transformer_blocks\.(\d+)\.router\.weight")
KEEP_RATIO: Final = re.compile(r"transformer_blocks\.(\d+)\.keep_ratio")

# A second name of one tensor: dropped if its bytes are equal, and the only name in some files.
ALIASES: Final[Mapping[str, Mapping[str, str]]] = {
    "transformer": {},
    "text_encoder": {"encoder.embed_tokens.weight": "shared.weight"},
    "vae": {},
}

# Older names, by the part of the name that differs. Attention of AutoencoderKL before diffusers 0.17.
_OLD_ATTENTION: Final[Mapping[str, str]] = {
    f"{half}.mid_block.attentions.0.{old}.{kind}": f"{half}.mid_block.attentions.0.{new}.{kind}"
    for half in ("encoder", "decoder")
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))
    for kind in ("weight", "bias")
}
RENAMED: Final[Mapping[str, Mapping[str, str]]] = {"transformer": {}, "text_encoder": {}, "vae": _OLD_ATTENTION}


def canonical_names(component: str, names: Iterable[str], where: str) -> dict[str, str]:
    """Map the names in a file to canonical names; an alias keeps its own name if the tensor it repeats is there too.

    Raises:
        FormatError: two tensors of the file would have one canonical name.
    """
    names = list(names)
    renamed = {name: RENAMED[component].get(name, name) for name in names}
    for alias, name in ALIASES[component].items():
        if alias in renamed and name not in renamed:
            renamed[alias] = name
    taken: dict[str, str] = {}
    for name, canonical in renamed.items():
        if canonical in taken:
            raise FormatError(
                f"[{component}] {where}: {taken[canonical]!r} and {name!r} are both {canonical!r}; remove the wrong one"
            )
        taken[canonical] = name
    return renamed
