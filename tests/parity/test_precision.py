"""Converted bundles of less than float32, run as they are stored. The model is dense, so no token changes sides."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from convert.cli import main
from mlx_moddit.load import load_bundle
from mlx_moddit.pipeline import Pipeline
from tests import tiny
from tests.parity.bridge import psnr
from tests.parity.roads import run_reference

PROMPT: Final = "a large red circle"
SETTINGS: Final[dict[str, Any]] = {"seed": 3, "steps": 2, "height": 16, "width": 16}  # half precision is slow on CPUs
GROUP_SIZE: Final = 32
# Rows of whole groups: a transformer of width 64, a text encoder of width 32.
WIDTHS: Final = {"num_attention_heads": 2, "attention_head_dim": 32, "cross_attention_dim": 64}
# Measured: 58.6, 49.0, 57.8 and 42.2 dB. The margin of 6 dB and more is for other processors' rounding.
CASES: Final[list[tuple[list[str], mx.Dtype, float]]] = [
    (["--dtype", "float16"], mx.float16, 52.0),
    (["--dtype", "bfloat16"], mx.bfloat16, 43.0),
    (["--dtype", "float16", "-q", "--q-bits", "8"], mx.float16, 50.0),
    (["--dtype", "float32", "-q", "--q-bits", "4"], mx.float32, 36.0),
]


@pytest.mark.parametrize(("arguments", "dtype", "least"), CASES, ids=str)
def test_picture_stays_near_the_reference(tmp_path: Path, arguments: list[str], dtype: mx.Dtype, least: float) -> None:
    folder = tiny.save_pipeline(tmp_path / "model", routed=False, transformer=WIDTHS)
    bundle = tmp_path / "bundle"
    options = ["--q-group-size", str(GROUP_SIZE)] if "-q" in arguments else []
    source = ["--from", "hf-checkpoint", "--hf-path", str(folder), "--out", str(bundle)]
    assert main([*source, *arguments, *options]) == 0

    pipeline = Pipeline(load_bundle(bundle))  # computes in the stored dtype, which `Pipeline.load` does not on CPUs
    picture = pipeline.generate(PROMPT, **SETTINGS).images[0].astype(np.float32) / np.float32(255)

    found = psnr(picture, run_reference(folder, PROMPT, **SETTINGS).picture)
    assert found > least
    transformer = pipeline.bundle.transformer()
    assert isinstance(transformer.transformer_blocks[0].ff.net[2], nn.QuantizedLinear) == ("-q" in arguments)
    assert transformer.dtype == dtype
    conditions = transformer.prepare([mx.zeros((2, tiny.TEXT_WIDTH))], [500.0], 4, 4)
    x = transformer.embed(mx.ones((1, 4, 4, 4)), conditions)
    x = transformer.run_block(x, 0, 0, conditions, conditions.start())
    assert x.dtype == dtype  # nothing on the way widens the activations
