"""How strongly a LoRA acts on a layer: alpha / rank, or alpha / sqrt(rank) where it is rank-stabilised.

Alpha is in tensors, or in peft's configuration (in the file's metadata or beside it), or in kohya's metadata; a file
that says nothing means alpha = rank.

Source: peft/tuners/lora/model.py `_create_and_replace`, peft/utils/other.py `get_pattern_key`,
peft/tuners/lora/layer.py `update_layer`; diffusers/loaders/lora_base.py `_fetch_state_dict`,
diffusers/utils/peft_utils.py `get_peft_kwargs`; sd-scripts/networks/lora.py.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np

from moddit.checkpoint.precision import DTYPE_NAMES, widen
from moddit.checkpoint.safetensors import LENGTH_BYTES, FileTensor
from moddit.checkpoint.weights import read_json
from moddit.errors import FormatError, ShapeError, UnsupportedError, ValueRangeError

Patterns = tuple[tuple[re.Pattern[str], float], ...]  # of layers' names; the first that matches counts
METADATA: Final = "lora_adapter_metadata"  # diffusers' key of peft's configuration
_COMPONENTS: Final = ("transformer.", "unet.")  # prefixes of its fields where it was saved with a pipeline
_DEFAULT: Final = 8  # peft's r and lora_alpha
_WORDS: Final[Mapping[str, tuple[int, str]]] = {"F64": (2, "<f8"), "I64": (2, "<i8"), "I32": (1, "<i4")}  # of 4 bytes
# Initialisations that leave the base weights as they are; the others' adapters only go with weights changed by them.
_INITIALISATIONS: Final = (True, False, "gaussian", "eva", "orthogonal")
# Fields of peft's configuration that make it another computation or need more tensors than LoRA's.
_IMPLEMENTED: Final[Mapping[str, tuple[Any, ...]]] = {
    "peft_type": ("LORA", None),
    "init_lora_weights": (*_INITIALISATIONS, None),
    "bias": ("none", None),
    **dict.fromkeys(("use_dora", "use_qalora"), (False, None)),
    **dict.fromkeys(("modules_to_save", "target_parameters", "trainable_token_indices"), (None, [], {})),
    **dict.fromkeys(("layer_replication", "alora_invocation_tokens", "use_bdlora"), (None, [])),
    **dict.fromkeys(("arrow_config", "kasa_config", "monteclora_config", "velora_config"), (None,)),
}


@dataclass(frozen=True)
class PeftConfig:
    """What peft's LoraConfig says about strength."""

    where: str  # for messages
    rank: float
    alpha: float
    ranks: Patterns  # of layers that differ
    alphas: Patterns
    is_rank_stabilised: bool

    @classmethod
    def from_json(cls, fields: Mapping[str, Any], where: str) -> Self:
        """Read what peft wrote, with its defaults for what is not there.

        Raises:
            UnsupportedError: it is not plain LoRA.
            FormatError: a field is not what peft writes.
        """
        for key, allowed in _IMPLEMENTED.items():
            if fields.get(key) not in allowed:
                raise UnsupportedError(
                    f"[lora] {where}: {key} is not implemented, got {fields[key]!r}, want "
                    f"{' or '.join(map(repr, allowed))}; only plain LoRA is merged"
                )
        return cls(
            where,
            rank=_number(fields.get("r", _DEFAULT), f"{where}: r"),
            alpha=_number(fields.get("lora_alpha", _DEFAULT), f"{where}: lora_alpha"),
            ranks=_patterns(fields, "rank_pattern", where),
            alphas=_patterns(fields, "alpha_pattern", where),
            is_rank_stabilised=bool(fields.get("use_rslora")),
        )

    def strength(self, layer: str, rank: int) -> float:
        """Tell the strength for a layer whose adapter has this rank; raises ShapeError if it has another one here."""
        wanted = _first_match(self.ranks, layer, self.rank)
        if wanted != rank:
            raise ShapeError(
                f"[lora] {self.where}: {layer} has rank {rank} in the file, want {wanted:g} as the configuration says; "
                "they do not belong together"
            )
        return _first_match(self.alphas, layer, self.alpha) / (math.sqrt(rank) if self.is_rank_stabilised else rank)


@dataclass(frozen=True)
class Strengths:
    """All that a LoRA says about strength."""

    path: Path
    alphas: Mapping[str, float]  # by layer, as the file names it
    config: PeftConfig | None
    metadata: Mapping[str, str]

    def of(self, module: str, layer: str, rank: int) -> float:
        """Tell a layer's strength: by its alpha, or else the configuration, or else kohya's metadata, or else 1.

        `module` is the layer's name in the file, `layer` the one without prefix, which patterns are matched against.
        Raises FormatError or ShapeError if the configuration or metadata does not fit.
        """
        if module in self.alphas:
            return self.alphas[module] / rank
        if self.config is not None:
            return self.config.strength(layer, rank)
        alpha = self.metadata.get("ss_network_alpha", "None")
        if self.alphas or alpha == "None":
            return 1.0
        if self.metadata.get("ss_network_dim") != str(rank):
            raise ShapeError(
                f"[lora] {self.path}: {layer} has rank {rank}, ss_network_dim in the metadata is "
                f"{self.metadata.get('ss_network_dim')!r}, and no tensor says its alpha; save the alphas as tensors"
            )
        return _number(_parse(alpha), f"{self.path}: ss_network_alpha") / rank


def read_strengths(path: Path, config: Path | None, alphas: Mapping[str, FileTensor]) -> Strengths:
    """Read peft's configuration, and the tensors of alpha by layer; the header of the LoRA's file is known to be good.

    Raises:
        FormatError: metadata or configuration are damaged.
        UnsupportedError: not plain LoRA.
        ShapeError: an alpha is not one number.
        ValueRangeError: an alpha is NaN or infinite.
    """
    metadata = _read_metadata(path)
    fields: Any = None
    where = f"{path}, {METADATA!r}"
    if metadata.get(METADATA):
        fields = _parse(metadata[METADATA])
        if not isinstance(fields, dict):
            raise FormatError(f"[lora] {where} is not a JSON object; save the LoRA again")
        fields = _component(fields)
    elif config is not None:
        fields, where = read_json(config), str(config)
    peft = None if fields is None else PeftConfig.from_json(fields, where)
    return Strengths(path, {name: _read_alpha(tensor) for name, tensor in alphas.items()}, peft, metadata)


def _read_metadata(path: Path) -> dict[str, str]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(LENGTH_BYTES), "little")
        header = json.loads(file.read(length))
    return header.get("__metadata__") or {}


def _component(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Take the transformer's fields out of a pipeline's."""
    for prefix in _COMPONENTS:
        own = {key.removeprefix(prefix): value for key, value in fields.items() if key.startswith(prefix)}
        if own:
            return own
    return fields


def _read_alpha(tensor: FileTensor) -> float:
    where = f"{tensor.path}: {tensor.name!r}"
    if math.prod(tensor.shape) != 1:
        raise ShapeError(f"[lora] {where} is not one number, got shape {list(tensor.shape)}, want []; save it again")
    if tensor.dtype in DTYPE_NAMES:
        return _number(float(widen(tensor.read(), tensor.dtype).reshape(())), where)
    if tensor.dtype not in _WORDS:
        raise UnsupportedError(
            f"[lora] {where} has dtype {tensor.dtype}, want {', '.join((*DTYPE_NAMES, *_WORDS))}; save it as float32"
        )
    words, dtype = _WORDS[tensor.dtype]
    raw = FileTensor(tensor.path, tensor.name, "U32", (words,), tensor.offset).read()
    return _number(np.asarray(raw).view(dtype)[0].item(), where)


def _patterns(fields: Mapping[str, Any], key: str, where: str) -> Patterns:
    """Compile the patterns of layer names, each of which peft lets begin at any part of a name."""
    table = fields.get(key) or {}
    if not isinstance(table, Mapping):
        raise FormatError(f"[lora] {where}: {key} is not an object, got {table!a}; save the LoRA again")
    try:
        return tuple(
            (re.compile(rf"(.*\.)?({name})$"), _number(value, f"{where}: {key}, {name!r}"))
            for name, value in table.items()
        )
    except re.error as error:
        raise FormatError(f"[lora] {where}: {key} has no regular expressions ({error}); save the LoRA again") from None


def _first_match(patterns: Patterns, layer: str, otherwise: float) -> float:
    return next((value for pattern, value in patterns if pattern.match(layer)), otherwise)


def _parse(text: str) -> object:
    """Parse JSON; None for what is not."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _number(value: object, where: str) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise FormatError(f"[lora] {where} is not a number, got {value!a}; save the LoRA again")
    try:
        number = float(value)
    except OverflowError:  # a long integer
        number = math.inf
    if not math.isfinite(number):
        raise ValueRangeError(f"[lora] {where} is not finite, got {number}; save the LoRA again")
    return number
