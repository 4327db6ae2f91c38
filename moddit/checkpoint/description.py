"""What a checkpoint is, apart from how any backend stores it: specification, plan and tensors under canonical names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from moddit.checkpoint.names import ALIASES, KEEP_RATIO, ROUTER, canonical_names
from moddit.checkpoint.precision import DTYPE_NAMES, is_finite, widen
from moddit.checkpoint.stored import StoredTensor
from moddit.checkpoint.tokenizer import read_tokenizer
from moddit.checkpoint.weights import read_json, read_weights
from moddit.errors import FormatError, MissingError, ShapeError, UnsupportedError, ValueRangeError
from moddit.manifest import MANIFEST_NAME
from moddit.routing import RoutingPlan, snap
from moddit.samplers import NoiseSchedule
from moddit.spec import ModelSpec, PixArtSpec, T5Spec, VAESpec
from moddit.tensors import Tensors, check_names, text_encoder_tensors, transformer_tensors, vae_tensors

STEMS: Final[Mapping[str, str]] = {  # of the weight files
    "transformer": "diffusion_pytorch_model",
    "text_encoder": "model",
    "vae": "diffusion_pytorch_model",
}
FOLDERS: Final = (*STEMS, "tokenizer", "scheduler")
# Text tokens that diffusers' pipelines read unless told otherwise.
SEQUENCE_LENGTHS: Final[Mapping[str, int]] = {"PixArtAlphaPipeline": 120, "PixArtSigmaPipeline": 300}
_PLAN_KEY: Final = "diffcr"
_COMPARED_ROWS: Final = 1024


@dataclass(frozen=True)
class Part:
    """The weights of one component."""

    wanted: Tensors
    tensors: Mapping[str, StoredTensor]  # the same names

    @property
    def parameters(self) -> int:
        return sum(int(np.prod(info.shape)) for info in self.wanted.values())

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


@dataclass(frozen=True)
class Description:
    """A checkpoint, checked in everything but the values of its weights."""

    folder: Path
    spec: ModelSpec
    plan: RoutingPlan | None  # None for a dense model
    parts: Mapping[str, Part]
    tokenizer: bytes  # tokenizer.json
    files: tuple[Path, ...]  # all that it was read from
    unused: Mapping[str, str]  # "component/tensor" to the reason why no bundle holds it
    notes: tuple[str, ...]  # what a user should know, one sentence each


def describe(folder: Path) -> Description:
    """Read a diffusers pipeline folder; weights are left on disk, and only their headers are read.

    Raises:
        MissingError: a component or file is absent.
        FormatError: a file is damaged.
        UnsupportedError: another architecture or feature than implemented.
        ShapeError: tensors or the plan do not fit the configuration.
        ValueRangeError: a value of the plan or of a configuration outside its range.
    """
    pipeline = _read_index(folder)
    configs = {name: read_json(folder / name / "config.json") for name in STEMS}
    plan = configs["transformer"].pop(_PLAN_KEY, None)
    tokenizer = read_tokenizer(folder / "tokenizer")
    spec = _read_spec(folder, pipeline, configs, tokenizer.max_length)
    routing = None if plan is None else _read_plan(plan, spec, folder / "transformer" / "config.json")
    if tokenizer.size > spec.text_encoder.vocab_size:
        raise ShapeError(
            f"[tokenizer] {tokenizer.files[0]}: has {tokenizer.size} tokens, the text encoder's vocab_size is "
            f"{spec.text_encoder.vocab_size}; check that they belong together"
        )
    wanted = {
        "transformer": transformer_tensors(spec.transformer, routed=routing is not None),
        "text_encoder": text_encoder_tensors(spec.text_encoder),
        "vae": vae_tensors(spec.vae),
    }
    parts: dict[str, Part] = {}
    unused: dict[str, str] = {}
    notes: list[str] = []
    files = [folder / "model_index.json", folder / "scheduler" / "scheduler_config.json", *tokenizer.files]
    for name in STEMS:
        part, paths, dropped = _read_part(folder / name, name, wanted[name], routing, notes)
        files += [folder / name / "config.json", *paths]
        parts[name] = part
        unused |= {f"{name}/{key}": reason for key, reason in dropped.items()}
    return Description(folder, spec, routing, parts, tokenizer.text, tuple(files), unused, tuple(notes))


def _read_index(folder: Path) -> str:
    """Check that this is a pipeline folder with all components; return the class of the pipeline."""
    if not folder.is_dir():
        raise MissingError(f"[source] {folder}: no such folder")
    if not (folder / "model_index.json").is_file():
        what = "a bundle already" if (folder / MANIFEST_NAME).is_file() else "not a diffusers pipeline folder"
        raise MissingError(
            f"[source] {folder}: {what}; want a folder with model_index.json and {', '.join(FOLDERS)}, "
            "as save_pretrained of a PixArt pipeline writes it"
        )
    for name in FOLDERS:
        if not (folder / name).is_dir():
            found = sorted(path.name for path in folder.iterdir() if path.is_dir())
            raise MissingError(
                f"[source] {folder}: component {name!r} is missing, got {', '.join(found) or 'no folders'}, "
                f"want {', '.join(FOLDERS)}; save the whole pipeline"
            )
    path = folder / "model_index.json"
    kind = read_json(path).get("_class_name")
    if kind not in SEQUENCE_LENGTHS:
        raise UnsupportedError(
            f"[source] {path}: pipeline {kind!r} is not implemented, want {' or '.join(SEQUENCE_LENGTHS)}"
        )
    return str(kind)


def _read_spec(folder: Path, pipeline: str, configs: dict[str, dict[str, Any]], max_length: int | None) -> ModelSpec:
    transformer = configs["transformer"]
    # The class of PixArt in diffusers before 0.29, which diffusers itself maps in this way.
    if (transformer.get("_class_name"), transformer.get("norm_type")) == ("Transformer2DModel", "ada_norm_single"):
        transformer["_class_name"] = "PixArtTransformer2DModel"
    length = SEQUENCE_LENGTHS[pipeline]
    path = folder / "scheduler" / "scheduler_config.json"
    return ModelSpec(
        transformer=PixArtSpec.from_diffusers(transformer, str(folder / "transformer" / "config.json")),
        text_encoder=T5Spec.from_diffusers(configs["text_encoder"], str(folder / "text_encoder" / "config.json")),
        vae=VAESpec.from_diffusers(configs["vae"], str(folder / "vae" / "config.json")),
        scheduler=NoiseSchedule.from_diffusers(read_json(path), str(path)),
        max_sequence_length=length if max_length is None else min(length, max_length),
    )


def _read_plan(value: object, spec: ModelSpec, path: Path) -> RoutingPlan:
    where = f"{path}, {_PLAN_KEY!r}"
    plan = RoutingPlan.from_json(value, where)
    if plan.layers != spec.transformer.num_layers:
        raise ShapeError(
            f"[routing] {where}: keep_tenths has {plan.layers} layers, want {spec.transformer.num_layers}, "
            "the transformer's num_layers"
        )
    if plan.num_train_timesteps != spec.scheduler.num_train_timesteps:
        raise ValueRangeError(
            f"[routing] {where}: num_train_timesteps is {plan.num_train_timesteps}, "
            f"want {spec.scheduler.num_train_timesteps}, the scheduler's"
        )
    return plan


def _read_part(
    folder: Path, name: str, wanted: Tensors, plan: RoutingPlan | None, notes: list[str]
) -> tuple[Part, list[Path], dict[str, str]]:
    """Read a component's weights; return them, their files, and what no bundle holds with the reasons."""
    tensors, paths = read_weights(folder, STEMS[name])
    found = {new: tensors[old] for old, new in canonical_names(name, tensors, str(folder)).items()}
    dropped = _drop_aliases(name, found)
    if name == "transformer" and plan is not None:
        dropped |= _take_keep_ratios(found, plan, notes)
    elif any(ROUTER.fullmatch(key) for key in found):
        raise FormatError(
            f"[{name}] {folder}: has routers, but config.json has no {_PLAN_KEY!r} object with the routing plan; "
            "export the checkpoint again"
        )
    check_names({key: tensor.shape for key, tensor in found.items()}, wanted, str(folder))
    _check_dtypes(name, found)
    return Part(wanted, found), paths, dropped


def _drop_aliases(component: str, found: dict[str, StoredTensor]) -> dict[str, str]:
    dropped = {}
    for alias, name in ALIASES[component].items():
        if alias in found and name in found:
            if not _is_equal(found[alias], found[name]):
                raise FormatError(
                    f"[{component}] {found[alias].path}: {alias!r} and {name!r} are one tensor in this architecture "
                    "but differ; save the model again"
                )
            del found[alias]
            dropped[alias] = f"equal to {name}"
    return dropped


def _is_equal(one: StoredTensor, other: StoredTensor) -> bool:
    if (one.dtype, one.shape) != (other.dtype, other.shape) or one.dtype not in DTYPE_NAMES:
        return False
    rows = one.shape[0] if one.shape else 1
    for first in range(0, rows, _COMPARED_ROWS):
        last = min(rows, first + _COMPARED_ROWS)
        if one.read(first, last).tobytes() != other.read(first, last).tobytes():
            return False
    return True


def _take_keep_ratios(found: dict[str, StoredTensor], plan: RoutingPlan, notes: list[str]) -> dict[str, str]:
    """Take the learned ratios out of `found`, checked against the plan, which alone counts for inference."""
    taken, moved = {}, []
    for match in filter(None, map(KEEP_RATIO.fullmatch, list(found))):
        name, layer = match[0], int(match[1])
        tensor = found.pop(name)
        if layer >= plan.layers or tensor.shape != (plan.regions,):
            raise ShapeError(
                f"[transformer] {tensor.path}: {name!r} has shape {list(tensor.shape)}, want [{plan.regions}], the "
                f"plan's regions, in layers 0..{plan.layers - 1}; export the checkpoint again"
            )
        _check_dtypes("transformer", {name: tensor})
        values = tensor.read()
        if not is_finite(values, tensor.dtype):
            raise ValueRangeError(f"[transformer] {tensor.path}: {name!r} is NaN or infinite, want ratios of 0.1..1.0")
        if tuple(snap(float(value)) for value in widen(values, tensor.dtype)) != plan.keep_tenths[layer]:
            moved.append(layer)
        taken[name] = "training only; the plan has its value in tenths"
    if moved:
        layers = ", ".join(map(str, sorted(moved)))
        notes.append(f"keep_ratio of layers {layers} snaps to other tenths than the plan in config.json, which counts")
    return taken


def _check_dtypes(component: str, tensors: Mapping[str, StoredTensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPE_NAMES:
            raise UnsupportedError(
                f"[{component}] {tensor.path}: {name!r} has dtype {tensor.dtype}, want {', '.join(DTYPE_NAMES)}; "
                "save the model in float16, bfloat16 or float32"
            )
