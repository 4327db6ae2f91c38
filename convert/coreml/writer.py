"""Writes a description as a bundle for Core ML: packages, tokenizer, and what the manifest says of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

import coremltools as ct
import numpy as np
from numpy.typing import NDArray

from convert.coreml.compress import BLOCK, GROUP, Scheme
from convert.coreml.package import save_package
from convert.coreml.recipe import Recipe, Routing, Size
from convert.coreml.routing import MAX_ONEHOT_TOKENS
from convert.coreml.target import COMPUTE_UNITS, MINIMUM_OS
from convert.coreml.text_encoder import build_text_encoder
from convert.coreml.transformer import TransformerGraph
from convert.coreml.vae import build_decoder, build_encoder
from convert.coreml.variants import list_functions, merge_rows
from convert.coreml.weights import Weights
from convert.output import Written
from moddit.bounds import BATCH, SIDE, TOKENS
from moddit.checkpoint.description import Description
from moddit.errors import ValueRangeError
from moddit.files import check_space
from moddit.graphs import Graphs, Package, size_name
from moddit.manifest import Component, Quantization, describe_file
from moddit.routing import RoutingPlan
from moddit.spec import ModelSpec

BACKEND: Final = "coreml"
TOKENIZER_PATH: Final = "tokenizer.json"
OVERHEAD_BYTES: Final = (
    64 << 20
)  # graphs, references and manifest, estimated from above; weights exist twice for a while

Advance = Callable[[int], object]  # told how many more bytes of the source are done
Values = Callable[[str], NDArray[np.float32]]


def write_packages(
    description: Description, folder: Path, recipe: Recipe, advance: Advance
) -> tuple[Written, dict[str, Values]]:
    """Write everything but the manifest into an empty folder.

    Returns:
        what was written and, for each component, a function from canonical names to the weights it computes with.

    Raises:
        ShapeError, ValueRangeError: a size, a chunk count or a function count that this model cannot have, or weights
            that are not finite.
        StorageError: the disk has not enough room.
        OSError: it cannot be written.
    """
    spec = description.spec
    sizes = recipe.sizes or ((spec.default_side, spec.default_side),)
    _check_recipe(spec, recipe, sizes)
    check_space(folder, 2 * sum(part.nbytes for part in description.parts.values()) + OVERHEAD_BYTES)
    weights = {name: Weights(name, part, recipe.scheme, advance) for name, part in description.parts.items()}
    plan, notes = _merge(description, recipe, sizes)
    functions = list_functions(spec, plan, sizes, recipe.batches)
    graph = TransformerGraph(spec.transformer, weights["transformer"], spec.max_sequence_length, recipe.routing)
    programs = graph.programs([variant for variant, _ in functions], recipe.chunks)
    frames = [(size_name(*size), *size) for size in sizes]
    (folder / TOKENIZER_PATH).write_bytes(description.tokenizer)
    encoder, vae = weights["text_encoder"], weights["vae"]
    packages = {
        "text_encoder": (
            save_package(
                build_text_encoder(spec.text_encoder, encoder, spec.max_sequence_length),
                folder / "TextEncoder.mlpackage",
                "T5 text encoder",
            ),
        ),
        "transformer": tuple(
            save_package(program, folder / name, "PixArt diffusion transformer, one denoising step")
            for program, name in zip(programs, _chunk_names(recipe.chunks), strict=True)
        ),
        "vae_decoder": (
            save_package(build_decoder(spec.vae, vae, frames), folder / "VAEDecoder.mlpackage", "VAE decoder"),
        ),
        "vae_encoder": (
            save_package(build_encoder(spec.vae, vae, frames), folder / "VAEEncoder.mlpackage", "VAE encoder"),
        ),
    }
    graphs = Graphs(
        minimum_os=MINIMUM_OS,
        compute_units=COMPUTE_UNITS if recipe.routing is Routing.ROWS else "all",
        routing=recipe.routing.value,
        packages=packages,
        denoisers=tuple(denoiser for _, denoiser in functions),
        trained_plan=description.plan if plan != description.plan else None,
    )
    components = _components(description, folder, recipe, packages, weights)
    written = Written(BACKEND, components, plan, graphs, {"coremltools": ct.__version__}, notes)
    return written, {name: item.values for name, item in weights.items()}


def _check_recipe(spec: ModelSpec, recipe: Recipe, sizes: Iterable[Size]) -> None:
    layers = spec.transformer.num_layers
    if not 1 <= recipe.chunks <= layers:
        raise ValueRangeError(f"[coreml] chunks out of range, got {recipe.chunks}, want 1..{layers}, the layers")
    if not all(1 <= batch <= BATCH for batch in recipe.batches):
        raise ValueRangeError(f"[coreml] batch out of range, got {recipe.batches}, want 1..{BATCH}")
    for height, width in sizes:
        tokens = (height * width) // spec.pixels_per_patch**2
        if max(height, width) > SIDE or tokens > TOKENS:
            raise ValueRangeError(
                f"[coreml] size {height}x{width} is out of range, got {tokens} tokens, want sides of at most {SIDE} "
                f"pixels and {TOKENS} tokens"
            )
        if recipe.routing is Routing.ONEHOT and tokens > MAX_ONEHOT_TOKENS:
            raise ValueRangeError(
                f"[coreml] routing onehot is exact up to {MAX_ONEHOT_TOKENS} tokens, got {tokens} at {height}x{width} "
                "pixels; use --routing rows, or a smaller --size"
            )


def _merge(
    description: Description, recipe: Recipe, sizes: tuple[Size, ...]
) -> tuple[RoutingPlan | None, tuple[str, ...]]:
    """Reduce the plan's rows if asked; say what it cost."""
    plan, spec = description.plan, description.spec
    if plan is None or recipe.max_functions is None:
        return plan, () if recipe.max_functions is None else ("--max-functions does nothing to a dense model",)
    tokens = (sizes[0][0] * sizes[0][1]) // spec.pixels_per_patch**2
    merge = merge_rows(
        spec.transformer,
        plan,
        recipe.max_functions,
        tokens=tokens,
        text_tokens=spec.max_sequence_length,
        allow_fewer=recipe.allow_fewer,
    )
    note = (
        f"{len(plan.rows())} rows of capacities became {len(merge.plan.rows())}: "
        f"{100 * merge.flops_change:+.1f} % block FLOPs, mean keep ratio {plan.mean_keep_ratio:.3f} -> "
        f"{merge.plan.mean_keep_ratio:.3f}"
    )
    return merge.plan, () if merge.plan == plan else (note,)


def _chunk_names(chunks: int) -> list[str]:
    if chunks == 1:
        return ["Transformer.mlpackage"]
    return [f"Transformer{number}of{chunks}.mlpackage" for number in range(1, chunks + 1)]


def _components(
    description: Description,
    folder: Path,
    recipe: Recipe,
    packages: Mapping[str, tuple[Package, ...]],
    weights: Mapping[str, Weights],
) -> dict[str, Component]:
    roles = {"transformer": ("transformer",), "text_encoder": ("text_encoder",), "vae": ("vae_decoder", "vae_encoder")}
    components = {}
    for name, part in description.parts.items():
        paths = [package.path for role in roles[name] for package in packages[role]]
        files = sorted(file for path in paths for file in (folder / path).rglob("*") if file.is_file())
        infos = tuple(describe_file(folder, file.relative_to(folder).as_posix()) for file in files)
        components[name] = Component(infos, "float16", part.parameters, _quantization(recipe.scheme, weights[name]))
    components["tokenizer"] = Component((describe_file(folder, TOKENIZER_PATH),))
    return components


def _quantization(scheme: Scheme, weights: Weights) -> Quantization | None:
    if not weights.compressed:
        return None
    size = GROUP if scheme.is_palette else BLOCK if scheme is Scheme.INT4 else 0
    return Quantization(scheme.bits, size, "palette" if scheme.is_palette else "symmetric", weights.compressed)
