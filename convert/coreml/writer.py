"""Writes a description as a bundle for Core ML: packages, tokenizer, and what the manifest says of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Final

import coremltools as ct
import numpy as np
from coremltools.converters.mil.mil import Program
from numpy.typing import NDArray

from convert.coreml.architectures import TRANSFORMERS
from convert.coreml.choices import Choices, Routing
from convert.coreml.compress import BLOCK, GROUP, Scheme
from convert.coreml.package import COMPUTE_UNITS, MINIMUM_OS, save_package
from convert.coreml.routing import MAX_ONEHOT_TOKENS
from convert.coreml.t5 import build_t5
from convert.coreml.transformer import TransformerGraph
from convert.coreml.vae import build_decoder, build_encoder
from convert.coreml.variants import list_functions, merge_rows
from convert.coreml.weights import Weights
from convert.output import Written
from moddit.bins import Size
from moddit.bounds import BATCH, SIDE, TOKENS
from moddit.checkpoint.description import Description
from moddit.conditioning import Label, Text
from moddit.contract import PREPARE, TEXT_ENCODER, package_names, size_name
from moddit.errors import UnsupportedError, ValueRangeError
from moddit.files import check_space
from moddit.graphs import ROLES, Graphs, Package, StepFunction, package_roles
from moddit.manifest import Component, describe_file
from moddit.quantization import Quantization
from moddit.routing import RoutingPlan
from moddit.spec import ModelSpec
from moddit.tokens import TokenPolicy

BACKEND: Final = "coreml"
OVERHEAD_BYTES: Final = 64 << 20  # graphs, references and manifest, estimated from above

Advance = Callable[[int], object]  # told how many more bytes of the source are done
Values = Callable[[str], NDArray[np.float32]]


def write_packages(
    description: Description, folder: Path, choices: Choices, scratch: IO[bytes], advance: Advance
) -> tuple[Written, dict[str, Values]]:
    """Write everything but the manifest into an empty folder.

    Compressed weights wait in the file `scratch`, on the same disk, which has to be open as long as the functions that
    are returned are called.

    Returns:
        what was written and, for each component, a function from canonical names to the weights it computes with.

    Raises:
        UnsupportedError: the model inpaints.
        ShapeError, ValueRangeError: a size, a chunk count or a function count that this model cannot have, or weights
            that are not finite.
        StorageError: the disk has not enough room.
        OSError: it cannot be written.
    """
    spec = description.spec
    sizes = choices.sizes or ((spec.default_side, spec.default_side),)
    _check_choices(spec, choices, sizes)
    # weights exist twice for a while
    check_space(folder, 2 * sum(part.nbytes for part in description.parts.values()) + OVERHEAD_BYTES)
    weights = {name: Weights(name, part, choices.scheme, scratch, advance) for name, part in description.parts.items()}
    raised = description.policy.keeping(choices.keep)
    plan, notes = _merge(spec, raised, choices, sizes)
    policy = replace(raised, plan=plan)
    functions = list_functions(spec, plan, sizes, choices.batches)
    graph = TRANSFORMERS[spec.transformer.ARCHITECTURE](spec, policy, weights["transformer"], choices.routing)
    frames = [(size_name(*size), *size) for size in sizes]
    for name, content in description.documents.items():
        (folder / f"{name}.json").write_bytes(content)
    vae = weights["vae"]
    packages = {
        **CONDITIONINGS[spec.conditioning.KIND](spec.conditioning, weights, folder),
        **_save_transformer(folder, spec, graph, functions, choices),
        **_save(folder, "vae_decoder", [build_decoder(spec.vae, vae, frames)], "VAE decoder"),
        **_save(folder, "vae_encoder", [build_encoder(spec.vae, vae, frames)], "VAE encoder"),
    }
    graphs = Graphs(
        minimum_os=MINIMUM_OS,
        compute_units=COMPUTE_UNITS if choices.routing is Routing.ROWS else "all",
        routing=choices.routing.value,
        packages=packages,
        step_functions=tuple(functions),
        trained_plan=description.policy.plan,
    )
    components = _components(description, folder, choices, packages, weights)
    written = Written(BACKEND, components, policy, graphs, {"coremltools": ct.__version__}, notes)
    return written, {name: item.values for name, item in weights.items()}


def _save(folder: Path, role: str, programs: Sequence[Program], summary: str) -> dict[str, tuple[Package, ...]]:
    names = zip(programs, package_names(role, len(programs)), strict=True)
    return {role: tuple(save_package(program, folder / name, summary) for program, name in names)}


def _save_transformer(
    folder: Path, spec: ModelSpec, graph: TransformerGraph, functions: Sequence[StepFunction], choices: Choices
) -> dict[str, tuple[Package, ...]]:
    title = f"{spec.transformer.TITLE} diffusion transformer"
    packages = {}
    if PREPARE in package_roles(spec):
        packages = _save(folder, PREPARE, [graph.prepare_program(choices.batches)], f"{title}, once a picture")
    programs = graph.programs(functions, choices.chunks)
    return {**packages, **_save(folder, "transformer", programs, f"{title}, one denoising step")}


def _save_t5(text: Text, weights: Mapping[str, Weights], folder: Path) -> dict[str, tuple[Package, ...]]:
    program = build_t5(text.encoder, weights[TEXT_ENCODER], text.max_sequence_length)
    return {TEXT_ENCODER: (save_package(program, folder / package_names(TEXT_ENCODER)[0], "T5 text encoder"),)}


# How the packages are written that only some models have, by what a model is conditioned on.
CONDITIONINGS: Final[Mapping[str, Callable[[Any, Mapping[str, Weights], Path], dict[str, tuple[Package, ...]]]]] = {
    Text.KIND: _save_t5,
    Label.KIND: lambda _, __, ___: {},
}


def _check_choices(spec: ModelSpec, choices: Choices, sizes: Iterable[Size]) -> None:
    if spec.transformer.inpaints:
        raise UnsupportedError(
            f"[coreml] in_channels {spec.transformer.in_channels} is of a model that inpaints, which Core ML has not "
            "yet; want --to mlx, or a model that draws whole pictures"
        )
    layers = spec.transformer.num_layers
    if not 1 <= choices.chunks <= layers:
        raise ValueRangeError(f"[coreml] chunks out of range, got {choices.chunks}, want 1..{layers}, the layers")
    if not all(1 <= batch <= BATCH for batch in choices.batches):
        raise ValueRangeError(f"[coreml] batch out of range, got {choices.batches}, want 1..{BATCH}")
    for height, width in sizes:
        tokens = (height * width) // spec.pixels_per_patch**2
        if max(height, width) > SIDE or tokens > TOKENS:
            raise ValueRangeError(
                f"[coreml] size {height}x{width} is out of range, got {tokens} tokens, want sides of at most {SIDE} "
                f"pixels and {TOKENS} tokens"
            )
        if choices.routing is Routing.ONEHOT and tokens > MAX_ONEHOT_TOKENS:
            raise ValueRangeError(
                f"[coreml] routing onehot is exact up to {MAX_ONEHOT_TOKENS} tokens, got {tokens} at {height}x{width} "
                "pixels; use --routing rows, or a smaller --size"
            )


def _merge(
    spec: ModelSpec, policy: TokenPolicy, choices: Choices, sizes: tuple[Size, ...]
) -> tuple[RoutingPlan, tuple[str, ...]]:
    """Reduce the plan's rows if asked; say what it cost."""
    plan = policy.plan
    if choices.max_functions is None:
        return plan, ()
    if policy.is_dense:
        return plan, ("--max-functions does nothing to a dense model",)
    tokens = (sizes[0][0] * sizes[0][1]) // spec.pixels_per_patch**2
    merged, flops_change = merge_rows(
        spec.transformer,
        plan,
        choices.max_functions,
        tokens=tokens,
        text_tokens=spec.text_tokens,
        allow_fewer=choices.allow_fewer,
    )
    note = (
        f"{len(plan.rows())} rows of capacities became {len(merged.rows())}: "
        f"{100 * flops_change:+.1f} % block FLOPs, mean keep ratio {plan.mean_keep_ratio:.3f} -> "
        f"{merged.mean_keep_ratio:.3f}"
    )
    return merged, () if merged == plan else (note,)


def _components(
    description: Description,
    folder: Path,
    choices: Choices,
    packages: Mapping[str, tuple[Package, ...]],
    weights: Mapping[str, Weights],
) -> dict[str, Component]:
    components = {}
    for name, part in description.parts.items():
        paths = [package.path for role in ROLES[name] for package in packages.get(role, ())]
        files = sorted(file for path in paths for file in (folder / path).rglob("*") if file.is_file())
        infos = tuple(describe_file(folder, file.relative_to(folder).as_posix()) for file in files)
        components[name] = Component(infos, "float16", part.parameters, _quantization(choices.scheme, weights[name]))
    for name in description.documents:
        components[name] = Component((describe_file(folder, f"{name}.json"),))
    return components


def _quantization(scheme: Scheme, weights: Weights) -> tuple[Quantization, ...]:
    if not weights.compressed:
        return ()
    size = GROUP if scheme.is_palette else BLOCK if scheme is Scheme.INT4 else 0
    return (Quantization(scheme.bits, size, "palette" if scheme.is_palette else "symmetric", weights.compressed),)
