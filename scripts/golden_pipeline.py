"""Runs of the whole pipeline with a stand-in for the models, for the golden files of the Swift package.

The stand-ins are arithmetic that no two programs can round apart; what is compared is everything around them: tokens,
noise, steps, which function is called with what, guidance, and what the picture's file says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

import moddit
from moddit.graphs import Denoiser, Graphs
from moddit.manifest import Manifest
from moddit.noise import torch_randn
from moddit.samplers import SAMPLERS, build_table
from scripts.golden_manifests import fingerprint

Float32 = NDArray[np.float32]
Settings = dict[str, Any]

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
                region = manifest.plan.region(step.timestep) if manifest.plan else 0
                item = graphs.denoiser(height, width, batch, region)
                rows.append([index, step.timestep, region, item.function, list(item.capacities)])
            case = {"bundle": name, "height": height, "width": width, "batch": batch, "sampler": sampler}
            found.append({**case, "steps": steps, "rows": rows})
    return found


def make_runs(bundles: Mapping[str, Manifest], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Run every bundle with several samplers, seeds, steps and guidance scales."""
    cases = [
        ("routed", _settings(seed=0, steps=6, sampler="dpmpp-2m")),
        ("routed", _settings(seed=42, steps=5, sampler="euler", negative_prompt=NEGATIVE)),
        ("routed", _settings(seed=2**64 - 1, steps=4, sampler="ddim", guidance_scale=1.0)),
        ("routed", _settings(seed=7, steps=3, sampler="ddim", width=64, negative_prompt=NEGATIVE)),
        ("dense", _settings(seed=-1, steps=4, sampler="euler", width=64, guidance_scale=7.25)),
        ("dense", _settings(seed=3, steps=1, sampler="dpmpp-2m", width=64, guidance_scale=0.0)),
        ("chain", _settings(seed=11, steps=7, sampler="ddim", prompt="", negative_prompt=NEGATIVE)),
        ("chain", _settings(seed=12, steps=2, sampler="dpmpp-2m", guidance_scale=1.0)),
    ]
    return [_describe(name, bundles[name], settings, tokenizer) for name, settings in cases]


def _settings(**changes: Any) -> Settings:
    defaults = {"prompt": PROMPT, "negative_prompt": "", "guidance_scale": 4.5, "height": 32, "width": 32}
    return {**defaults, **changes}


def _describe(name: str, manifest: Manifest, settings: Settings, tokenizer: Tokenizer) -> dict[str, Any]:
    ids = encode(manifest, settings, tokenizer)
    run = _Run(manifest, settings, ids)
    final = run.denoise()
    return {
        "bundle": name,
        "settings": settings,
        "ids": ids.tolist(),
        "calls": run.calls,
        "final": [float(str(value)) for value in final.reshape(-1)],
        "metadata": metadata(manifest, settings),
        "parameters": parameters(manifest, settings),
    }


def encode(manifest: Manifest, settings: Settings, tokenizer: Tokenizer) -> NDArray[np.int32]:
    """Tokens of the texts, negative prompt first if guided, padded with 0 to the bundle's length."""
    length = manifest.spec.max_sequence_length
    tokenizer.no_padding()
    tokenizer.enable_truncation(length)
    texts = (settings["negative_prompt"], settings["prompt"]) if is_guided(settings) else (settings["prompt"],)
    rows = [tokenizer.encode(text.lower().strip()).ids for text in texts]
    return np.array([row + [0] * (length - len(row)) for row in rows], np.int32)


def is_guided(settings: Settings) -> bool:
    return bool(settings["guidance_scale"] > 1)


def metadata(manifest: Manifest, settings: Settings) -> str:
    """Write the JSON that mlx_moddit puts into a picture's file (tests/swift holds the two together)."""
    value = {
        "version": 1,
        "settings": settings,
        "model": {"path": MODEL_PATH, "fingerprint": fingerprint(manifest), "source": manifest.provenance.source},
        "dtype": "float16",
        "versions": VERSIONS,
    }
    return json.dumps(value, sort_keys=True)


def parameters(manifest: Manifest, settings: Settings) -> str:
    """Write the lines that image browsers show."""
    lines = [settings["prompt"]]
    if is_guided(settings) and settings["negative_prompt"]:
        lines.append(f"Negative prompt: {settings['negative_prompt']}")
    facts = (
        f"Steps: {settings['steps']}, Sampler: {settings['sampler']}, CFG scale: {settings['guidance_scale']:g}, "
        f"Seed: {settings['seed']}, Size: {settings['width']}x{settings['height']}, "
        f"Model hash: {fingerprint(manifest)[:10]}, Version: moddit {VERSIONS['moddit']}"
    )
    return "\n".join([*lines, facts])


@dataclass
class _Run:
    """One run; every call of the denoiser is noted."""

    manifest: Manifest
    settings: Settings
    ids: NDArray[np.int32]  # (rows, L)
    calls: list[Any] = field(default_factory=list)

    def denoise(self) -> Float32:
        """Run all steps. Shapes: -> (1, C, h, w) float32."""
        spec, settings = self.manifest.spec, self.settings
        table = build_table(spec.scheduler, settings["sampler"], settings["steps"])
        sides = (settings["height"] // spec.vae.downscale, settings["width"] // spec.vae.downscale)
        x: Float32 = torch_randn((1, spec.transformer.in_channels, *sides), settings["seed"])
        x = x * np.float32(table.init_scale)
        previous = None
        for step in table.steps:
            rows = self._predict(np.float32(step.input_scale) * x, step.timestep)
            output = rows[-1:]
            if is_guided(settings):
                output = rows[:1] + np.float32(settings["guidance_scale"]) * (rows[-1:] - rows[:1])
            x, previous = step.advance(x, output, previous)
        assert x.dtype == np.float32
        return x

    def _predict(self, x: Float32, timestep: float) -> Float32:
        """Predict for every text: in one call of batch 2 if the bundle has it, else in calls of batch 1.

        Where there is only batch 2 and only one text, it is there twice. Shapes: x (1, C, h, w) -> (rows, C, h, w)
        """
        graphs, rows = _graphs(self.manifest), len(self.ids)
        batch = rows if rows in graphs.batches else 2 if rows == 1 else 1
        region = self.manifest.plan.region(timestep) if self.manifest.plan else 0
        item = graphs.denoiser(self.settings["height"], self.settings["width"], batch, region)
        groups = [[row] for row in range(rows)] if batch == 1 else [[0, rows - 1]]
        return np.concatenate([self._call(item, x, timestep, group) for group in groups])

    def _call(self, item: Denoiser, x: Float32, timestep: float, texts: list[int]) -> Float32:
        x = np.concatenate([x] * len(texts))
        weights = self._text_sums()[texts]
        shares = [float(value) for value in weights]
        ends = [float(str(value)) for value in (*x[0].reshape(-1)[:2], *x[-1].reshape(-1)[-2:])]
        self.calls.append([item.function, timestep, shares, ends])
        t = np.float32(timestep) / np.float32(1000)
        base: Float32 = (np.float32(0.5) * x + t) / (np.float32(1) + x * x)
        offset = weights + np.float32(sum(item.capacities) / 1024) + self._size_sum()
        return base + offset[:, None, None, None]

    def _text_sums(self) -> Float32:
        """Stand in for text states (rows, L, D), ids * (channel + 1) % 17 / 16: their sum over tokens / 256, exact."""
        channels = np.arange(1, self.manifest.spec.text_encoder.d_model + 1)
        states = (self.ids[:, :, None] * channels) % 17 / 16 * (self.ids != 0)[:, :, None]
        return (states.sum((1, 2)) / 256).astype(np.float32)

    def _size_sum(self) -> np.float32:
        if not self.manifest.spec.transformer.use_additional_conditions:
            return np.float32(0)
        height, width = self.settings["height"], self.settings["width"]
        return np.float32((height + 2 * width) / 1024 + height / width)


def _graphs(manifest: Manifest) -> Graphs:
    assert manifest.graphs is not None
    return manifest.graphs
