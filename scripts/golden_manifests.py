"""Manifests of small Core ML bundles as the converter writes them, for the golden files of the Swift package.

The model is tiny; every file but the tokenizer holds its own path as text, so that a test can write a whole bundle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from moddit.graphs import Denoiser, Feature, GraphFunction, Graphs, Package, size_name
from moddit.manifest import Component, FileInfo, Manifest, Provenance, Quantization
from moddit.routing import RoutingPlan
from moddit.samplers import NoiseSchedule
from moddit.spec import ModelSpec, PixArtSpec, T5Spec, VAESpec

TOKENIZER_PATH: Final = "tokenizer.json"
PACKAGE_FILES: Final = (
    "Data/com.apple.CoreML/model.mlmodel",
    "Data/com.apple.CoreML/weights/weight.bin",
    "Manifest.json",
)
MINIMUM_OS: Final = {"iOS": "18.0", "macOS": "15.0"}
ROUTED_PLAN: Final = RoutingPlan(((10, 9, 10, 6), (3, 5, 3, 7), (1, 2, 1, 10)))  # regions 0 and 2 share a row
MERGED_PLAN: Final = RoutingPlan(((5, 5, 9), (4, 4, 10), (3, 3, 10)), 999)
TRAINED_PLAN: Final = RoutingPlan(((5, 4, 9), (3, 4, 10), (3, 3, 10)), 999)
SMALL: Final = (32, 32)  # height and width, pixels
WIDE: Final = (32, 64)

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Recipe:
    """What differs between the bundles."""

    plan: RoutingPlan | None
    sampler: str
    spacing: str
    sizes: tuple[tuple[int, int], ...]
    batches: tuple[int, ...]
    chunks: int = 1
    is_told_size: bool = False
    trained_plan: RoutingPlan | None = None
    compute_units: str = "cpuAndGPU"
    routing: str = "rows"
    quantization: Quantization | None = None


RECIPES: Final = {
    "routed": Recipe(ROUTED_PLAN, "dpmpp-2m", "linspace", (SMALL, WIDE), (2, 1)),
    "dense": Recipe(None, "euler", "leading", (WIDE,), (1,), is_told_size=True),
    "chain": Recipe(
        MERGED_PLAN,
        "ddim",
        "trailing",
        (SMALL,),
        (2,),
        chunks=2,
        trained_plan=TRAINED_PLAN,
        compute_units="all",
        routing="onehot",
        quantization=Quantization(4, 16, "palette", ("proj_out.weight",)),
    ),
}


def make_bundles(tokenizer: Path) -> dict[str, Manifest]:
    """Make the manifests, by name; each has been read back from its JSON, which checks it."""
    bundles = {name: _make(recipe, tokenizer.read_bytes()) for name, recipe in RECIPES.items()}
    return {name: Manifest.from_json(json.loads(json.dumps(item.to_json())), name) for name, item in bundles.items()}


def fingerprint(manifest: Manifest) -> str:
    """Hash what a bundle holds, as mlx_moddit.metadata does (tests/swift holds the two together)."""
    files = sorted((info.path, info.sha256) for item in manifest.components.values() for info in item.files)
    plan = manifest.plan.to_json() if manifest.plan else None
    text = json.dumps([files, manifest.spec.to_json(), plan], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _make(recipe: Recipe, tokenizer: bytes) -> Manifest:
    spec = _spec(recipe)
    denoisers = _denoisers(spec, recipe)
    packages = {
        "text_encoder": (_package("TextEncoder", [_text_encoder(spec)]),),
        "transformer": _transformer(spec, recipe, denoisers),
        "vae_decoder": (_package("VAEDecoder", _vae(spec, recipe, "latents", "image")),),
        "vae_encoder": (_package("VAEEncoder", _vae(spec, recipe, "image", "moments")),),
    }
    graphs = Graphs(MINIMUM_OS, recipe.compute_units, recipe.routing, packages, denoisers, recipe.trained_plan)
    roles = {"transformer": ("transformer",), "text_encoder": ("text_encoder",), "vae": ("vae_decoder", "vae_encoder")}
    components = {name: _component([item for role in part for item in packages[role]]) for name, part in roles.items()}
    components["transformer"] = replace(components["transformer"], quantization=recipe.quantization)
    components["tokenizer"] = Component((_describe(TOKENIZER_PATH, tokenizer),))
    made = Provenance("shapes – tiny", _hash(b"tiny"), {"moddit": "0.1.0"}, "2026-11-25T00:00:00+00:00")
    return Manifest("coreml", spec, recipe.plan, components, graphs, made)


def _spec(recipe: Recipe) -> ModelSpec:
    steps = recipe.plan.num_train_timesteps if recipe.plan else 1000
    schedule = NoiseSchedule(
        num_train_timesteps=steps,
        beta_schedule="linear",
        beta_start=0.0001,
        beta_end=0.02,
        prediction_type="epsilon",
        timestep_spacing=recipe.spacing,
        steps_offset=0,
        set_alpha_to_one=True,
        sampler=recipe.sampler,
    )
    transformer = PixArtSpec(3, 2, 8, 4, 8, 2, 8, 16, 8, 1.0, True, 1e-6, recipe.is_told_size)
    text_encoder = T5Spec(64, 8, 4, 16, 1, 2, 32, 128, True, "gelu_new", 1e-6)
    vae = VAESpec(3, 3, 4, (8, 8, 8), 1, 4, 0.18215, 0.0, True, True, True)
    return ModelSpec(transformer, text_encoder, vae, schedule, 12)


def _denoisers(spec: ModelSpec, recipe: Recipe) -> tuple[Denoiser, ...]:
    plan, found = recipe.plan, []
    for height, width in recipe.sizes:
        tokens = spec.transformer.tokens(height // spec.vae.downscale, width // spec.vae.downscale)
        for batch in recipe.batches:
            for row in plan.rows() if plan else (None,):
                regions = tuple(r for r in range(plan.regions) if plan.row(r) == row) if plan else (0,)
                kept = plan.capacities(regions[0], tokens) if plan else (tokens,) * spec.transformer.num_layers
                name = f"{size_name(height, width)}_batch{batch}_region{'_'.join(map(str, regions))}"
                found.append(Denoiser(name, height, width, batch, regions, kept))
    return tuple(found)


def _text_encoder(spec: ModelSpec) -> GraphFunction:
    length = spec.max_sequence_length
    inputs = {"input_ids": Feature((1, length), "int32"), "text_mask": Feature((1, length), "float32")}
    return GraphFunction("encode", inputs, {"text": Feature((1, length, spec.text_encoder.d_model), "float32")})


def _transformer(spec: ModelSpec, recipe: Recipe, denoisers: Sequence[Denoiser]) -> tuple[Package, ...]:
    count = recipe.chunks
    names = ["Transformer"] if count == 1 else [f"Transformer{number + 1}of{count}" for number in range(count)]
    return tuple(
        _package(name, [_step(spec, item, number == 0, number == count - 1) for item in denoisers])
        for number, name in enumerate(names)
    )


def _step(spec: ModelSpec, item: Denoiser, is_first: bool, is_last: bool) -> GraphFunction:
    """Describe a denoiser's function in one of the transformer's packages."""
    height, width = item.height // spec.vae.downscale, item.width // spec.vae.downscale
    model, length, batch = spec.transformer, spec.max_sequence_length, item.batch
    latents = (batch, model.in_channels, height, width)
    handed = {
        "tokens": (batch, model.tokens(height, width), model.hidden_size),
        "modulation": (1, 6, model.hidden_size),
        "embedded": (1, 1, model.hidden_size),
        "text_states": (batch, length, model.hidden_size),
    }
    size: Shapes = {"resolution": (2,), "aspect_ratio": (1,)} if model.use_additional_conditions else {}
    first = {"latents": latents, "timestep": (1,), "text": (batch, length, model.caption_channels), **size}
    inputs = _features({"text_mask": (batch, length)} | (first if is_first else {}), "float32")
    if not is_first:
        inputs |= _features(handed, "float16")
    if is_last:
        return GraphFunction(item.function, inputs, _features({"prediction": latents}, "float32"))
    return GraphFunction(
        item.function, inputs, _features({f"{name}_out": shape for name, shape in handed.items()}, "float16")
    )


def _vae(spec: ModelSpec, recipe: Recipe, source: str, target: str) -> list[GraphFunction]:
    functions = []
    for height, width in recipe.sizes:
        latents = (height // spec.vae.downscale, width // spec.vae.downscale)
        shapes: Shapes = {
            "image": (1, 3, height, width),
            "latents": (1, spec.vae.latent_channels, *latents),
            "moments": (1, 2 * spec.vae.latent_channels, *latents),
        }
        inputs, outputs = ({name: Feature(shapes[name], "float32")} for name in (source, target))
        functions.append(GraphFunction(size_name(height, width), inputs, outputs))
    return functions


def _features(shapes: Shapes, dtype: str) -> dict[str, Feature]:
    return {name: Feature(shape, dtype) for name, shape in shapes.items()}


def _package(name: str, functions: Sequence[GraphFunction]) -> Package:
    return Package(f"{name}.mlpackage", tuple(functions))


def _component(packages: Sequence[Package]) -> Component:
    paths = sorted(f"{package.path}/{file}" for package in packages for file in PACKAGE_FILES)
    return Component(tuple(_describe(path, path.encode()) for path in paths), "float16", 1234)


def _describe(path: str, content: bytes) -> FileInfo:
    return FileInfo(path, len(content), _hash(content))


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def describe(name: str, manifest: Manifest) -> dict[str, Any]:
    """Write a manifest with its name and fingerprint."""
    return {"name": name, "fingerprint": fingerprint(manifest), "manifest": manifest.to_json()}
