"""A bundle for Core ML of which only manifest and stored outputs exist: those of the functions in fake_coreml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convert.verify.stored import store
from moddit.conditioning import Text
from moddit.graphs import Feature, GraphFunction, Graphs, Package, StepFunction
from moddit.manifest import Component, Manifest, Provenance
from moddit.models.pixart import PixArtSpec
from moddit.models.t5 import T5Spec
from moddit.models.vae import VAESpec
from moddit.samplers import NoiseSchedule
from moddit.spec import ModelSpec
from moddit.tokens import TokenPolicy
from tests.convert.verify.fake_coreml import LATENTS, NOISE, PREDICTION, STATES, TEXT, Arrays

SCHEDULER = {"_class_name": "DPMSolverMultistepScheduler", "num_train_timesteps": 1000, "beta_schedule": "linear",
             "beta_start": 0.0001, "beta_end": 0.02, "prediction_type": "v_prediction"}  # fmt: skip
ONE = np.ones(1, np.float32)
SPEC = ModelSpec(
    transformer=PixArtSpec(2, 2, 4, 4, 4, 2, 8, 8, 6, 1.0, True, 1e-6, False),
    conditioning=Text(T5Spec(10, 6, 3, 8, 1, 2, 32, 128, True, "gelu_new", 1e-6), 12),
    vae=VAESpec(3, 3, 4, (8, 8), 1, 4, 0.5, 0.0, True, True, False),
    scheduler=NoiseSchedule.from_diffusers(SCHEDULER, "scheduler_config.json"),
)
DENSE = TokenPolicy.dense(2, 1000)


def package(name: str, function: str, inputs: Arrays, outputs: Arrays) -> Package:
    features = [
        {key: Feature(array.shape, array.dtype.name) for key, array in arrays.items()} for arrays in (inputs, outputs)
    ]
    return Package(f"{name}.mlpackage", (GraphFunction(function, *features),))


def make_manifest(folder: Path) -> Manifest:
    """A manifest whose reference.npz is in the folder; its packages are nowhere."""
    packages = {
        "text_encoder": (package("Text", "encode", TEXT, {"states": STATES}),),
        "transformer": (
            package("First", "px8x8", LATENTS, {"tokens_out": NOISE, "modulation_out": ONE}),
            package("Second", "px8x8", {"tokens": NOISE, "modulation": ONE}, {"prediction": PREDICTION}),
        ),
    }
    steps = (StepFunction("px8x8", 8, 8, 1, (0,), (4, 4)),)
    graphs = Graphs({"iOS": "18.0", "macOS": "15.0"}, "cpuAndGPU", "rows", packages, steps, DENSE.plan)
    arrays = {**stored("text_encoder/encode", TEXT, STATES), **stored("transformer/px8x8/t999", LATENTS, PREDICTION)}
    store(folder, SPEC, DENSE, graphs, arrays)
    provenance = Provenance("somewhere", "0" * 64, {"moddit": "0"}, "2026-01-01T00:00:00Z")
    components = {name: Component(()) for name in SPEC.components}
    return Manifest("0" * 64, "coreml", SPEC, DENSE, components, graphs, provenance)


def stored(case: str, inputs: Arrays, output: NDArray[Any]) -> Arrays:
    return {f"{case}/output": output, **{f"{case}/input/{name}": array for name, array in inputs.items()}}
