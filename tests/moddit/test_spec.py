"""Specifications are read strictly and survive JSON."""

import json

import pytest

from moddit.errors import FormatError, MissingError, ShapeError, UnsupportedError
from moddit.spec import PixArtSpec, T5Spec, VAESpec

PIXART = {
    "_class_name": "PixArtTransformer2DModel", "num_layers": 28, "num_attention_heads": 16, "attention_head_dim": 72,
    "in_channels": 4, "out_channels": 8, "patch_size": 2, "sample_size": 128, "cross_attention_dim": 1152,
    "caption_channels": 4096, "activation_fn": "gelu-approximate", "norm_type": "ada_norm_single",
}  # fmt: skip
VAE = {
    "_class_name": "AutoencoderKL", "latent_channels": 4, "block_out_channels": [8, 16], "scaling_factor": 0.13025,
    "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2,
}  # fmt: skip
T5 = {
    "model_type": "t5", "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24,
    "num_heads": 64, "feed_forward_proj": "gated-gelu",
}  # fmt: skip


def test_pixart_xl():
    spec = PixArtSpec.from_diffusers(PIXART, "config.json")
    assert spec.hidden_size == 1152
    assert spec.tokens(64, 128) == 32 * 64
    assert spec.base_size == 64
    assert spec.learns_sigma


@pytest.mark.parametrize(("sample_size", "scale", "additional"), [(32, 1.0, False), (64, 1.0, False), (128, 2.0, True)])
def test_what_diffusers_derives_from_the_sample_size(sample_size, scale, additional):
    spec = PixArtSpec.from_diffusers(PIXART | {"sample_size": sample_size}, "config.json")
    assert (spec.interpolation_scale, spec.use_additional_conditions) == (scale, additional)


@pytest.mark.parametrize(("reader", "config"), [(PixArtSpec, PIXART), (T5Spec, T5), (VAESpec, VAE)])
def test_json_round_trip(reader, config):
    spec = reader.from_diffusers(config, "config.json")
    assert reader.from_json(json.loads(json.dumps(spec.to_json())), "manifest.json") == spec
    with pytest.raises(FormatError, match=r"manifest\.json"):
        reader.from_json(spec.to_json() | {"surprise": 1}, "manifest.json")


@pytest.mark.parametrize(
    ("reader", "config", "change", "message"),
    [
        (PixArtSpec, PIXART, {"_class_name": "FluxTransformer2DModel"}, "_class_name = 'FluxTransformer2DModel'"),
        (PixArtSpec, PIXART, {"norm_type": "layer_norm"}, "norm_type = 'layer_norm'"),
        (PixArtSpec, PIXART, {"cross_attention_dim": 768}, "cross_attention_dim"),
        (T5Spec, T5, {"feed_forward_proj": "gated-silu"}, "feed_forward_proj = 'gated-silu'"),
        (VAESpec, VAE, {"latents_mean": [0.0]}, "latents_mean"),
        (VAESpec, VAE, {"down_block_types": ["AttnDownEncoderBlock2D"] * 2}, "down_block_types"),
    ],
)
def test_what_is_not_implemented_is_refused(reader, config, change, message):
    with pytest.raises(UnsupportedError, match=message):
        reader.from_diffusers(config | change, "config.json")


def test_missing_fields_are_named():
    with pytest.raises(MissingError, match=r"config\.json: field 'num_layers' is missing"):
        PixArtSpec.from_diffusers({key: value for key, value in PIXART.items() if key != "num_layers"}, "config.json")


def test_latent_sizes_are_whole_patches():
    with pytest.raises(ShapeError, match="63x64"):
        PixArtSpec.from_diffusers(PIXART, "config.json").tokens(63, 64)
