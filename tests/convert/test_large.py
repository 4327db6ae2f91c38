"""Converting a model of PixArt-Sigma-XL-2's true size takes little memory."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
import pytest

from moddit.checkpoint.safetensors import format_header
from moddit.manifest import read_manifest, verify_files
from moddit.models.pixart import PixArtSpec
from moddit.tensors import TensorInfo
from tests.convert.checkpoints import edit_json
from tests.tiny import save_pipeline

MEMORY_LIMIT: Final = 1_000_000_000  # bytes, of the whole process: what issue and documentation promise
XL: Final = {  # transformer/config.json of PixArt-Sigma-XL-2-1024-MS
    "num_layers": 28,
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "cross_attention_dim": 1152,
    "caption_channels": 4096,
    "sample_size": 128,
    "interpolation_scale": 2,
    "use_additional_conditions": False,
}
# Runs a command and prints the largest resident set of it alone, as `/usr/bin/time` does.
METER: Final = (
    "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:], stdout=sys.stderr); "
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
)


def write_random(path: Path, tensors: Mapping[str, TensorInfo], *, scale: float = 1.0) -> None:
    """Write random float32 weights, one tensor at a time."""
    rng = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(format_header([(name, "F32", info.shape) for name, info in tensors.items()], {}))
        for info in tensors.values():
            values = rng.standard_normal(math.prod(info.shape), dtype=np.float32)
            file.write((values * np.float32(scale)).data)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("xl") / "source"
    width = {"d_model": 4096, "d_kv": 64, "num_heads": 1, "d_ff": 64, "num_layers": 1}
    save_pipeline(folder, routed=False, transformer={"caption_channels": 4096}, text_encoder=width)
    path = folder / "transformer" / "config.json"
    edit_json(path, lambda config: config.update(XL))
    spec = PixArtSpec.from_diffusers(json.loads(path.read_text()), "test")
    tensors = spec.tensors(has_routers=True)
    write_random(folder / "transformer" / "diffusion_pytorch_model.safetensors", tensors)
    plan = {"regions": 4, "num_train_timesteps": 1000, "keep_tenths": [[10, 7, 5, 3]] * 28}
    edit_json(path, lambda config: config.update(diffcr=plan))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("-q", "--q-bits", "4")], ids=["float16", "4-bit"])
def test_memory_of_a_large_conversion(source: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "convert", "--from", "hf-checkpoint", "--hf-path", str(source)]
    command += ["--out", str(tmp_path / "bundle"), *options]
    start = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", METER, *command], capture_output=True, text=True, check=True)
    unit = 1 if sys.platform == "darwin" else 1024
    peak, seconds = int(result.stdout) * unit, time.perf_counter() - start
    print(f"{' '.join(options) or 'float16'}: peak {peak / 1e6:.0f} MB, {seconds:.1f} s")
    assert peak < MEMORY_LIMIT
    manifest = read_manifest(tmp_path / "bundle")
    verify_files(tmp_path / "bundle", manifest)
    assert manifest.components["transformer"].parameters > 610_000_000
    shutil.rmtree(tmp_path / "bundle")
