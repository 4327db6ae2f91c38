"""What the denoising transformers on MLX share. Attribute names are diffusers' tensor names.

What no step changes is computed once per generation by `Transformer.prepare`: what the blocks attend to, the modulation
of every step and layer, and the position embedding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import mlx.core as mx
import mlx.nn as nn

from mlx_moddit.layers import Attention, add_gated, compute_dtype
from mlx_moddit.tokens import OnBlock, TokenRun
from moddit.embeddings import sinusoid
from moddit.errors import ValueRangeError
from moddit.models.transformer import TransformerSpec
from moddit.tensors import TIMESTEP_CHANNELS
from moddit.tokens import TokenPolicy

Sizes = Mapping[str, tuple[float, ...]]  # what a model is told about the picture's size (`size_features`)
NO_SIZES: Final[Sizes] = MappingProxyType({})
Steps = tuple[mx.array, ...]  # what differs from step to step, apart: a step that indexed one array would copy its part


@dataclass(frozen=True)
class Told:
    """What an architecture tells its blocks, the same in every picture of a generation."""

    context: tuple[tuple[Any, ...], ...]  # per layer, what its block takes beside the tokens
    modulation: tuple[Steps, ...]  # per layer (6, C) or (B, 6, C): shift, 1 + scale and gate, of each branch
    output_modulation: Steps  # (2, C) or (B, 2, C): shift, 1 + scale
    shared: tuple[mx.array, ...] = ()  # arrays of the context, to evaluate or count them


@dataclass(frozen=True)
class Conditions:
    """What stays the same over the steps of one generation."""

    policy: TokenPolicy
    timesteps: tuple[float, ...]
    grid: tuple[int, int]  # rows and columns of patches
    position: mx.array  # (N, C) float32
    told: Told

    def arrays(self) -> list[mx.array]:
        """List every array, to evaluate or count them."""
        modulations = (*self.told.modulation, self.told.output_modulation)
        return [self.position, *self.told.shared, *(array for steps in modulations for array in steps)]

    def start(
        self,
        *,
        on_block: OnBlock | None = None,
        forced: Sequence[mx.array] | None = None,
        cache: float | None = None,
    ) -> TokenRun:
        """Begin a picture; see `TokenRun`."""
        tokens = self.position.shape[0]
        return TokenRun(self.policy, self.timesteps, tokens, on_block=on_block, forced=forced, cache=cache)


class Transformer(nn.Module, ABC):
    """A denoising transformer; an architecture says how it is conditioned, and how a block and the output work.

    Example:
        conditions = model.prepare([no_text, text], table.timesteps, 128, 128)
        run = conditions.start()
        for step in range(len(table.timesteps)):
            output = model(latents, step, conditions, run)
    """

    transformer_blocks: list[Any]

    def __init__(self, spec: TransformerSpec, policy: TokenPolicy):
        super().__init__()
        self.spec = spec
        self.policy = policy
        self.pos_embed = PatchEmbedding(spec)

    @property
    def dtype(self) -> mx.Dtype:
        """The dtype of the activations."""
        return compute_dtype(self.transformer_blocks[0].attn1.to_out[0])

    def prepare(
        self,
        context: Sequence[mx.array],
        timesteps: Sequence[float],
        height: int,
        width: int,
        *,
        sizes: Sizes = NO_SIZES,
    ) -> Conditions:
        """Compute and evaluate what stays the same over a generation.

        `context` has what each row of the batch is conditioned on, as the architecture takes it; timesteps, 0..T - 1,
        may be fractional; height and width are latent pixels, multiples of patch_size; `sizes` are those of the
        picture, for models that are told (`spec.size_features`).

        Raises:
            ShapeError: a side is not made of whole patches, or the context has another shape.
            ValueRangeError: a timestep outside the training range, or sizes missing or given in vain.
        """
        wanted = self.spec.size_features(1, 1).keys()
        if sizes.keys() != wanted:
            verb = "needs" if wanted else "does not take"
            raise ValueRangeError(f"[transformer] this model {verb} the size of the picture, got {dict(sizes)}")
        self.policy.plan.schedule(timesteps)
        self.spec.tokens(height, width)
        grid = (height // self.spec.patch_size, width // self.spec.patch_size)
        position = mx.array(self.spec.position_embedding(*grid))
        told = self.tell(context, tuple(timesteps), sizes)
        conditions = Conditions(self.policy, tuple(timesteps), grid, position, told)
        mx.eval(conditions.arrays())
        return conditions

    @abstractmethod
    def tell(self, context: Sequence[mx.array], timesteps: tuple[float, ...], sizes: Sizes) -> Told:
        """Compute what the blocks of an architecture are told, lazily."""

    def __call__(self, latents: mx.array, step: int, conditions: Conditions, run: TokenRun) -> mx.array:
        """Predict noise or velocity at a step, an index into the timesteps given to `prepare`.

        Shapes: latents (B, H, W, in_channels) of any floating dtype -> (B, H, W, out_channels) float32
        """

        def run_behind(x: mx.array) -> mx.array:
            for layer in range(1, len(self.transformer_blocks)):
                x = self.run_block(x, layer, step, conditions, run)
            return x

        x = self.embed(latents, conditions)
        first = self.run_block(x, 0, step, conditions, run)
        x = run_behind(first) if run.cache is None else run.cache.run(x, first, run_behind)
        return self.project(x, step, conditions)

    def embed(self, latents: mx.array, conditions: Conditions) -> mx.array:
        """Shapes: latents (B, H, W, in_channels) -> tokens (B, N, C)."""
        return self.pos_embed(latents.astype(self.dtype), conditions.position)

    def run_block(self, x: mx.array, layer: int, step: int, conditions: Conditions, run: TokenRun) -> mx.array:
        """Shapes: x (B, N, C) -> (B, N, C)."""
        block = self.transformer_blocks[layer]
        kept = run.keep(block, x, layer, step)
        modulation = conditions.told.modulation[layer][step]
        return kept.put_back(block(kept.tokens, modulation, kept.gates, *conditions.told.context[layer]))

    @abstractmethod
    def project(self, x: mx.array, step: int, conditions: Conditions) -> mx.array:
        """Shapes: x (B, N, C) -> (B, H, W, out_channels) float32."""

    def unpatch(self, x: mx.array, conditions: Conditions) -> mx.array:
        """Put the patches in their places. Shapes: x (B, N, P * P * channels) -> (B, H, W, channels) float32."""
        (rows, columns), patch, channels = conditions.grid, self.spec.patch_size, self.spec.out_channels
        x = x.reshape(-1, rows, columns, patch, patch, channels).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(-1, rows * patch, columns * patch, channels).astype(mx.float32)


def unit_scales() -> mx.array:
    """What is added to a modulation, because a norm is multiplied by 1 + scale. Shapes: -> (6, 1)."""
    return mx.array([0.0, 1.0, 0.0, 0.0, 1.0, 0.0])[:, None]


class PatchEmbedding(nn.Module):
    """Shapes: latents (B, H, W, channels) -> tokens (B, N, C)."""

    def __init__(self, spec: TransformerSpec):
        super().__init__()
        self.proj = nn.Conv2d(spec.in_channels, spec.hidden_size, kernel_size=spec.patch_size, stride=spec.patch_size)

    def __call__(self, latents: mx.array, position: mx.array) -> mx.array:
        tokens = self.proj(latents)  # (B, H / patch, W / patch, C)
        tokens = tokens.reshape(tokens.shape[0], -1, tokens.shape[-1])
        return (tokens + position).astype(tokens.dtype)


class TimestepEmbedding(nn.Module):
    """Two linear layers over the sinusoid of a number. Shapes: values (S,) -> (S, channels)."""

    def __init__(self, channels: int, freq_shift: int = 0):
        super().__init__()
        self.freq_shift = freq_shift  # of the sinusoid's frequencies (diffusers' downscale_freq_shift)
        self.linear_1 = nn.Linear(TIMESTEP_CHANNELS, channels)
        self.linear_2 = nn.Linear(channels, channels)

    def __call__(self, values: Sequence[float]) -> mx.array:
        return self.linear_2(nn.silu(self.linear_1(mx.array(sinusoid(values, TIMESTEP_CHANNELS, self.freq_shift)))))


class Block(nn.Module):
    """What the blocks of all architectures have: self-attention and MLP, and a router where tokens are ranked."""

    def __init__(self, spec: TransformerSpec, *, has_router: bool):
        super().__init__()
        self.eps = spec.norm_eps
        self.attn1 = Attention(spec.hidden_size, spec.num_attention_heads, bias=spec.attention_bias)
        self.ff = FeedForward(spec.hidden_size)
        if has_router:
            self.router = nn.Linear(spec.hidden_size, 1, bias=False)

    def attend(self, x: mx.array, y: mx.array, gate: mx.array) -> mx.array:
        """Add self-attention of normed tokens to the stream. Shapes: x, y (B, N, C) -> (B, N, C)."""
        return add_gated(x, self.attn1.self_attend(y), gate)

    def feed_forward(self, x: mx.array, y: mx.array, gate: mx.array, gates: Sequence[mx.array]) -> mx.array:
        """Add the MLP of normed tokens, gated by modulation and policy. Shapes: x, y (B, N, C) -> (B, N, C)."""
        return add_gated(x, self.ff(y), gate, *gates)


class FeedForward(nn.Module):
    """Shapes: x (B, N, C) -> (B, N, C)."""

    def __init__(self, channels: int):
        super().__init__()
        # the middle one is a dropout in training; only its number counts here
        self.net: list[Any] = [{"proj": nn.Linear(channels, 4 * channels)}, {}, nn.Linear(4 * channels, channels)]

    def __call__(self, x: mx.array) -> mx.array:
        return self.net[2](nn.gelu_approx(self.net[0]["proj"](x)))
