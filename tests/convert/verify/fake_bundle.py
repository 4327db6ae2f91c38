"""A bundle for Core ML of which only manifest and stored outputs exist: those of the functions in fake_coreml."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from moddit.graphs import Denoiser, Feature, GraphFunction, Graphs, Package
from moddit.manifest import COMPONENTS, Component, Manifest, Provenance
from moddit.samplers import NoiseSchedule
from moddit.spec import ModelSpec, PixArtSpec, T5Spec, VAESpec
from tests.convert.verify.fake_coreml import LATENTS, PREDICTION, STATES, TEXT, Arrays

SCHEDULER = {"_class_name": "DPMSolverMultistepScheduler", "num_train_timesteps": 1000, "beta_schedule": "linear",
             "beta_start": 0.0001, "beta_end": 0.02, "prediction_type": "v_prediction"}  # fmt: skip
SPEC = ModelSpec(
    transformer=PixArtSpec(2, 2, 4, 4, 4, 2, 8, 8, 6, 1.0, True, 1e-6, False),
    text_encoder=T5Spec(10, 6, 3, 8, 1, 2, 32, 128, True, "gelu_new", 1e-6),
    vae=VAESpec(3, 3, 4, (8, 8), 1, 4, 0.5, 0.0, True, True, False),
    scheduler=NoiseSchedule.from_diffusers(SCHEDULER, "scheduler_config.json"),
    max_sequence_length=12,
)


def package(name: str, function: str, inputs: Mapping[str, int], output: str) -> Package:
    features = {name: Feature((1, size), "float32") for name, size in inputs.items()}
    return Package(f"{name}.mlpackage", (GraphFunction(function, features, {output: Feature((1, 1), "float32")}),))


def make_manifest(folder: Path) -> Manifest:
    """A manifest whose reference.npz is in the folder; its packages are nowhere."""
    save(folder, {**stored("text_encoder/encode", TEXT, STATES),
                    **stored("transformer/px8x8/t999", LATENTS, PREDICTION)})  # fmt: skip
    packages = {
        "text_encoder": (package("Text", "encode", {"input_ids": 4, "text_mask": 4}, "states"),),
        "transformer": (
            package("First", "px8x8", {"latents": 128, "timestep": 1}, "tokens_out"),
            package("Second", "px8x8", {"tokens": 128, "modulation": 1}, "prediction"),
        ),
    }
    denoisers = (Denoiser("px8x8", 8, 8, 1, (0,), (4, 4)),)
    graphs = Graphs({"iOS": "18.0", "macOS": "15.0"}, "cpuAndGPU", "rows", packages, denoisers, None)
    provenance = Provenance("somewhere", "0" * 64, {"moddit": "0"}, "2026-01-01T00:00:00Z")
    return Manifest("coreml", SPEC, None, {name: Component(()) for name in COMPONENTS}, graphs, provenance)


def stored(case: str, inputs: Arrays, output: NDArray[Any]) -> Arrays:
    return {f"{case}/output": output, **{f"{case}/input/{name}": array for name, array in inputs.items()}}


def save(folder: Path, arrays: Arrays) -> None:
    with (folder / "reference.npz").open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
