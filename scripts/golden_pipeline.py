"""Runs of the whole pipeline with a stand-in for the models, for the golden files of the Swift package.

The stand-ins are arithmetic that no two programs can round apart; what is compared is everything around them: tokens,
noise, steps, which function is called with what, guidance, and what the picture's file says.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

import moddit
from moddit.bins import Size
from moddit.conditioning import Label, Text
from moddit.edits import Edit, image_digest
from moddit.graphs import Graphs, StepFunction
from moddit.manifest import Manifest
from moddit.metadata import Metadata, ModelReference
from moddit.noise import NoiseStream
from moddit.pictures import finish_edit, open_edit
from moddit.request import Request
from moddit.samplers import SAMPLERS, SamplerStep, build_table
from moddit.sampling import denoise, guide
from scripts.golden_pictures import pattern

Float32 = NDArray[np.float32]

PROMPT: Final = "A large RED circle on the left, “quoted” "
NEGATIVE: Final = "a small blue square"
VERSIONS: Final = {"moddit": moddit.__version__, "mlx": "0.0"}
MODEL_PATH: Final = "out/bundle"


def make_schedules(bundles: Mapping[str, Manifest]) -> list[dict[str, Any]]:
    """List step, timestep, region, function and capacities of every step, for every size and batch of each bundle."""
    found = []
    for name, manifest in bundles.items():
        graphs = _graphs(manifest)
        cases = product(graphs.sizes, graphs.batches, SAMPLERS, (1, 5))
        for (height, width), batch, sampler, steps in cases:
            rows = []
            for index, step in enumerate(build_table(manifest.spec.scheduler, sampler, steps).steps):
                region = manifest.tokens.plan.region(step.timestep)
                item = graphs.step_function(height, width, batch, region)
                rows.append([index, step.timestep, region, item.function, list(item.capacities)])
            case = {"bundle": name, "height": height, "width": width, "batch": batch, "sampler": sampler}
            found.append({**case, "steps": steps, "rows": rows})
    return found


def make_runs(bundles: Mapping[str, Manifest], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Run every bundle with several samplers, seeds, steps and guidance scales."""
    text = {"prompt": PROMPT, "guidance_scale": 4.5}
    cases: list[tuple[str, dict[str, Any]]] = [
        ("routed", {**text, "seed": 0, "steps": 6, "sampler": "dpmpp-2m"}),
        ("routed", {**text, "seed": 42, "steps": 5, "sampler": "euler", "negative_prompt": NEGATIVE}),
        ("routed", {**text, "seed": 2**64 - 1, "steps": 4, "sampler": "ddim", "guidance_scale": 1.0}),
        ("routed", {**text, "seed": 7, "steps": 3, "sampler": "ddim", "width": 64, "negative_prompt": NEGATIVE}),
        ("dense", {**text, "seed": -1, "steps": 4, "sampler": "euler", "width": 64, "guidance_scale": 7.25}),
        ("dense", {**text, "seed": 3, "steps": 1, "sampler": "dpmpp-2m", "width": 64, "guidance_scale": 0.0}),
        ("chain", {**text, "seed": 11, "steps": 7, "sampler": "ddim", "prompt": "", "negative_prompt": NEGATIVE}),
        ("chain", {**text, "seed": 12, "steps": 2, "sampler": "dpmpp-2m", "guidance_scale": 1.0}),
        ("labels", {"label": 1, "seed": 5, "steps": 4, "sampler": "ddim"}),
        ("labels", {"label": 4, "seed": 6, "steps": 3, "sampler": "dpmpp-2m", "guidance_scale": 1.0}),
        ("routed", {**text, "seed": 13, "steps": 7, "sampler": "dpmpp-2m", "reuse": 2}),
        ("labels", {"label": 2, "seed": 14, "steps": 5, "sampler": "euler", "reuse": 3}),
    ]
    sides = {"height": 32, "width": 32}
    requests = [(name, Request.complete(bundles[name].spec, **(sides | given))) for name, given in cases]
    return [_describe(name, bundles[name], request, tokenizer) for name, request in requests]


def make_edits(bundles: Mapping[str, Manifest], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Run bundles from an image, with and without a mask, in a size of their own choice and in one that is given."""
    text = {"prompt": PROMPT, "guidance_scale": 4.5}
    cases: list[tuple[str, dict[str, Any], Size, bool, float | None, dict[str, int]]] = [
        ("routed", {**text, "seed": 0, "steps": 7, "sampler": "dpmpp-2m"}, (20, 20), False, 0.6, {}),
        ("routed", {**text, "seed": 1, "steps": 4, "sampler": "euler"}, (20, 22), True, None, {}),
        ("chain", {**text, "seed": 2, "steps": 8, "sampler": "ddim", "reuse": 2}, (35, 33), True, 0.5, {}),
        ("routed", {**text, "seed": 3, "steps": 3}, (20, 20), True, None, {"height": 32, "width": 64}),
        ("labels", {"label": 1, "seed": 4, "steps": 3, "sampler": "ddim"}, (8, 8), False, None, {}),
    ]
    found = []
    for name, settings, (height, width), is_masked, strength, sides in cases:
        spec = bundles[name].spec
        mask = (np.add.outer(2 * np.arange(height), np.arange(width)) % 23 < 9) if is_masked else None
        edit = open_edit(spec, pattern(height, width), mask, **sides)
        assert edit is not None
        request = Request.complete(spec, **settings, edit=edit, strength=strength)
        described = _describe(name, bundles[name], request, tokenizer, edit)
        given = {"height": height, "width": width, "is_masked": is_masked, "is_sized": bool(sides)}
        found.append({**described, "edit": {**given, "strength": strength}})
    return found


def _describe(
    name: str, manifest: Manifest, request: Request, tokenizer: Tokenizer, edit: Edit | None = None
) -> dict[str, Any]:
    rows = encode(manifest, request, tokenizer)
    run = _Run(manifest, request, rows, edit)
    final = run.denoise()
    written = metadata(manifest, request)
    return {
        "bundle": name,
        "settings": request.to_json(),
        "ids": rows.tolist(),
        "calls": run.calls,
        "final": [float(str(value)) for value in final.reshape(-1)],
        "picture": None if edit is None else image_digest(finish_edit(edit, decode(manifest, final))),
        "metadata": json.dumps(written.to_json(), sort_keys=True),
        "parameters": written.describe(),
    }


def encode(manifest: Manifest, request: Request, tokenizer: Tokenizer) -> NDArray[np.int32]:
    """Number what the rows are conditioned on, the negative one first: tokens of texts padded with 0, or classes."""
    return CONDITIONINGS[manifest.spec.conditioning.KIND](manifest, request.rows(manifest.spec), tokenizer)


def _encode_texts(manifest: Manifest, texts: tuple[str, ...], tokenizer: Tokenizer) -> NDArray[np.int32]:
    length = manifest.spec.text_tokens
    tokenizer.no_padding()
    tokenizer.enable_truncation(length)
    rows = [tokenizer.encode(text.lower().strip()).ids for text in texts]
    return np.array([row + [0] * (length - len(row)) for row in rows], np.int32)


def _encode_labels(_: Manifest, numbers: tuple[int, ...], __: Tokenizer) -> NDArray[np.int32]:
    return np.array(numbers, np.int32)[:, None]


CONDITIONINGS: Final[Mapping[str, Callable[[Manifest, Any, Tokenizer], NDArray[np.int32]]]] = {
    Text.KIND: _encode_texts,
    Label.KIND: _encode_labels,
}


def decode(manifest: Manifest, latents: Float32) -> NDArray[np.uint8]:
    """Stand in for a decoder: a pixel is a third of its latent's value. Shapes: (1, C, h, w) -> (H, W, 3)."""
    planes = latents[0, :3].repeat(manifest.spec.vae.downscale, axis=1).repeat(manifest.spec.vae.downscale, axis=2)
    values = (planes / np.float32(3) / 2 + np.float32(0.5)).clip(0, 1) * 255
    return np.round(values).astype(np.uint8).transpose(1, 2, 0)


def metadata(manifest: Manifest, request: Request) -> Metadata:
    """Say what a picture's file says, with versions that do not change."""
    return Metadata(request, ModelReference.of(manifest, MODEL_PATH), "float16", VERSIONS)


@dataclass
class _Run:
    """One run; every call of a step's function is noted."""

    manifest: Manifest
    request: Request
    ids: NDArray[np.int32]  # (rows, L)
    edit: Edit | None = None
    calls: list[Any] = field(default_factory=list)

    def denoise(self) -> Float32:
        """Run all steps. Shapes: -> (1, C, h, w) float32."""
        spec, request = self.manifest.spec, self.request
        sides = (request.height // spec.vae.downscale, request.width // spec.vae.downscale)
        shape = (1, spec.transformer.latent_channels, *sides)
        stream = NoiseStream(request.seed)
        image = None if self.edit is None else self._sample(self.edit, stream.normal(shape))
        mask = None if self.edit is None else self.edit.latent_mask(spec.vae.downscale)
        marked = None if mask is None else mask.transpose(0, 3, 1, 2)

        def predict(_: int, step: SamplerStep, x: Float32) -> Float32:
            rows = self._predict(x, step.timestep)
            guided: Float32 = guide(np.split(rows, len(rows)), request.guidance_scale)
            return guided

        *_, last = denoise(request.table(spec), stream.normal(shape), predict, image, marked)
        latents: Float32 = last.latents
        assert latents.dtype == np.float32
        return latents

    def _sample(self, edit: Edit, noise: Float32) -> Float32:
        """Stand in for an encoder: means are every so many pixels of the image's planes, logarithms of variances 0."""
        vae = self.manifest.spec.vae
        cells = edit.pixels()[:, :: vae.downscale, :: vae.downscale].transpose(0, 3, 1, 2)
        means = cells[:, [channel % 3 for channel in range(noise.shape[1])]]
        sample: Float32 = (means + noise - np.float32(vae.shift_factor)) * np.float32(vae.scaling_factor)
        return sample

    def _predict(self, x: Float32, timestep: float) -> Float32:
        """Predict for every text: in one call of batch 2 if the bundle has it, else in calls of batch 1.

        Where there is only batch 2 and only one text, it is there twice. Shapes: x (1, C, h, w) -> (rows, C, h, w)
        """
        graphs, rows = _graphs(self.manifest), len(self.ids)
        batch = rows if rows in graphs.batches else 2 if rows == 1 else 1
        region = self.manifest.tokens.plan.region(timestep)
        item = graphs.step_function(self.request.height, self.request.width, batch, region)
        groups = [[row] for row in range(rows)] if batch == 1 else [[0, rows - 1]]
        return np.concatenate([self._call(item, x, timestep, group) for group in groups])

    def _call(self, item: StepFunction, x: Float32, timestep: float, texts: list[int]) -> Float32:
        x = np.concatenate([x] * len(texts))
        weights = self._sums()[texts]
        shares = [float(value) for value in weights]
        ends = [float(str(value)) for value in (*x[0].reshape(-1)[:2], *x[-1].reshape(-1)[-2:])]
        self.calls.append([item.function, timestep, shares, ends])
        t = np.float32(timestep) / np.float32(1000)
        base: Float32 = (np.float32(0.5) * x + t) / (np.float32(1) + x * x)
        offset = weights + np.float32(sum(item.capacities) / 1024) + self._size_sum()
        return base + offset[:, None, None, None]

    def _sums(self) -> Float32:
        """Stand in for what the rows are conditioned on, (rows,): exact numbers that tokens or classes give."""
        if not isinstance(self.manifest.spec.conditioning, Text):
            return (self.ids[:, 0] / 16).astype(np.float32)
        # of text states (rows, L, D), ids * (channel + 1) % 17 / 16: their sum over tokens / 256
        channels = np.arange(1, self.manifest.spec.conditioning.encoder.d_model + 1)
        states = (self.ids[:, :, None] * channels) % 17 / 16 * (self.ids != 0)[:, :, None]
        return (states.sum((1, 2)) / 256).astype(np.float32)

    def _size_sum(self) -> np.float32:
        if not self.manifest.spec.transformer.size_features(1, 1):
            return np.float32(0)
        height, width = self.request.height, self.request.width
        return np.float32((height + 2 * width) / 1024 + height / width)


def _graphs(manifest: Manifest) -> Graphs:
    assert manifest.graphs is not None
    return manifest.graphs
