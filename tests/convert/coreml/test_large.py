"""Models of true size: a transformer of PixArt-Sigma-XL-2 with four rows of capacities, and two layers of T5-XXL."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import pytest

from convert.coreml.package import WEIGHT_FILE
from moddit.manifest import read_manifest, verify_files
from moddit.models.pixart import PixArtSpec
from moddit.models.t5 import T5Spec
from tests.convert.checkpoints import edit_json
from tests.convert.test_large import METER, XL, write_random
from tests.tiny import save_pipeline

MEMORY_LIMIT: Final = 1_000_000_000  # bytes, of the whole process, whatever the size of the model
XXL: Final = {"d_kv": 64, "num_heads": 64, "d_ff": 10240, "num_layers": 2}  # T5-XXL has 24 layers
# Weights in float16, with tables of positions, and some per cent for what is added to a matrix of 1152 columns.
WEIGHT_LIMIT: Final = 1.03
LEVELS: Final = 4  # of the autoencoder, which divides each side by 8 as the true one does
TENTHS: Final = [10, 7, 5, 3]  # of the four regions, in every layer


@pytest.fixture
def xl(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    save_pipeline(
        folder,
        routed=False,
        transformer={"caption_channels": 4096},
        text_encoder={"d_model": 4096, "d_kv": 64, "num_heads": 1, "d_ff": 64, "num_layers": 1},
        vae={
            "block_out_channels": (8,) * LEVELS,
            "down_block_types": ("DownEncoderBlock2D",) * LEVELS,
            "up_block_types": ("UpDecoderBlock2D",) * LEVELS,
        },
    )
    path = folder / "transformer" / "config.json"
    edit_json(path, lambda config: config.update(XL))
    spec = PixArtSpec.from_diffusers(json.loads(path.read_text()), "test")
    write_random(folder / "transformer" / "diffusion_pytorch_model.safetensors", spec.tensors(has_routers=True))
    plan = {"regions": len(TENTHS), "num_train_timesteps": 1000, "keep_tenths": [TENTHS] * spec.num_layers}
    edit_json(path, lambda config: config.update(diffcr=plan))
    return folder


@pytest.fixture
def xxl(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    width = {"d_model": 4096, "d_kv": 64, "num_heads": 1, "d_ff": 64, "num_layers": 1}
    save_pipeline(folder, transformer={"caption_channels": 4096}, text_encoder=width)
    path = folder / "text_encoder" / "config.json"
    edit_json(path, lambda config: config.update(XXL))
    spec = T5Spec.from_transformers(json.loads(path.read_text()), "test")
    write_random(folder / "text_encoder" / "model.safetensors", spec.tensors(), scale=0.02)
    return folder


def measure(command: list[str]) -> tuple[int, float]:
    """Give the largest resident set of a command, in bytes, and its seconds."""
    start = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", METER, *command], capture_output=True, text=True, check=True)
    return int(result.stdout) * (1 if sys.platform == "darwin" else 1024), time.perf_counter() - start


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["none", "int4"])
def test_memory_of_a_large_text_encoder(xxl: Path, tmp_path: Path, scheme: str) -> None:
    out = tmp_path / "bundle"
    command = [sys.executable, "-m", "convert", "coreml", "--hf-path", str(xxl), "--compress", scheme]
    peak, seconds = measure([*command, "--no-verify", "--out", str(out)])
    print(f"peak {peak / 1e6:.0f} MB, {seconds:.0f} s")
    assert peak < MEMORY_LIMIT
    assert read_manifest(out).components["text_encoder"].parameters > 380_000_000


@pytest.mark.nightly
def test_memory_and_size_of_a_large_conversion(xl: Path, tmp_path: Path) -> None:
    """Without running it: in random weights of this size float32's own rounding moves tokens."""
    out = tmp_path / "bundle"
    command = [sys.executable, "-m", "convert", "--from", "hf-checkpoint", "--hf-path", str(xl), "--to", "coreml"]
    command += ["--size", "512x512", "--no-verify", "--out", str(out)]
    peak, seconds = measure(command)
    manifest = read_manifest(out)
    verify_files(out, manifest)
    weights = (out / "Transformer.mlpackage" / WEIGHT_FILE).stat().st_size
    print(f"peak {peak / 1e6:.0f} MB, weights {weights / 1e6:.0f} MB, {seconds:.0f} s")
    assert peak < MEMORY_LIMIT
    parameters = manifest.components["transformer"].parameters
    assert parameters > 610_000_000
    assert weights < WEIGHT_LIMIT * 2 * parameters
    assert manifest.graphs is not None
    assert [item.capacities[0] for item in manifest.graphs.step_functions] == [1024, 717, 512, 308]
