"""Names in LoRA files: which layer of the transformer a tensor belongs to, and which part of its adapter it is.

Tables are data. A layer is looked up by its exact name, or by its name with underscores for dots: that is how kohya and
its relatives write it, and it cannot be undone without knowing the layers there are. Layers may also have the names of
PixArt's own code, where queries, keys and values are one matrix.

Source of the names: peft/tuners/lora/layer.py (`lora_A`, `lora_B`), diffusers/utils/state_dict_utils.py (older ones),
sd-scripts/networks/lora.py and OneTrainer/modules/module/LoRAModule.py (`lora_unet_`, `lora_transformer_`),
LyCORIS/lycoris/modules (`hada_`, `lokr_`, `diff`); PixArt's own are those of moddit.checkpoint.original.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from moddit.checkpoint.original import BLOCK_MODULES, MODULES
from moddit.tensors import TensorInfo


class Piece(Enum):
    """What a tensor of a LoRA file is to its layer, whose weight becomes W + strength * B @ A."""

    DOWN = "A"
    UP = "B"
    BIAS = "bias of B"
    ALPHA = "alpha"


@dataclass(frozen=True)
class Layer:
    """A layer that a LoRA names."""

    name: str  # as the trainer knew it: dots, no prefix
    targets: tuple[str, ...]  # canonical modules; several where their matrices are stacked in one, first rows first


# How the name of a tensor ends, after the layer's.
_PIECES: Final[Mapping[str, Piece]] = {
    r"\.lora_A(\.[^.]+)?\.weight": Piece.DOWN,  # peft, with the adapter's name in a training state
    r"\.lora_B(\.[^.]+)?\.weight": Piece.UP,
    r"\.lora_B(\.[^.]+)?\.bias": Piece.BIAS,
    r"\.lora_down\.weight": Piece.DOWN,  # kohya
    r"\.lora_up\.weight": Piece.UP,
    r"(\.lora|\.lora_linear_layer|_lora)\.down\.weight": Piece.DOWN,  # diffusers before peft
    r"(\.lora|\.lora_linear_layer|_lora)\.up\.weight": Piece.UP,
    r"\.alpha": Piece.ALPHA,
}
_ENDINGS: Final = tuple((re.compile(f"(.+?){ending}"), piece) for ending, piece in _PIECES.items())
# Adapters of other kinds, by how their tensors end.
REFUSED: Final[Mapping[str, re.Pattern[str]]] = {
    "DoRA": re.compile(r".+\.(lora_magnitude_vector(\..+)?|dora_scale)"),
    "LoHa": re.compile(r".+\.hada_\w+"),
    "LoKr": re.compile(r".+\.lokr_\w+"),
    "OFT": re.compile(r".+\.b?oft_\w+(\..+)?"),
    "(IA)3": re.compile(r".+\.ia3_\w+(\..+)?"),
    "LoCon's Tucker decomposition": re.compile(r".+\.lora_mid\.weight"),
    "LoRA of embeddings": re.compile(r".+\.lora_embedding_[AB](\..+)?"),
    "full differences": re.compile(r".+\.diff(_b|_m)?"),
}
TEXT_ENCODER: Final = re.compile(
    r"(base_model\.model\.)?((text_encoder|te)(_?\d)?|text_model|encoder\.block)\..+|lora_(te|text_encoder)_?\d?_.+"
)
_DOTTED_PREFIXES: Final = ("base_model.model.", "model.diffusion_model.", "diffusion_model.", "transformer.", "unet.")
_FLAT_PREFIXES: Final = ("lora_transformer_", "lora_unet_", "lycoris_")
# Of diffusers' old attention processors: their adapters are named after the attention that they belong to.
_RENAMED: Final[Mapping[str, str]] = {r"\.processor\.": ".", r"\.to_out$": ".to_out.0"}
_BLOCK: Final = re.compile(r"transformer_blocks\.(\d+)\..+")


def split_name(name: str) -> tuple[str, Piece] | None:
    """Split a tensor's name into its layer's, prefix and all, and its piece; None if it is no part of a LoRA."""
    for pattern, piece in _ENDINGS:
        match = pattern.fullmatch(name)
        if match:
            return match[1], piece
    return None


class Layers:
    """The layers of a transformer, by every name that a LoRA may have for them.

    Args:
        wanted: the canonical tensors.
    """

    def __init__(self, wanted: Mapping[str, TensorInfo]) -> None:
        modules = [name.removesuffix(".weight") for name in wanted if name.endswith(".weight")]
        self._targets = {module: (module,) for module in modules} | _pixart_names(modules)
        self._flat = {name.replace(".", "_"): name for name in self._targets}
        assert len(self._flat) == len(self._targets), "two layers have one name once flattened"

    def find(self, name: str) -> Layer | None:
        """Find a layer by what `split_name` returned; None if there is no such layer."""
        for old, new in _RENAMED.items():
            name = re.sub(old, new, name)
        known = _strip(name, _DOTTED_PREFIXES, self._targets)
        if known is None:
            flat = _strip(name, _FLAT_PREFIXES, self._flat)
            known = None if flat is None or flat == name else self._flat[flat]
        if known is None:
            return None
        return Layer(known, self._targets[known])


def _pixart_names(modules: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Map the names in PixArt's own code to those of the layers that are there."""
    there = set(modules)
    blocks = {match[1] for match in map(_BLOCK.fullmatch, there) if match}
    names = {
        f"blocks.{block}.{old}": tuple(f"transformer_blocks.{block}.{name}" for name in new)
        for block in blocks
        for old, new in BLOCK_MODULES.items()
    }
    names |= {old: (new,) for old, new in MODULES.items()}
    return {old: new for old, new in names.items() if there.issuperset(new)}


def _strip(name: str, prefixes: Iterable[str], known: Iterable[str]) -> str | None:
    """Take prefixes off until the name is known."""
    while name not in known:
        prefix = next(filter(name.startswith, prefixes), None)
        if prefix is None:
            return None
        name = name.removeprefix(prefix)
    return name
