"""LoRA: files of small adapters of a transformer's layers, read strictly and merged into its weights.

An adapter is two matrices, A with `rank` rows and B with as many columns; its layer's weight W becomes
W + strength * B @ A. What a file does not say in full, or says of something else, is refused.

Source: Hu et al., arXiv 2106.09685, section 4.1; peft/tuners/lora/layer.py; diffusers/loaders/peft.py
`load_lora_adapter` and diffusers/loaders/lora_base.py, for the files and their names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from moddit.checkpoint.diffcr import PLAN_KEY, is_routing
from moddit.checkpoint.foreign import ADAPTER_FILES
from moddit.checkpoint.lora_names import REFUSED, TEXT_ENCODER, Layer, Layers, Piece, split_name
from moddit.checkpoint.lora_strength import read_strengths
from moddit.checkpoint.merged import Addition, MergedTensor
from moddit.checkpoint.precision import DTYPE_NAMES, check_dtypes
from moddit.checkpoint.safetensors import FileTensor, read_tensors
from moddit.checkpoint.stored import Rows, StoredTensor
from moddit.checkpoint.weights import PICKLE_SUFFIXES
from moddit.errors import FormatError, MissingError, ShapeError, UnsupportedError, ValueRangeError
from moddit.tensors import TensorInfo

PEFT_CONFIG, PEFT_FILE, DIFFUSERS_FILE = ADAPTER_FILES
# The layer that a routed checkpoint holds doubled, against its gate: see torch_moddit.model.
_MLP_END: Final = re.compile(r"transformer_blocks\.\d+\.ff\.net\.2\.(weight|bias)")
LORA_PREFIX: Final = "transformer."  # of our own names
_NAMED: Final = 3  # names in a message, of perhaps hundreds

_Pieces = dict[Piece, FileTensor]


@dataclass(frozen=True)
class Lora:
    """A LoRA file, checked in everything but the values of its adapters."""

    files: tuple[Path, ...]  # all that it was read from
    additions: Mapping[str, Addition]  # by canonical name of the tensor
    routing: Mapping[str, StoredTensor]  # routers and keep ratios that make a dense model a routed one
    plan: str | None  # of these, as JSON; None where it says none

    def merge(self, tensors: Mapping[str, StoredTensor], *, mlp_gain: float = 1.0) -> dict[str, StoredTensor]:
        """Replace the tensors that this LoRA changes by merged ones; more LoRAs may be merged into the result.

        `mlp_gain` is a factor on the last layer of every MLP: 2 for a LoRA that was trained on a dense model, if the
        checkpoint is a routed one, where this layer is twice the dense one's.

        Raises:
            MissingError: a tensor is absent.
            UnsupportedError: a tensor that changes is neither float32, float16 nor bfloat16.
        """
        merged = dict(tensors)
        for name, addition in self.additions.items():
            if name not in tensors:
                raise MissingError(f"[lora] {self.files[0]}: changes {name}, which the checkpoint does not have")
            check_dtypes("lora", {tensors[name].name: tensors[name]}, DTYPE_NAMES)
            gain = mlp_gain if is_mlp_end(name) else 1.0
            merged[name] = MergedTensor.of(tensors[name], replace(addition, strength=addition.strength * gain))
        return merged


def is_mlp_end(name: str) -> bool:
    """Say whether a tensor is of the layer that a routed checkpoint holds doubled."""
    return bool(_MLP_END.fullmatch(name))


def read_lora(path: Path, scale: float, wanted: Mapping[str, TensorInfo]) -> Lora:
    """Read a LoRA, a safetensors file or a folder in which diffusers or peft saved one, for a transformer.

    Of its tensors, only the header and single numbers are read. The scale is a factor on all of it, 1 for what it was
    trained for.

    Raises:
        MissingError: no such file or folder, or a part of it is absent.
        FormatError: a file is damaged, or holds no adapters.
        UnsupportedError: other adapters than LoRA, or adapters of other layers than the transformer's.
        ShapeError: an adapter does not fit its layer, or the configuration does not fit the adapters.
        ValueRangeError: the scale or an alpha is NaN or infinite.
    """
    if not math.isfinite(scale):
        raise ValueRangeError(f"[lora] {path}: the scale is not finite, got {scale}, want a number such as 1 or 0.7")
    file, config = _find_files(path)
    tensors = read_tensors(file)
    routing = _take_routing(tensors, file)
    found = _group(tensors, file)
    layers = _find_layers(found, Layers(wanted), file)
    alphas = {module: pieces.pop(Piece.ALPHA) for module, pieces in found.items() if Piece.ALPHA in pieces}
    _check_pairs(found, file)
    strengths = read_strengths(file, config, alphas)
    additions: dict[str, Addition] = {}
    for module, pieces in found.items():
        for name, addition in _additions(layers[module], pieces, wanted).items():
            if name in additions:
                raise FormatError(f"[lora] {file}: has two adapters of {name!r}; merge them one after the other")
            strength = scale * strengths.of(module, layers[module].name, pieces[Piece.DOWN].shape[0])
            additions[name] = replace(addition, strength=strength)
    files = (file,) if config is None else (file, config)
    plan = strengths.metadata.get(PLAN_KEY)
    if plan is not None and not routing:
        raise FormatError(
            f"[lora] {file}: has {PLAN_KEY!r} in its metadata, the plan of a routed model, but no routers; "
            "copy or export it again"
        )
    return Lora(files, additions, routing, plan)


def _find_files(path: Path) -> tuple[Path, Path | None]:
    """Find the weights, and peft's configuration if it belongs to them."""
    if path.is_dir():
        path = _find_weights(path)
    if path.suffix in PICKLE_SUFFIXES:
        raise UnsupportedError(
            f"[lora] {path}: is a pickle, which may run code, want .safetensors; load it with torch.load(..., "
            "weights_only=True) and save it with safetensors.torch.save_file"
        )
    config = path.with_name(PEFT_CONFIG)
    if path.name != PEFT_FILE or not path.is_file():
        return path, None
    if not config.is_file():
        raise MissingError(f"[lora] {config}: no such file, but it says how strong {path.name} is; copy it too")
    return path, config


def _find_weights(folder: Path) -> Path:
    there = [folder / name for name in (DIFFUSERS_FILE, PEFT_FILE) if (folder / name).is_file()]
    if len(there) > 1:
        raise UnsupportedError(f"[lora] {folder}: has {DIFFUSERS_FILE} and {PEFT_FILE}; name the one that you mean")
    there += sorted(file for file in folder.iterdir() if file.suffix in PICKLE_SUFFIXES)
    if not there:
        names = _listing(sorted(file.name for file in folder.iterdir()), "entries")
        raise MissingError(
            f"[lora] {folder}: got {names}, want {DIFFUSERS_FILE} or {PEFT_FILE}; name the file, if it has another name"
        )
    return there[0]


def _take_routing(tensors: dict[str, FileTensor], file: Path) -> dict[str, StoredTensor]:
    """Take out what `torch_moddit.export.save_adapter` writes beside adapters, under canonical names."""
    routing: dict[str, StoredTensor] = {}
    for name in list(tensors):
        canonical = name.removeprefix(LORA_PREFIX)
        if is_routing(canonical):
            if canonical in routing:
                raise FormatError(
                    f"[lora] {file}: {routing[canonical].name!r} and {name!r} are both {canonical!r}; export it again"
                )
            routing[canonical] = tensors.pop(name)
    return routing


def _group(tensors: Mapping[str, FileTensor], file: Path) -> dict[str, _Pieces]:
    """Group the tensors by layer, as the file names them; refuse what is no LoRA of a transformer."""
    _check_kind(tensors, file)
    found: dict[str, _Pieces] = {}
    whole: list[str] = []
    for name, tensor in tensors.items():
        parts = split_name(name)
        if parts is None:
            whole.append(name)
            continue
        module, piece = parts
        other = found.setdefault(module, {}).setdefault(piece, tensor)
        if other is not tensor:
            raise FormatError(f"[lora] {file}: {other.name!r} and {name!r} are both {piece.value} of one layer")
        if piece is not Piece.ALPHA:
            check_dtypes("lora", {name: tensor}, DTYPE_NAMES)
    if not found:
        raise FormatError(
            f"[lora] {file}: has no adapters, got {_listing(whole, 'tensors')}; perhaps it is a whole model, which is "
            "converted by itself, or of another architecture"
        )
    if whole:
        raise UnsupportedError(
            f"[lora] {file}: has whole weights (modules_to_save) beside its adapters, got "
            f"{_listing(whole, 'tensors')}; only adapters are merged"
        )
    return found


def _check_kind(tensors: Mapping[str, FileTensor], file: Path) -> None:
    if not tensors:
        raise FormatError(f"[lora] {file}: has no tensors at all; copy or download the file again")
    for kind, pattern in REFUSED.items():
        names = list(filter(pattern.fullmatch, tensors))
        if names:
            raise UnsupportedError(
                f"[lora] {file}: holds {kind}, got {_listing(names, 'tensors')}; only plain LoRA is merged"
            )
    names = [name for name in tensors if TEXT_ENCODER.fullmatch(name) and split_name(name)]
    if names:
        raise UnsupportedError(
            f"[lora] {file}: adapts a text encoder, got {_listing(names, 'tensors')}; only the transformer's adapters "
            "are merged: save a file without the others"
        )


def _find_layers(found: Iterable[str], layers: Layers, file: Path) -> dict[str, Layer]:
    known = {module: layer for module in found if (layer := layers.find(module))}
    missing = [module for module in found if module not in known]
    if missing:
        raise UnsupportedError(
            f"[lora] {file}: the transformer has no such layers: {_listing(missing, 'layers')}, want names such as "
            f"{'transformer_blocks.0.attn1.to_q'!r}; the LoRA was made for another model"
        )
    return known


def _check_pairs(found: Mapping[str, _Pieces], file: Path) -> None:
    halves = [module for module, pieces in found.items() if not pieces.keys() >= {Piece.DOWN, Piece.UP}]
    if halves:
        raise FormatError(
            f"[lora] {file}: A or B is missing of {_listing(halves, 'layers')}, want both; download or save it again"
        )


def _additions(layer: Layer, pieces: _Pieces, wanted: Mapping[str, TensorInfo]) -> dict[str, Addition]:
    """List what is added to a layer's tensors, at strength 1; a stack of matrices is taken apart by the rows of B."""
    down, up, bias = pieces[Piece.DOWN], pieces[Piece.UP], pieces.get(Piece.BIAS)
    counts = [wanted[f"{target}.weight"].shape[0] for target in layer.targets]
    _check_shapes(layer, pieces, (sum(counts), *wanted[f"{layer.targets[0]}.weight"].shape[1:]))
    result: dict[str, Addition] = {}
    start = 0
    for target, count in zip(layer.targets, counts, strict=True):
        result[f"{target}.weight"] = Addition(Rows.of(up, start, start + count), down, 1.0)
        if bias is not None:
            if f"{target}.bias" not in wanted:
                raise UnsupportedError(
                    f"[lora] {bias.path}: {bias.name!r} is a bias, but {target} has none; train without lora_bias"
                )
            result[f"{target}.bias"] = Addition(Rows.of(bias, start, start + count), None, 1.0)
        start += count
    return result


def _check_shapes(layer: Layer, pieces: _Pieces, shape: tuple[int, ...]) -> None:
    """Compare the adapter's shapes with its layer's, (out, in) or (out, in, height, width)."""
    down = pieces[Piece.DOWN]
    rank = down.shape[0] if down.shape else 0
    expected = {Piece.DOWN: (rank, *shape[1:]), Piece.UP: (shape[0], rank, *(1,) * len(shape[2:]))}
    expected[Piece.BIAS] = shape[:1]
    wrong = [piece for piece, tensor in pieces.items() if tensor.shape != expected[piece]]
    if wrong or rank < 1:
        got = ", ".join(f"{piece.value} {list(tensor.shape)}" for piece, tensor in pieces.items())
        rest = "".join(f", {size}" for size in shape[1:])
        raise ShapeError(
            f"[lora] {down.path}: the adapter of {layer.name!r} does not fit, got {got}, want A [rank{rest}] and B "
            f"[{shape[0]}, rank{', 1' * len(shape[2:])}] with a rank of 1 or more; the LoRA was made for another model"
        )


def _listing(names: list[str], what: str) -> str:
    shown = ", ".join(map(repr, names[:_NAMED]))
    return shown if len(names) <= _NAMED else f"{shown}, ... ({len(names)} {what})"
