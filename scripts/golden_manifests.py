"""Manifests of small Core ML bundles as the converter writes them, for the golden files of the Swift package.

The model is tiny; every file but the tokenizer holds its own path as text, so that a test can write a whole bundle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from moddit.conditioning import Conditioning, Label, Text
from moddit.contract import PREPARE, package_names, step_name
from moddit.cost import step_flops
from moddit.graphs import (
    ROLES,
    GraphFunction,
    Graphs,
    Package,
    StepFunction,
    encoder_function,
    package_roles,
    prepare_function,
    step_features,
    vae_function,
)
from moddit.manifest import Component, FileInfo, Manifest, Provenance, fingerprint
from moddit.models.dit import DiTSpec
from moddit.models.pixart import PixArtSpec
from moddit.models.t5 import T5Spec
from moddit.models.transformer import TransformerSpec
from moddit.models.vae import VAESpec
from moddit.quantization import Quantization
from moddit.routing import RoutingPlan
from moddit.samplers import NoiseSchedule
from moddit.spec import ModelSpec
from moddit.tokens import TokenPolicy

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


PIXART: Final = PixArtSpec(3, 2, 8, 4, 8, 2, 8, 16, 8, 1.0, True, 1e-6, False)
DIT: Final = DiTSpec(3, 2, 8, 4, 8, 2, 8, 5, True, 1e-5)
TEXT: Final = Text(T5Spec(64, 8, 4, 16, 1, 2, 32, 128, True, "gelu_new", 1e-6), 12)
VAE: Final = VAESpec(3, 3, 4, (8, 8, 8), 1, 4, 0.18215, 0.0, True, True, True)


@dataclass(frozen=True)
class Case:
    """What differs between the bundles."""

    policy: TokenPolicy
    sampler: str
    spacing: str
    sizes: tuple[tuple[int, int], ...]
    batches: tuple[int, ...]
    chunks: int = 1
    transformer: TransformerSpec = PIXART
    conditioning: Conditioning = TEXT
    trained_plan: RoutingPlan | None = None  # by default the policy's
    compute_units: str = "cpuAndGPU"
    routing: str = "rows"
    quantization: tuple[Quantization, ...] = ()


CASES: Final = {
    "routed": Case(TokenPolicy.topk(ROUTED_PLAN), "dpmpp-2m", "linspace", (SMALL, WIDE), (2, 1)),
    "dense": Case(
        TokenPolicy.dense(3, 1000),
        "euler",
        "leading",
        (WIDE,),
        (1,),
        transformer=replace(PIXART, use_additional_conditions=True),
    ),
    "labels": Case(
        TokenPolicy.topk(ROUTED_PLAN),
        "ddim",
        "leading",
        (SMALL,),
        (2,),
        chunks=2,
        transformer=DIT,
        conditioning=Label(("tench, Tinca tinca", "golden retriever", "red fox, Vulpes vulpes", "daisy", "")),
    ),
    "chain": Case(
        TokenPolicy.topk(MERGED_PLAN),
        "ddim",
        "trailing",
        (SMALL,),
        (2,),
        chunks=2,
        trained_plan=TRAINED_PLAN,
        compute_units="all",
        routing="onehot",
        quantization=(Quantization(4, 16, "palette", ("proj_out.weight",)),),
    ),
}


def make_bundles(tokenizer: Path) -> dict[str, Manifest]:
    """Make the manifests, by name; each has been read back from its JSON, which checks it."""
    bundles = {name: _make(case, tokenizer.read_bytes()) for name, case in CASES.items()}
    return {name: Manifest.from_json(json.loads(json.dumps(item.to_json())), name) for name, item in bundles.items()}


def _make(case: Case, tokenizer: bytes) -> Manifest:
    spec = ModelSpec(case.transformer, case.conditioning, VAE, _schedule(case))
    functions = _step_functions(spec, case)
    packages = {role: _packages(role, spec, case, functions) for role in package_roles(spec)}
    plan = case.policy.plan
    graphs = Graphs(MINIMUM_OS, case.compute_units, case.routing, packages, functions, case.trained_plan or plan)
    components = {
        name: _component([item for role in ROLES[name] for item in packages.get(role, ())])
        for name in spec.components
        if name in ROLES
    }
    components["transformer"] = replace(components["transformer"], quantization=case.quantization)
    if "tokenizer" in spec.components:
        components["tokenizer"] = Component((_describe(TOKENIZER_PATH, tokenizer),))
    made = Provenance("shapes – tiny", _hash(b"tiny"), {"moddit": "0.1.0"}, "2026-11-25T00:00:00+00:00")
    known = fingerprint(spec, case.policy, components)
    return Manifest(known, "coreml", spec, case.policy, components, graphs, made)


def _schedule(case: Case) -> NoiseSchedule:
    return NoiseSchedule(
        num_train_timesteps=case.policy.plan.num_train_timesteps,
        beta_schedule="linear",
        beta_start=0.0001,
        beta_end=0.02,
        prediction_type="epsilon",
        timestep_spacing=case.spacing,
        steps_offset=0,
        set_alpha_to_one=True,
        sampler=case.sampler,
    )


def _step_functions(spec: ModelSpec, case: Case) -> tuple[StepFunction, ...]:
    plan, found = case.policy.plan, []
    for height, width in case.sizes:
        tokens = spec.transformer.tokens(height // spec.vae.downscale, width // spec.vae.downscale)
        for batch in case.batches:
            for row in plan.rows():
                regions = tuple(region for region in range(plan.regions) if plan.row(region) == row)
                name = step_name(height, width, batch, regions)
                kept = plan.capacities(regions[0], tokens)
                found.append(StepFunction(name, height, width, batch, regions, kept))
    return tuple(found)


def _packages(role: str, spec: ModelSpec, case: Case, functions: Sequence[StepFunction]) -> tuple[Package, ...]:
    names = package_names(role, case.chunks if role == "transformer" else 1)
    last = len(names) - 1
    return tuple(
        Package(name, tuple(_functions(role, spec, case, functions, is_first=number == 0, is_last=number == last)))
        for number, name in enumerate(names)
    )


def _functions(
    role: str, spec: ModelSpec, case: Case, functions: Sequence[StepFunction], *, is_first: bool, is_last: bool
) -> list[GraphFunction]:
    if role == "transformer":
        return [step_features(spec, item, is_first=is_first, is_last=is_last) for item in functions]
    if role == PREPARE:
        return [prepare_function(spec, batch) for batch in case.batches]
    if role in spec.conditioning.features():
        return [encoder_function(spec, role, "encode")]
    return [vae_function(spec, role, *size) for size in case.sizes]


def _component(packages: Sequence[Package]) -> Component:
    paths = sorted(f"{package.path}/{file}" for package in packages for file in PACKAGE_FILES)
    return Component(tuple(_describe(path, path.encode()) for path in paths), "float16", 1234)


def _describe(path: str, content: bytes) -> FileInfo:
    return FileInfo(path, len(content), _hash(content))


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def describe(name: str, manifest: Manifest) -> dict[str, Any]:
    """Write a manifest with its name, and what a call of each step function computes."""
    return {"name": name, "manifest": manifest.to_json(), "step_flops": _count_flops(manifest)}


def _count_flops(manifest: Manifest) -> dict[str, int]:
    spec, graphs = manifest.spec, manifest.graphs
    assert graphs is not None
    found = {}
    for item in graphs.step_functions:
        tokens = spec.transformer.tokens(item.height // spec.vae.downscale, item.width // spec.vae.downscale)
        once = step_flops(spec.transformer, manifest.tokens, item.regions[0], tokens, spec.text_tokens)
        found[item.function] = item.batch * once
    return found
