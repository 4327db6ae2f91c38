"""FLOP counts against a count made by running PyTorch under its own counter."""

import json

import pytest
import torch
from diffusers import PixArtTransformer2DModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from moddit.cost import block_flops, blocks_flops, kept_flops_share, router_flops, step_flops
from moddit.routing import RoutingPlan
from moddit.spec import PixArtSpec

SIDE, TEXT = 16, 12  # latent pixels, text tokens


@pytest.fixture(scope="module")
def model():
    return PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, num_layers=3, cross_attention_dim=32, sample_size=SIDE,
        caption_channels=24,
    )  # fmt: skip


def test_step_equals_torchs_counter(model):
    spec = PixArtSpec.from_diffusers(json.loads(model.to_json_string()), "test")
    tokens = spec.tokens(SIDE, SIDE)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(
            torch.zeros(1, 4, SIDE, SIDE), encoder_hidden_states=torch.zeros(1, TEXT, 24), timestep=torch.zeros(1),
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        )  # fmt: skip
    counts = counter.get_flop_counts()["Global"]
    once = (
        spec.num_layers * 2 * 2 * TEXT * 32 * 32  # keys and values of the text
        + 2 * TEXT * (24 * 32 + 32 * 32)  # caption projection
        + 2 * (256 * 32 + 32 * 32 + 6 * 32 * 32)  # timestep embedding and modulation
    )
    assert sum(counts.values()) == step_flops(spec, None, 0, tokens, TEXT) + once


def test_share_of_a_plan(model):
    spec = PixArtSpec.from_diffusers(json.loads(model.to_json_string()), "test")
    tokens, timesteps = 64, [999, 600, 300, 10]
    assert kept_flops_share(spec, None, timesteps, tokens, TEXT) == 1.0
    plan = RoutingPlan(((10, 10, 10, 5), (10, 10, 10, 5), (10, 10, 10, 5)))
    dense, half = block_flops(spec, 64, TEXT), block_flops(spec, 32, TEXT)
    wanted = (3 * dense + half + 4 * router_flops(spec, tokens)) / (4 * dense)
    assert kept_flops_share(spec, plan, timesteps, tokens, TEXT) == pytest.approx(wanted, rel=1e-12)
    assert blocks_flops(spec, plan, 3, tokens, TEXT) == 3 * (half + router_flops(spec, tokens))
