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
from mlx_moddit import estimate
from mlx_moddit.estimate import Compute, choose_strip_bytes, decoder_bytes_in_strips
from mlx_moddit.info import describe, write
from mlx_moddit.layers import GroupNorm
from mlx_moddit.pipeline import Pipeline
from mlx_moddit.strips import STRIP_BYTES, convolve, drain, hold, normalise, rows_of_strip, split
from mlx_moddit.vae import AutoencoderKL
from moddit.manifest import read_manifest
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
SMALL_STRIP: Final = 8 * 2**20  # bytes
ESTIMATE_ERROR: Final = 0.1  # what `mlx_moddit info` promises
SDXL_PEAK: Final = 2_500 * MB
CPU: Final = Compute(is_gpu=False, dtype="float32")
GB: Final = 10**9
LEVEL: Final = 1  # of 255: a value between two may be rounded otherwise
MEASURE: Final = """
import json, sys
from scripts import fast_blas
fast_blas.load()
import mlx.core as mx
from moddit.memory import peak_rss_bytes
from mlx_moddit.vae import AutoencoderKL
from moddit.manifest import read_manifest
from moddit.models.vae import VAESpec
values, side, strip_bytes = json.loads(sys.argv[1])
values["block_out_channels"] = tuple(values["block_out_channels"])
vae = AutoencoderKL(VAESpec(**values))
del vae.encoder
mx.eval(vae.parameters())
weights = mx.get_active_memory()
latents = mx.random.normal((1, side // vae.spec.downscale, side // vae.spec.downscale, vae.spec.latent_channels))
mx.eval(latents)
mx.reset_peak_memory()
is_finite = mx.all(mx.isfinite(vae.decode(latents, strip_bytes=strip_bytes))).item()
print(json.dumps([is_finite, weights, mx.get_peak_memory(), peak_rss_bytes()]))
"""


@pytest.fixture
def small_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a picture of 32 pixels has several."""
    monkeypatch.setattr(estimate, "STRIP_BYTES", 200 * ROW)


def pretend_memory(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(estimate, "usable_bytes", lambda: size)


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


def encoded_difference(vae: AutoencoderKL, latents: mx.array, strip_bytes: int) -> float:
    """Compare the latents of a picture, whose mean and deviation are as far apart as pictures' are."""
    pictures = vae.decode(latents)
    wanted = mx.concatenate(list(vae.encode(pictures)), axis=-1)
    found = mx.concatenate(list(vae.encode(pictures, strip_bytes=strip_bytes)), axis=-1)
    assert (found.shape, found.dtype) == (wanted.shape, mx.float32)
    return error(found, wanted)


def error(found: mx.array, wanted: mx.array) -> float:
    return float(np.abs(np.array(found - wanted)).max() / np.abs(np.array(wanted)).max())


@pytest.mark.parametrize("strip_bytes", [ONE_ROW, 9 * ROW, 60 * ROW, 200 * ROW, 10**9])
@pytest.mark.parametrize(("height", "width"), [(13, 9), (8, 8), (5, 16), (1, 3), (2, 1)])
def test_strips_of_any_height_equal_the_whole(height: int, width: int, strip_bytes: int) -> None:
    vae, latents = make_vae(), latents_of(1, height, width)
    assert difference(vae, latents, strip_bytes) < ROUNDING[mx.float32]
    assert encoded_difference(vae, latents, strip_bytes) < ROUNDING[mx.float32]


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
    vae, latents = make_vae(**changes), latents_of(2, 7, 6)
    assert difference(vae, latents, 60 * ROW) < ROUNDING[mx.float32]
    assert encoded_difference(vae, latents, 60 * ROW) < ROUNDING[mx.float32]


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


def test_strips_bound_the_memory_of_a_decoder_as_estimated() -> None:
    values = SPEC | {"block_out_channels": (32, 64), "norm_num_groups": 8, "mid_block_add_attention": False}
    whole, strips = (measure(values, 256, strip_bytes) for strip_bytes in (None, SMALL_STRIP))
    assert strips["mlx"] < SMALL_PEAK < whole["mlx"]
    check_estimate(values, 256, SMALL_STRIP, strips)


@pytest.mark.slow
@pytest.mark.parametrize("side", [512, 1024])
def test_strips_of_the_vae_of_sdxl_take_less_than_2_5_gigabytes_as_estimated(side: int) -> None:
    """The dimensions of PixArt-Sigma's VAE, random weights, float32."""
    values = SPEC | {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "norm_num_groups": 32}
    peaks = measure(values, side, STRIP_BYTES)
    assert max(peaks["mlx"], peaks["process"]) < SDXL_PEAK
    check_estimate(values, side, STRIP_BYTES, peaks)


def check_estimate(values: dict[str, Any], side: int, strip_bytes: int, peaks: dict[str, int]) -> None:
    estimate = decoder_bytes_in_strips(VAESpec(**values), (side, side), 4, strip_bytes)
    assert peaks["weights"] + estimate == pytest.approx(peaks["mlx"], rel=ESTIMATE_ERROR)


def measure(values: dict[str, Any], side: int, strip_bytes: int | None) -> dict[str, int]:
    """Decode in a process of its own; give bytes of the weights, and peaks of MLX and of the process with them."""
    root = str(Path(moddit.__file__).parents[1])
    arguments = json.dumps([values, side, strip_bytes])
    command = [sys.executable, "-c", MEASURE, arguments]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": root}, cwd=root, capture_output=True, text=True, check=True
    )
    is_finite, weights, mlx, process = json.loads(done.stdout)
    assert is_finite
    return {"weights": weights, "mlx": mlx, "process": process}


@pytest.mark.usefixtures("small_strips")
def test_memory_decides_whether_a_picture_is_decoded_in_strips(
    dense_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, size = read_manifest(dense_bundle), (32, 32)
    needed = describe(manifest, CPU, height=32, width=32)["memory_estimate_bytes"]["all_in_memory"]
    for memory, wanted in ((needed, 200 * ROW), (4 * needed, None)):
        pretend_memory(monkeypatch, memory)
        assert choose_strip_bytes(manifest, CPU, size, low_ram=False) == wanted
        assert choose_strip_bytes(manifest, CPU, size, low_ram=True) == 200 * ROW
        facts = describe(manifest, CPU, height=32, width=32)
        assert facts["decodes_in_strips"] is (wanted is not None)
        assert ("decoded whole, with --low-ram in strips;" if wanted is None else "decoded in strips;") in write(facts)


def test_a_picture_of_one_strip_is_decoded_whole(dense_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_memory(monkeypatch, 1)
    manifest = read_manifest(dense_bundle)
    assert choose_strip_bytes(manifest, CPU, (32, 32), low_ram=True) is None
    facts = describe(manifest, CPU, height=32, width=32)
    assert facts["memory_estimate_bytes"]["decode_strips"] == facts["memory_estimate_bytes"]["decode"]
    assert "decoded whole;" in write(facts)


@pytest.mark.usefixtures("small_strips")
@pytest.mark.parametrize(("memory", "low_ram"), [(1, False), (1000 * GB, True)])
def test_where_memory_is_short_the_picture_is_the_same(
    dense_bundle: Path, memory: int, low_ram: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    size: dict[str, Any] = {"height": 32, "width": 48}
    decoded: list[int | None] = []
    decode = AutoencoderKL.decode

    def record(*arguments: Any, strip_bytes: int | None, **options: Any) -> mx.array:
        decoded.append(strip_bytes)
        return decode(*arguments, strip_bytes=strip_bytes, **options)

    monkeypatch.setattr(AutoencoderKL, "decode", record)
    pretend_memory(monkeypatch, 1000 * GB)
    (whole,) = Pipeline.load(dense_bundle, dtype=CPU.dtype).generate("a circle", **size, steps=1).images
    pretend_memory(monkeypatch, memory)
    result = Pipeline.load(dense_bundle, dtype=CPU.dtype, low_ram=low_ram).generate("a circle", **size, steps=1)
    assert decoded == [None, 200 * ROW]
    assert result.pictures[0].request.vae_tile_size is None
    assert np.abs(result.images[0].astype(int) - whole).max() <= LEVEL
