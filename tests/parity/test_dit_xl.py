"""DiT-XL/2 at its true size, with random weights: the memory of its conversion, and a step of it against diffusers'."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any, Final

import mlx.core as mx
import numpy as np
import pytest
import torch
from diffusers import DiTTransformer2DModel

from benchmarks.conversion import run_metered
from benchmarks.random_pixart import write_random
from mlx_moddit.load import load_bundle
from moddit.manifest import read_manifest
from moddit.models.dit import DiTSpec
from tests import tiny
from tests.parity.bridge import relative_error, to_nchw

MEMORY_LIMIT: Final = 500_000_000  # bytes, of the whole process
STEP_TOLERANCE: Final = 1e-3  # of float32 through 28 layers of random weights, relative to the largest value
LABELS: Final = (1000, 207)  # no class, and a class
XL: Final[dict[str, Any]] = {  # transformer/config.json of facebook/DiT-XL-2-256
    "num_layers": 28,
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "sample_size": 32,
    "num_embeds_ada_norm": 1000,
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny.save_dit_pipeline(tmp_path_factory.mktemp("xl") / "source", routed=False)
    path = folder / "transformer" / "config.json"
    config = json.loads(path.read_text()) | XL
    path.write_text(json.dumps(config))
    tensors = DiTSpec.from_diffusers(config, "test").tensors(has_routers=False)
    write_random(path.parent / "diffusion_pytorch_model.safetensors", tensors, "F32")
    return folder


@pytest.mark.slow
def test_a_conversion_takes_little_memory_and_a_step_is_that_of_diffusers(source: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    command = [sys.executable, "-m", "convert", "mlx", "--hf-path", str(source), "--out", str(bundle)]
    _, peak = run_metered([*command, "--dtype", "float32"])
    print(f"peak {peak / 1e6:.0f} MB")
    assert peak < MEMORY_LIMIT
    assert read_manifest(bundle).components["transformer"].parameters > 675_000_000

    latents = torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(1))
    model: Any = DiTTransformer2DModel.from_pretrained(source / "transformer").eval()
    with torch.no_grad():
        wanted = model(latents, timestep=torch.tensor([500, 500]), class_labels=torch.tensor(LABELS)).sample.numpy()
    del model
    gc.collect()
    transformer = load_bundle(bundle).transformer()
    conditions = transformer.prepare([mx.array(label) for label in LABELS], (500.0,), 32, 32)
    found = transformer(mx.array(latents.permute(0, 2, 3, 1).numpy()), 0, conditions, conditions.start())
    error = relative_error(to_nchw(found), wanted)
    print(f"error {error:.1e} of {np.abs(wanted).max():.2f}")
    assert error < STEP_TOLERANCE
