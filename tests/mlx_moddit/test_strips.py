"""Decoding in strips: the same picture as in one piece, in less memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map

import moddit
from mlx_moddit.layers import GroupNorm
from mlx_moddit.strips import STRIP_BYTES, convolve, drain, hold, normalise, rows_of_strip, split
from mlx_moddit.vae import AutoencoderKL
from moddit.models.vae import VAESpec

# Shares of the largest value. Both sum in float32, in another order: some 1e-6 here. In bfloat16, of 8 bits, a last bit
# that is rounded otherwise goes on through some ten layers.
ROUNDING: Final = {mx.float32: 1e-5, mx.float16: 1e-5, mx.bfloat16: 0.05}
PER_STRIP: Final = 1e-2  # what statistics of one strip change at least, as the pictures' rows differ
SPEC: Final[dict[str, Any]] = {
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "scaling_factor": 0.5,
    "shift_factor": 0.0,
    "use_quant_conv": False,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
ONE_ROW: Final = 1  # byte
ROW: Final = 9 * 16 * 4  # bytes of a pixel of the widest activation, unfolded
MB: Final = 10**6
# MLX's peak at 256 pixels, channels of 32 and 64: activations of 17 MB, and strips of 8 MB or of all rows
SMALL_PEAK: Final = 40 * MB
SDXL_PEAK: Final = 2_500 * MB
MEASURE: Final = """
import json, sys
from scripts import fast_blas
fast_blas.load()
import mlx.core as mx
from mlx_moddit.memory import peak_rss_bytes
from mlx_moddit.vae import AutoencoderKL
from moddit.models.vae import VAESpec
values, side, strip_bytes = json.loads(sys.argv[1])
values["block_out_channels"] = tuple(values["block_out_channels"])
vae = AutoencoderKL(VAESpec(**values))
del vae.encoder
mx.eval(vae.parameters())
latents = mx.random.normal((1, side // vae.spec.downscale, side // vae.spec.downscale, vae.spec.latent_channels))
mx.eval(latents)
mx.reset_peak_memory()
is_finite = mx.all(mx.isfinite(vae.decode(latents, strip_bytes=strip_bytes))).item()
print(json.dumps([is_finite, mx.get_peak_memory(), peak_rss_bytes()]))
"""


def make_vae(dtype: mx.Dtype = mx.float32, **changes: Any) -> AutoencoderKL:
    mx.random.seed(0)
    vae = AutoencoderKL(VAESpec(**SPEC | changes))
    # norms of which neither scale nor shift is trivial
    vae.update(tree_map(lambda values: (values + 0.1 * mx.random.normal(values.shape)).astype(dtype), vae.parameters()))
    return vae


def latents_of(batch: int, height: int, width: int) -> mx.array:
    """Draw latents whose rows differ in mean and spread, as the top and the bottom of a picture do."""
    values = np.random.default_rng(1).normal(size=(batch, height, width, 4))
    slope = np.linspace(0.5, 2, height).reshape(1, -1, 1, 1)
    return mx.array((values * slope + slope).astype(np.float32))


def difference(vae: AutoencoderKL, latents: mx.array, strip_bytes: int) -> float:
    wanted, found = vae.decode(latents), vae.decode(latents, strip_bytes=strip_bytes)
    assert (found.shape, found.dtype) == (wanted.shape, mx.float32)
    return error(found, wanted)


def error(found: mx.array, wanted: mx.array) -> float:
    return float(np.abs(np.array(found - wanted)).max() / np.abs(np.array(wanted)).max())


@pytest.mark.parametrize("strip_bytes", [ONE_ROW, 9 * ROW, 60 * ROW, 200 * ROW, 10**9])
@pytest.mark.parametrize(("height", "width"), [(13, 9), (8, 8), (5, 16), (1, 3), (2, 1)])
def test_strips_of_any_height_equal_the_whole(height: int, width: int, strip_bytes: int) -> None:
    assert difference(make_vae(), latents_of(1, height, width), strip_bytes) < ROUNDING[mx.float32]


@pytest.mark.parametrize(
    "changes",
    [
        {"mid_block_add_attention": False},
        {"use_post_quant_conv": False},
        {"shift_factor": 0.1},
        {"block_out_channels": (8, 16, 16), "layers_per_block": 2},
        {"block_out_channels": (16, 8)},
        {"block_out_channels": (8,)},
    ],
    ids=str,
)
def test_every_decoder_has_the_same_picture_in_strips(changes: dict[str, Any]) -> None:
    assert difference(make_vae(**changes), latents_of(2, 7, 6), 60 * ROW) < ROUNDING[mx.float32]


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_weights_of_any_dtype_give_the_same_picture_in_strips(dtype: mx.Dtype) -> None:
    assert difference(make_vae(dtype), latents_of(1, 7, 6), 60 * ROW) < ROUNDING[dtype]


def test_heights_of_strips_are_nearly_equal_and_at_least_one_row() -> None:
    x = latents_of(1, 6, 6)
    assert [part.shape[1] for part in split(x, 6)] == [6]
    assert [part.shape[1] for part in split(x, 5)] == [3, 3]
    assert [part.shape[1] for part in split(x, 1)] == [1] * 6
    assert rows_of_strip((1, 8, 4), 4, 9 * 8 * 4 * 4 * 3) == 3
    assert rows_of_strip((1, 8, 4), 4, 1) == 1


def test_norms_have_the_statistics_of_the_whole_picture() -> None:
    norm = GroupNorm(2, 4, 1e-6)
    x = latents_of(2, 11, 5)
    wanted = norm(x)
    wanted = wanted * mx.sigmoid(wanted)
    strips = hold(mx.split(x, [1, 4, 10], axis=1))
    activate = normalise(strips, norm)
    found = mx.concatenate([activate(strip) for strip in strips], axis=1)
    assert error(found, wanted) < ROUNDING[mx.float32]
    alone = mx.concatenate([normalise(hold([strip]), norm)(strip) for strip in strips], axis=1)
    assert error(alone, wanted) > PER_STRIP


def test_a_picture_decoded_with_statistics_of_strips_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    vae, latents = make_vae(), latents_of(1, 12, 8)

    def per_strip(_: Any, norm: GroupNorm) -> Any:
        return lambda strip: normalise(hold([strip]), norm)(strip)

    monkeypatch.setattr("mlx_moddit.vae.normalise", per_strip)
    assert difference(vae, latents, 60 * ROW) > PER_STRIP


def test_strips_are_let_go_as_they_are_read() -> None:
    strips = hold(split(mx.zeros((1, 8, 4, 4)), 2))
    seen = [len(strips) for _ in drain(strips)]
    assert seen == [3, 2, 1, 0]


def test_a_convolution_gives_a_strip_for_each() -> None:
    vae = make_vae()
    strips = [mx.ones((1, rows, 4, 4)) for rows in (1, 3, 1)]
    assert [strip.shape for strip in convolve(strips, vae.decoder.conv_in)] == [(1, rows, 4, 16) for rows in (1, 3, 1)]
    assert list(convolve([], vae.decoder.conv_in)) == []


def test_strips_bound_the_memory_of_a_decoder() -> None:
    values = SPEC | {"block_out_channels": (32, 64), "norm_num_groups": 8, "mid_block_add_attention": False}
    whole, strips = (measure(values, 256, strip_bytes) for strip_bytes in (None, 8 * 2**20))
    assert strips["mlx"] < SMALL_PEAK < whole["mlx"]


@pytest.mark.slow
def test_a_picture_of_1024_pixels_is_decoded_in_2_5_gigabytes() -> None:
    """The VAE of SDXL, which is that of PixArt-Sigma: its dimensions, random weights, float32."""
    values = SPEC | {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "norm_num_groups": 32}
    peaks = measure(values, 1024, STRIP_BYTES)
    assert peaks["mlx"] < SDXL_PEAK
    assert peaks["process"] < SDXL_PEAK


def measure(values: dict[str, Any], side: int, strip_bytes: int | None) -> dict[str, int]:
    """Decode in a process of its own; give the peak bytes of MLX and of the process, weights included."""
    root = str(Path(moddit.__file__).parents[1])
    arguments = json.dumps([values, side, strip_bytes])
    command = [sys.executable, "-c", MEASURE, arguments]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": root}, cwd=root, capture_output=True, text=True, check=True
    )
    is_finite, mlx, process = json.loads(done.stdout)
    assert is_finite
    return {"mlx": mlx, "process": process}
