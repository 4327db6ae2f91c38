"""FLOP counts against a count made by running PyTorch under its own counter."""

import json
import math

import pytest
import torch
from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from moddit.configurations import find_configuration
from moddit.cost import blocks_flops, kept_flops_share, router_flops, step_flops, step_operations
from moddit.models.dit import DiTSpec
from moddit.models.pixart import PixArtSpec
from moddit.models.t5 import T5Spec
from moddit.models.vae import VAESpec
from moddit.operations import count_flops
from moddit.routing import RoutingPlan
from moddit.tokens import TokenPolicy
from tests import tiny

SIDE, TEXT = 16, 12  # latent pixels, text tokens
DENSE = TokenPolicy.dense(3, 1000)


@pytest.fixture(scope="module")
def model():
    return PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, num_layers=3, cross_attention_dim=32, sample_size=SIDE,
        caption_channels=24,
    )  # fmt: skip


def ends_flops(spec, tokens):
    """Count the FLOPs of patch embedding and final projection."""
    return 2 * tokens * spec.hidden_size * spec.patch_size**2 * (spec.in_channels + spec.out_channels)


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
    assert sum(counts.values()) == blocks_flops(spec, DENSE, 0, tokens, TEXT) + once + ends_flops(spec, tokens)


def test_a_step_of_a_dit_equals_torchs_counter():
    model = DiTTransformer2DModel(num_attention_heads=2, attention_head_dim=16, num_layers=3, sample_size=SIDE).eval()
    spec = DiTSpec.from_diffusers(json.loads(model.to_json_string()), "test")
    tokens = spec.tokens(SIDE, SIDE)
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(torch.zeros(1, 4, SIDE, SIDE), timestep=torch.zeros(1), class_labels=torch.zeros(1, dtype=torch.int64))
    counts = counter.get_flop_counts()["Global"]
    embedding = 2 * (256 * 32 + 32 * 32)
    once = spec.num_layers * (embedding + 2 * 6 * 32 * 32)  # modulation of every block
    once += embedding + 2 * 2 * 32 * 32  # and of the output
    assert sum(counts.values()) == blocks_flops(spec, DENSE, 0, tokens, 0) + once + ends_flops(spec, tokens)


def test_operations_of_a_step_add_up():
    spec = find_configuration("pixart-sigma-xl", 3).transformer
    policy = TokenPolicy.topk(RoutingPlan(((10, 5),) * 3))
    for region in range(2):
        wanted = blocks_flops(spec, policy, region, 64, TEXT) + ends_flops(spec, 64)
        assert step_flops(spec, policy, region, 64, TEXT) == wanted


def test_a_text_encoder_equals_torchs_counter():
    model = tiny.make_text_encoder()
    spec = T5Spec.from_transformers(model.config.to_dict(), "test")
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model(torch.zeros(1, TEXT, dtype=torch.int64))
    assert counter.get_total_flops() == count_flops(spec.operations(TEXT))


@pytest.mark.parametrize("attends", [True, False])
def test_a_decoder_equals_torchs_counter(attends):
    model = tiny.make_vae(mid_block_add_attention=attends)
    spec = VAESpec.from_diffusers(json.loads(model.to_json_string()), "test")
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model.decode(torch.zeros(1, spec.latent_channels, 8, 6))
    operations = spec.decoder_operations(8 * spec.downscale, 6 * spec.downscale)
    assert counter.get_total_flops() == count_flops(operations)


def test_share_of_a_plan(model):
    spec = PixArtSpec.from_diffusers(json.loads(model.to_json_string()), "test")
    tokens, timesteps = 64, [999, 600, 300, 10]
    assert kept_flops_share(spec, DENSE, timesteps, tokens, TEXT) == 1.0
    policy = TokenPolicy.topk(RoutingPlan(((10, 10, 10, 5),) * 3))
    dense, half = spec.block_flops(64, TEXT), spec.block_flops(32, TEXT)
    wanted = (3 * dense + half + 4 * router_flops(spec, tokens)) / (4 * dense)
    assert kept_flops_share(spec, policy, timesteps, tokens, TEXT) == pytest.approx(wanted, rel=1e-12)
    assert blocks_flops(spec, policy, 3, tokens, TEXT) == 3 * (half + router_flops(spec, tokens))


@pytest.mark.parametrize("name", ["pixart-sigma-xl", "dit-xl-2"])
def test_every_matrix_is_read_once_in_what_is_prepared_and_a_step(name: str) -> None:
    """But for the table of classes, of which a row is taken."""
    spec = find_configuration(name).transformer
    prepared = spec.prepare_operations(tokens=1024, steps=20, text_tokens=60)
    step = step_operations(spec, TokenPolicy.dense(spec.num_layers, 1000), 0, 1024, 60)
    matrices = {
        key: math.prod(info.shape)
        for key, info in spec.tensors(has_routers=False).items()
        if key.endswith(".weight") and "class_embedder" not in key
    }
    assert sum(operation.weights for operation in (*prepared, *step)) == sum(matrices.values())
