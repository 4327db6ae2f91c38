"""Bundles for the loader's tests, written here and not by `convert`, from a tiny diffusers folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import mlx.core as mx
from safetensors.torch import load_file

from moddit.conditioning import Text
from moddit.manifest import (
    Component,
    Manifest,
    Provenance,
    describe_file,
    fingerprint,
    read_manifest,
    write_manifest,
)
from moddit.models.pixart import PixArtSpec
from moddit.models.t5 import T5Spec
from moddit.models.vae import VAESpec
from moddit.quantization import Packing, group
from moddit.routing import RoutingPlan
from moddit.samplers import NoiseSchedule
from moddit.spec import ModelSpec
from moddit.tensors import TensorInfo
from moddit.tokens import TokenPolicy
from tests.parity.bridge import ALIASES, to_mlx
from tests.tiny import MAX_TOKENS

MODELS: Final = ("transformer", "text_encoder", "vae")


def write_bundle(source: Path, folder: Path, *packings: Packing) -> Path:
    """Write a float32 bundle; large products of the transformer and text encoder take turns with the packings."""
    spec, policy = _describe(source)
    components = {name: _write_model(source, folder, name, spec, packings) for name in MODELS}
    (folder / "tokenizer").mkdir()
    shutil.copy(source / "tokenizer" / "tokenizer.json", folder / "tokenizer")
    components["tokenizer"] = Component((describe_file(folder, "tokenizer/tokenizer.json"),))
    provenance = Provenance(
        source=str(source), source_sha256="0" * 64, tool_versions={}, created="2026-01-01T00:00:00Z"
    )
    assert components.keys() == set(spec.components)
    mark = fingerprint(spec, policy, components)
    write_manifest(folder, Manifest(mark, "mlx", spec, policy, components, None, provenance))
    return folder


def edit_tensors(folder: Path, component: str, changes: Mapping[str, mx.array | None]) -> None:
    """Replace, add or (None) remove tensors of a bundle, and keep its manifest true to its files."""
    file = f"{component}/model.safetensors"
    # copied, because the arrays of a lazily loaded file cannot be written back into it
    tensors = {name: array + 0 for name, array in _load(folder / file).items()}
    mx.eval(tensors)
    tensors.update({name: array for name, array in changes.items() if array is not None})
    for name in [name for name, array in changes.items() if array is None]:
        del tensors[name]
    mx.save_safetensors(str(folder / file), tensors)
    refresh_manifest(folder)


def refresh_manifest(folder: Path, **changes: Any) -> None:
    """Measure every file again and change top-level fields of the manifest."""
    manifest = read_manifest(folder)
    components = {
        name: replace(component, files=tuple(describe_file(folder, info.path) for info in component.files))
        for name, component in manifest.components.items()
    }
    mark = fingerprint(manifest.spec, manifest.tokens, components)
    write_manifest(folder, replace(manifest, **{"components": components, "fingerprint": mark, **changes}))


def wanted_tensors(spec: ModelSpec, component: str, *, routed: bool) -> dict[str, TensorInfo]:
    """List a component's canonical tensors."""
    return spec.tensors(has_routers=routed)[component]


def _describe(source: Path) -> tuple[ModelSpec, TokenPolicy]:
    configs = {
        name: json.loads((source / name / file).read_text())
        for name, file in {**dict.fromkeys(MODELS, "config.json"), "scheduler": "scheduler_config.json"}.items()
    }
    plan = configs["transformer"].pop("diffcr", None)
    spec = ModelSpec(
        transformer=PixArtSpec.from_diffusers(configs["transformer"], "transformer"),
        conditioning=Text(T5Spec.from_transformers(configs["text_encoder"], "text_encoder"), MAX_TOKENS),
        vae=VAESpec.from_diffusers(configs["vae"], "vae"),
        scheduler=NoiseSchedule.from_diffusers(configs["scheduler"], "scheduler"),
    )
    if plan is None:
        return spec, TokenPolicy.dense(spec.transformer.num_layers, spec.scheduler.num_train_timesteps)
    return spec, TokenPolicy.topk(RoutingPlan.from_json(plan, "transformer"))


def _write_model(source: Path, folder: Path, name: str, spec: ModelSpec, packings: Sequence[Packing]) -> Component:
    tensors: dict[str, mx.array] = {}
    for file in sorted((source / name).glob("*.safetensors")):
        tensors |= {key: to_mlx(value) for key, value in load_file(file).items()}
    tensors = {key: value for key, value in tensors.items() if key not in ALIASES and not key.endswith("keep_ratio")}
    packed: dict[str, Packing] = {}
    if packings and name != "vae":
        wanted, turns = wanted_tensors(spec, name, routed=True), cycle(packings)
        packed = {key: next(turns) for key in tensors if packings[0].fits(wanted[key])}
        for key, packing in packed.items():
            parts = mx.quantize(tensors[key], packing.group_size, packing.bits, packing.mode)
            tensors |= dict(zip(packing.parts(key, tensors[key].shape), parts, strict=True))
    (folder / name).mkdir(parents=True)
    mx.save_safetensors(str(folder / name / "model.safetensors"), tensors)
    return Component((describe_file(folder, f"{name}/model.safetensors"),), "float32", 0, group(packed))


def _load(path: Path) -> dict[str, mx.array]:
    loaded = mx.load(str(path))
    assert isinstance(loaded, dict)
    return loaded
