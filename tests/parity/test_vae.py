from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest
import torch

from mlx_moddit.vae import AutoencoderKL
from moddit.models.vae import VAESpec
from tests import tiny
from tests.parity.bridge import STAGE_TOLERANCES, copy_weights, relative_error, round_weights, to_nchw

SWITCHES: list[dict[str, Any]] = [
    {},
    {"mid_block_add_attention": False},
    {"use_quant_conv": False, "use_post_quant_conv": False},
    {
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "up_block_types": ("UpDecoderBlock2D",) * 3,
        "block_out_channels": (8, 16, 16),
        "layers_per_block": 2,
        "norm_num_groups": 8,
    },
]


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
class TestAutoencoder:
    def test_decode_equals_diffusers(self, stored_dtype: str, switches: dict[str, Any]) -> None:
        reference, vae = _pair(switches, stored_dtype)
        latents = torch.randn(2, 4, 6, 10, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            wanted = reference.decode(latents / reference.config.scaling_factor).sample
        found = vae.decode(mx.array(latents.permute(0, 2, 3, 1).numpy()))
        assert relative_error(to_nchw(found), wanted) < STAGE_TOLERANCES[stored_dtype]

    def test_encode_equals_diffusers(self, stored_dtype: str, switches: dict[str, Any]) -> None:
        reference, vae = _pair(switches, stored_dtype)
        images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(2)) * 2 - 1
        with torch.no_grad():
            wanted = reference.encode(images).latent_dist
        mean, deviation = vae.encode(mx.array(images.permute(0, 2, 3, 1).numpy()))
        scale = reference.config.scaling_factor
        assert relative_error(to_nchw(mean), wanted.mean * scale) < STAGE_TOLERANCES[stored_dtype]
        assert relative_error(to_nchw(deviation), wanted.std * scale) < STAGE_TOLERANCES[stored_dtype]


@pytest.mark.parametrize("tile", [4, 8, 12])
@pytest.mark.parametrize(("height", "width"), [(16, 16), (12, 20), (17, 9), (8, 8), (13, 3)])
def test_decoding_in_tiles_equals_diffusers(stored_dtype: str, height: int, width: int, tile: int) -> None:
    reference, vae = _pair({"sample_size": 2 * tile}, stored_dtype)
    reference.enable_tiling()  # of half as many latent pixels
    latents = torch.randn(1, 4, height, width, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = reference.decode(latents / reference.config.scaling_factor).sample
    found = vae.decode(mx.array(latents.permute(0, 2, 3, 1).numpy()), tile=tile)
    assert found.shape == (1, 2 * height, 2 * width, 3)
    assert relative_error(to_nchw(found), wanted) < STAGE_TOLERANCES[stored_dtype]


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
def test_half_precision_decodes_nearly_the_same(dtype: mx.Dtype) -> None:
    reference, vae = _pair({})
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = reference.decode(latents / reference.config.scaling_factor).sample
    vae.set_dtype(dtype)
    found = vae.decode(mx.array(latents.permute(0, 2, 3, 1).numpy()))
    assert relative_error(to_nchw(found), wanted) < 0.05  # bfloat16 keeps 8 bits; some ten layers


def _pair(switches: dict[str, Any], dtype: str = "float32") -> tuple[Any, AutoencoderKL]:
    reference = tiny.make_vae(**switches)
    spec = VAESpec.from_diffusers({**reference.config, "_class_name": "AutoencoderKL"}, "vae")
    vae = copy_weights(AutoencoderKL(spec), reference.state_dict())
    return reference, round_weights(vae, spec.tensors(), dtype)
