"""Canonical tensors equal what diffusers and transformers create for the same configuration."""

import json

import pytest
from diffusers import AutoencoderKL, PixArtTransformer2DModel
from transformers import T5Config, T5EncoderModel

from moddit.errors import ShapeError
from moddit.models.pixart import PixArtSpec
from moddit.models.t5 import T5Spec
from moddit.models.vae import VAESpec
from moddit.tensors import ROUTER, Role, check_names


def shapes(model):
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


@pytest.mark.parametrize("additional", [True, False])
@pytest.mark.parametrize("attention_bias", [True, False])
def test_transformer(additional, attention_bias):
    model = PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=6, num_layers=2, cross_attention_dim=12, sample_size=16,
        caption_channels=10, use_additional_conditions=additional, attention_bias=attention_bias,
    )  # fmt: skip
    spec = PixArtSpec.from_diffusers(json.loads(model.to_json_string()), "test")
    check_names(shapes(model), spec.tensors(has_routers=False), "test", "config.json")


def test_routed_transformer_adds_one_router_a_block():
    spec = PixArtSpec.from_diffusers({
        "_class_name": "PixArtTransformer2DModel", "num_layers": 3, "num_attention_heads": 2,
        "attention_head_dim": 6, "in_channels": 4, "patch_size": 2, "sample_size": 16, "cross_attention_dim": 12,
        "caption_channels": 10}, "test")  # fmt: skip
    routed, dense = spec.tensors(has_routers=True), spec.tensors(has_routers=False)
    assert sorted(routed.keys() - dense.keys()) == [ROUTER.format(layer=layer) for layer in range(3)]
    assert all(
        routed[name].role is Role.ROUTER and routed[name].shape == (1, 12) for name in routed.keys() - dense.keys()
    )


@pytest.mark.parametrize("feed_forward", ["gated-gelu", "relu"])
def test_text_encoder(feed_forward):
    config = T5Config(
        vocab_size=40, d_model=12, d_kv=5, d_ff=20, num_layers=2, num_heads=3, feed_forward_proj=feed_forward
    )
    found = shapes(T5EncoderModel(config))
    found.pop("encoder.embed_tokens.weight", None)
    check_names(found, T5Spec.from_transformers(config.to_dict(), "test").tensors(), "test", "config.json")


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize(("channels", "layers"), [((8,), 1), ((8, 16), 1), ((4, 8, 8), 2)])
def test_vae(attention, channels, layers):
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(channels), up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels, layers_per_block=layers, norm_num_groups=4, mid_block_add_attention=attention,
        use_quant_conv=attention, use_post_quant_conv=attention,
    )  # fmt: skip
    check_names(
        shapes(model),
        VAESpec.from_diffusers(json.loads(model.to_json_string()), "test").tensors(),
        "test",
        "config.json",
    )


def test_differences_are_reported_together():
    spec = T5Spec(8, 4, 2, 8, 1, 2, 32, 128, True, "gelu_new", 1e-6)
    found = {name: info.shape for name, info in spec.tensors().items()}
    found["shared.weight"] = (9, 4)
    found["stray"] = (1,)
    del found["encoder.final_layer_norm.weight"]
    with pytest.raises(ShapeError) as caught:
        check_names(found, spec.tensors(), "model.safetensors", "config.json")
    report = str(caught.value)
    assert "model.safetensors: 3 tensors differ" in report
    assert "missing     encoder.final_layer_norm.weight, want (4,)" in report
    assert "mis-shaped  shared.weight, got (9, 4), want (8, 4)" in report
    assert "unexpected  stray, got (1,)" in report
