"""The dense transformer, stage by stage against diffusers' own modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from diffusers.models.embeddings import PatchEmbed, get_timestep_embedding

from mlx_moddit.pixart import PixArt
from mlx_moddit.transformer import Sizes
from moddit.embeddings import position_embedding, sinusoid
from moddit.errors import ShapeError, ValueRangeError
from moddit.models.pixart import PixArtSpec
from moddit.tokens import TokenPolicy
from tests import tiny
from tests.parity.bridge import STAGE_TOLERANCES, copy_weights, relative_error, round_weights, to_nchw

TIMESTEPS = (999.0, 499.5, 20.0, 0.0)  # fractional ones are Euler's
LENGTHS = (9, 3)  # text tokens of the two rows
SIZES: Sizes = {"resolution": (64.0, 48.0), "aspect_ratio": (64 / 48,)}
SWITCHES: list[tuple[str, dict[str, Any]]] = [
    ("sigma", {}),
    ("alpha", {}),
    ("alpha-micro", {}),
    ("sigma", {"attention_bias": False}),
    ("sigma", {"out_channels": 4, "patch_size": 4}),
    ("alpha", {"norm_eps": 1e-3, "num_attention_heads": 4, "attention_head_dim": 12}),
]
# Sinusoids of angles up to 1000: one unit in the last place of such an angle is 6e-5.
SINUSOID_TOLERANCE = 1e-4
POSITION_TOLERANCE = 1e-6  # angles up to 32, computed in float64 and rounded once


def test_timestep_sinusoid_equals_diffusers() -> None:
    values = [0.0, 1.0, 20.0, 333.25, 499.5, 999.0]
    wanted = get_timestep_embedding(torch.tensor(values), 256, flip_sin_to_cos=True, downscale_freq_shift=0)
    np.testing.assert_allclose(sinusoid(values, 256), wanted.numpy(), rtol=0, atol=SINUSOID_TOLERANCE)


@pytest.mark.parametrize("grid", [(8, 8), (4, 12), (9, 5), (16, 16), (1, 7)])
@pytest.mark.parametrize("interpolation_scale", [1, 2])
def test_position_embedding_equals_diffusers(grid: tuple[int, int], interpolation_scale: int) -> None:
    patches = PatchEmbed(16, 16, patch_size=2, in_channels=1, embed_dim=48, interpolation_scale=interpolation_scale)
    with torch.no_grad():
        for parameter in patches.parameters():
            parameter.zero_()
        wanted = patches(torch.zeros(1, 1, 2 * grid[0], 2 * grid[1]))[0]
    found = position_embedding(48, *grid, base_size=8, interpolation_scale=interpolation_scale)
    np.testing.assert_allclose(found, wanted.numpy(), rtol=0, atol=POSITION_TOLERANCE)


@pytest.mark.parametrize(("kind", "switches"), SWITCHES, ids=str)
class TestDense:
    def test_conditioning_equals_diffusers(self, stored_dtype: str, kind: str, switches: dict[str, Any]) -> None:
        reference, model = _pair(kind, switches, stored_dtype)
        added = _added(reference, rows=len(TIMESTEPS))
        with torch.no_grad():
            timesteps = torch.tensor(TIMESTEPS)
            table, embedded = reference.adaln_single(timesteps, added, len(TIMESTEPS), torch.float32)
        found_table, found_embedded = model.adaln_single(TIMESTEPS, _sizes(model))
        assert relative_error(found_table.reshape(len(TIMESTEPS), -1), table) < STAGE_TOLERANCES[stored_dtype]
        assert relative_error(found_embedded, embedded) < STAGE_TOLERANCES[stored_dtype]

    @pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 24), (20, 12)])
    def test_every_block_equals_diffusers(
        self, stored_dtype: str, kind: str, switches: dict[str, Any], height: int, width: int
    ) -> None:
        reference, model = _pair(kind, switches, stored_dtype)
        latents, text, mask = _inputs(height, width)
        conditions = model.prepare(_rows(text), TIMESTEPS, height, width, sizes=_sizes(model))
        x, run = model.embed(_nhwc(latents), conditions), conditions.start()
        for layer, wanted in enumerate(_reference_blocks(reference, latents, text, mask, TIMESTEPS[1])):
            x = model.run_block(x, layer, 1, conditions, run)
            assert relative_error(x, wanted) < STAGE_TOLERANCES[stored_dtype], layer

    @pytest.mark.parametrize(("height", "width"), [(16, 16), (8, 24), (20, 12)])
    def test_output_equals_diffusers_at_every_step(
        self, stored_dtype: str, kind: str, switches: dict[str, Any], height: int, width: int
    ) -> None:
        reference, model = _pair(kind, switches, stored_dtype)
        latents, text, mask = _inputs(height, width)
        conditions = model.prepare(_rows(text), TIMESTEPS, height, width, sizes=_sizes(model))
        run = conditions.start()
        for step, timestep in enumerate(TIMESTEPS):
            wanted = _run(reference, latents, text, mask, timestep)
            found = model(_nhwc(latents), step, conditions, run)
            assert relative_error(to_nchw(found), wanted) < STAGE_TOLERANCES[stored_dtype], timestep


class TestPrepare:
    def test_refuses_text_of_another_width(self) -> None:
        _, model = _pair("sigma", {})
        with pytest.raises(ShapeError, match="text has the wrong shape"):
            model.prepare([mx.zeros((3, 7))], TIMESTEPS, 16, 16)

    def test_refuses_a_latent_of_broken_patches(self) -> None:
        _, model = _pair("sigma", {})
        with pytest.raises(ShapeError, match="whole patches"):
            model.prepare([mx.zeros((3, tiny.TEXT_WIDTH))], TIMESTEPS, 15, 16)

    @pytest.mark.parametrize(("kind", "sizes"), [("sigma", SIZES), ("alpha-micro", {})])
    def test_refuses_a_size_too_many_or_missing(self, kind: str, sizes: Sizes) -> None:
        _, model = _pair(kind, {})
        with pytest.raises(ValueRangeError, match="size of the picture"):
            model.prepare([mx.zeros((3, tiny.TEXT_WIDTH))], TIMESTEPS, 16, 16, sizes=sizes)


def _pair(kind: str, switches: dict[str, Any], dtype: str = "float32") -> tuple[Any, PixArt]:
    reference = tiny.make_transformer(kind, **switches)
    config = {**reference.config, "_class_name": "PixArtTransformer2DModel"}
    spec = PixArtSpec.from_diffusers(config, "transformer")
    model = copy_weights(PixArt(spec, TokenPolicy.dense(spec.num_layers, 1000)), reference.state_dict())
    return reference, round_weights(model, spec.tensors(has_routers=False), dtype)


def _inputs(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(len(LENGTHS), 4, height, width, generator=generator)
    text = torch.randn(len(LENGTHS), max(LENGTHS), tiny.TEXT_WIDTH, generator=generator)
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).float()
    return latents, text, mask


def _rows(text: torch.Tensor) -> list[mx.array]:
    return [mx.array(row[:length].numpy()) for row, length in zip(text, LENGTHS, strict=True)]


def _nhwc(latents: torch.Tensor) -> mx.array:
    return mx.array(latents.permute(0, 2, 3, 1).numpy())


def _sizes(model: PixArt) -> Sizes:
    return SIZES if model.spec.use_additional_conditions else {}


def _added(reference: Any, rows: int) -> dict[str, torch.Tensor | None]:
    if not reference.use_additional_conditions:
        return {"resolution": None, "aspect_ratio": None}
    return {name: torch.tensor([values] * rows) for name, values in SIZES.items()}


def _run(
    reference: Any, latents: torch.Tensor, text: torch.Tensor, mask: torch.Tensor, timestep: float
) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = reference(
            latents,
            encoder_hidden_states=text,
            timestep=torch.tensor([timestep] * len(latents)),
            added_cond_kwargs=_added(reference, len(latents)),
            encoder_attention_mask=mask,
        ).sample
    return output


def _reference_blocks(
    reference: Any, latents: torch.Tensor, text: torch.Tensor, mask: torch.Tensor, timestep: float
) -> Sequence[torch.Tensor]:
    outputs: list[torch.Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        for block in reference.transformer_blocks
    ]
    _run(reference, latents, text, mask, timestep)
    for hook in hooks:
        hook.remove()
    return outputs
