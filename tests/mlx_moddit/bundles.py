"""Bundles for the loader's tests, written here and not by `convert`, from a tiny diffusers folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import mlx.core as mx
from safetensors.torch import load_file

from moddit.manifest import (
    COMPONENTS,
    Component,
    Manifest,
    Provenance,
    Quantization,
    describe_file,
    read_manifest,
    write_manifest,
)
from moddit.routing import RoutingPlan
from moddit.samplers import NoiseSchedule
from moddit.spec import ModelSpec, PixArtSpec, T5Spec, VAESpec
from moddit.tensors import TensorInfo, text_encoder_tensors, transformer_tensors, vae_tensors
from tests.parity.bridge import ALIASES, to_mlx
from tests.tiny import MAX_TOKENS

GROUP_SIZE: Final = 32
MODELS: Final = ("transformer", "text_encoder", "vae")


def write_bundle(source: Path, folder: Path, *, bits: int | None = None) -> Path:
    """Write a float32 bundle; with `bits`, the transformer's and text encoder's large products are quantised."""
    spec, plan = _describe(source)
    components = {name: _write_model(source, folder, name, spec, bits) for name in MODELS}
    (folder / "tokenizer").mkdir()
    shutil.copy(source / "tokenizer" / "tokenizer.json", folder / "tokenizer")
    components["tokenizer"] = Component((describe_file(folder, "tokenizer/tokenizer.json"),))
    provenance = Provenance(
        source=str(source), source_sha256="0" * 64, tool_versions={}, created="2026-01-01T00:00:00Z"
    )
    write_manifest(folder, Manifest("mlx", spec, plan, components, None, provenance))
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
    write_manifest(folder, replace(manifest, components=components, **changes))


def wanted_tensors(spec: ModelSpec, component: str, *, routed: bool) -> dict[str, TensorInfo]:
    """List a component's canonical tensors."""
    if component == "transformer":
        return transformer_tensors(spec.transformer, routed=routed)
    return text_encoder_tensors(spec.text_encoder) if component == "text_encoder" else vae_tensors(spec.vae)


def _describe(source: Path) -> tuple[ModelSpec, RoutingPlan | None]:
    configs = {
        name: json.loads((source / name / file).read_text())
        for name, file in {**dict.fromkeys(MODELS, "config.json"), "scheduler": "scheduler_config.json"}.items()
    }
    plan = configs["transformer"].pop("diffcr", None)
    spec = ModelSpec(
        transformer=PixArtSpec.from_diffusers(configs["transformer"], "transformer"),
        text_encoder=T5Spec.from_transformers(configs["text_encoder"], "text_encoder"),
        vae=VAESpec.from_diffusers(configs["vae"], "vae"),
        scheduler=NoiseSchedule.from_diffusers(configs["scheduler"], "scheduler"),
        max_sequence_length=MAX_TOKENS,
    )
    return spec, None if plan is None else RoutingPlan.from_json(plan, "transformer")


def _write_model(source: Path, folder: Path, name: str, spec: ModelSpec, bits: int | None) -> Component:
    tensors: dict[str, mx.array] = {}
    for file in sorted((source / name).glob("*.safetensors")):
        tensors |= {key: to_mlx(value) for key, value in load_file(file).items()}
    tensors = {key: value for key, value in tensors.items() if key not in ALIASES and not key.endswith("keep_ratio")}
    recipe = None
    if bits is not None and name != "vae":
        wanted = wanted_tensors(spec, name, routed=True)
        names = [key for key in tensors if wanted[key].role.is_quantisable and wanted[key].shape[1] % GROUP_SIZE == 0]
        recipe = Quantization(bits, GROUP_SIZE, "affine", tuple(names))
        for key in names:
            packed = mx.quantize(tensors.pop(key), GROUP_SIZE, bits)
            stem = key.removesuffix("weight")
            tensors |= dict(zip((key, stem + "scales", stem + "biases"), packed, strict=True))
    (folder / name).mkdir(parents=True)
    mx.save_safetensors(str(folder / name / "model.safetensors"), tensors)
    return Component((describe_file(folder, f"{name}/model.safetensors"),), "float32", 0, recipe)


def _load(path: Path) -> dict[str, mx.array]:
    loaded = mx.load(str(path))
    assert isinstance(loaded, dict)
    return loaded


assert set(COMPONENTS) == {*MODELS, "tokenizer"}
