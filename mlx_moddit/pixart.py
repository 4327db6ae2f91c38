"""PixArt (alpha and Sigma) on MLX, with routed blocks. Attribute names are diffusers' tensor names.

What no step changes is computed once per generation by `PixArt.prepare`: keys and values of the text, the modulation of
every step and layer (all samples of a batch share the timestep, so shift and scale are vectors and LayerNorm with
modulation is one kernel), the position embedding, and the capacities as Python integers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from mlx_moddit.layers import Attention, compute_dtype
from mlx_moddit.routing import gather_rows, route, scatter_rows
from moddit.embeddings import position_embedding, sinusoid
from moddit.errors import ShapeError, ValueRangeError
from moddit.routing import RoutingPlan
from moddit.spec import PixArtSpec
from moddit.tensors import TIMESTEP_CHANNELS

OUTPUT_NORM_EPS = 1e-6  # diffusers' `norm_out`, which does not follow the configuration's norm_eps

Record = Callable[[int, mx.array, mx.array], None]  # layer, scores (B, N) float32, kept (B, K) uint32


@dataclass(frozen=True)
class Size:
    """What a micro-conditioned model is told about the picture."""

    height: float  # pixels
    width: float  # pixels
    aspect_ratio: float  # height / width


@dataclass(frozen=True)
class Text:
    """Keys and values of the text for one layer, and which of them are real."""

    keys: mx.array  # (B, H, L, D)
    values: mx.array  # (B, H, L, D)
    mask: mx.array | None  # (B, 1, 1, L), True for real tokens; None if all are


@dataclass(frozen=True)
class Conditions:
    """What stays the same over the steps of one generation."""

    grid: tuple[int, int]  # rows and columns of patches
    position: mx.array  # (N, C) float32
    text: tuple[Text, ...]  # per layer
    modulation: tuple[mx.array, ...]  # per layer (S, 6, C): shift, 1 + scale and gate of attention, then of the MLP
    output_modulation: mx.array  # (S, 2, C): shift, 1 + scale
    capacities: tuple[tuple[int, ...], ...] | None  # [steps][layers]; None for a dense model

    def arrays(self) -> list[mx.array]:
        """List every array, to evaluate or count them."""
        cross = [array for text in self.text for array in (text.keys, text.values)]
        return [self.position, *cross, *self.modulation, self.output_modulation]


class PatchEmbedding(nn.Module):
    """Shapes: latents (B, H, W, channels) -> tokens (B, N, C)."""

    def __init__(self, spec: PixArtSpec):
        super().__init__()
        self.proj = nn.Conv2d(spec.in_channels, spec.hidden_size, kernel_size=spec.patch_size, stride=spec.patch_size)

    def __call__(self, latents: mx.array, position: mx.array) -> mx.array:
        tokens = self.proj(latents)  # (B, H / patch, W / patch, C)
        tokens = tokens.reshape(tokens.shape[0], -1, tokens.shape[-1])
        return (tokens + position).astype(tokens.dtype)


class TimestepEmbedding(nn.Module):
    """Two linear layers over the sinusoid of a number.

    Shapes:
        values (S,) -> (S, channels)
    """

    def __init__(self, channels: int):
        super().__init__()
        self.linear_1 = nn.Linear(TIMESTEP_CHANNELS, channels)
        self.linear_2 = nn.Linear(channels, channels)

    def __call__(self, values: Sequence[float]) -> mx.array:
        return self.linear_2(nn.silu(self.linear_1(mx.array(sinusoid(values, TIMESTEP_CHANNELS)))))


class SizeAndTimestepEmbedding(nn.Module):
    """Timestep embedding, plus those of the picture's height, width and aspect ratio in a micro-conditioned model.

    Shapes:
        timesteps (S,) -> (S, C)
    """

    def __init__(self, spec: PixArtSpec):
        super().__init__()
        self.timestep_embedder = TimestepEmbedding(spec.hidden_size)
        if spec.use_additional_conditions:
            self.resolution_embedder = TimestepEmbedding(spec.hidden_size // 3)
            self.aspect_ratio_embedder = TimestepEmbedding(spec.hidden_size // 3)

    def __call__(self, timesteps: Sequence[float], size: Size | None) -> mx.array:
        embedded = self.timestep_embedder(timesteps)
        if size is None:
            return embedded
        sides = self.resolution_embedder((size.height, size.width)).reshape(-1)  # (2 C / 3,)
        return embedded + mx.concatenate([sides, self.aspect_ratio_embedder((size.aspect_ratio,))[0]])


class AdaLayerNormSingle(nn.Module):
    """One modulation for all blocks, to which every block adds its own table.

    Shapes:
        timesteps (S,) -> modulation (S, 6, C), embedded timesteps (S, C)
    """

    def __init__(self, spec: PixArtSpec):
        super().__init__()
        self.emb = SizeAndTimestepEmbedding(spec)
        self.linear = nn.Linear(spec.hidden_size, 6 * spec.hidden_size)

    def __call__(self, timesteps: Sequence[float], size: Size | None) -> tuple[mx.array, mx.array]:
        embedded = self.emb(timesteps, size)
        return self.linear(nn.silu(embedded)).reshape(len(timesteps), 6, -1), embedded


class CaptionProjection(nn.Module):
    """Shapes: text (B, L, caption_channels) -> (B, L, C)."""

    def __init__(self, spec: PixArtSpec):
        super().__init__()
        self.linear_1 = nn.Linear(spec.caption_channels, spec.hidden_size)
        self.linear_2 = nn.Linear(spec.hidden_size, spec.hidden_size)

    def __call__(self, text: mx.array) -> mx.array:
        return self.linear_2(nn.gelu_approx(self.linear_1(text)))


class GELU(nn.Module):
    """Linear layer and tanh-approximated GELU."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.proj = nn.Linear(channels, hidden)

    def __call__(self, x: mx.array) -> mx.array:
        return nn.gelu_approx(self.proj(x))


class FeedForward(nn.Module):
    """Shapes: x (B, N, C) -> (B, N, C)."""

    def __init__(self, channels: int):
        super().__init__()
        # the middle one is a dropout in training; only its number counts here
        self.net: list[nn.Module] = [GELU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels)]

    def __call__(self, x: mx.array) -> mx.array:
        for layer in self.net:
            x = layer(x)
        return x


class Block(nn.Module):
    """Self-attention, cross-attention to the text, and MLP; routed if it has a router."""

    def __init__(self, spec: PixArtSpec, *, is_routed: bool):
        super().__init__()
        self.eps = spec.norm_eps
        self.scale_shift_table = mx.zeros((6, spec.hidden_size))
        self.attn1 = Attention(spec.hidden_size, spec.num_attention_heads, bias=spec.attention_bias)
        self.attn2 = Attention(spec.hidden_size, spec.num_attention_heads, bias=spec.attention_bias)
        self.ff = FeedForward(spec.hidden_size)
        if is_routed:
            self.router = nn.Linear(spec.hidden_size, 1, bias=False)

    def __call__(self, x: mx.array, modulation: mx.array, text: Text, scores: mx.array | None = None) -> mx.array:
        """Process tokens; the sigmoid of their router scores gates the MLP branch, unless the model is dense.

        Shapes:
            x (B, N, C), modulation (6, C), scores (B, N) -> (B, N, C)
        """
        shift_attention, scale_attention, gate_attention, shift_mlp, scale_mlp, gate_mlp = modulation
        y = mx.fast.layer_norm(x, scale_attention, shift_attention, self.eps)
        x = x + gate_attention * self.attn1(y, *self.attn1.keys_values(y))
        x = x + self.attn2(x, text.keys, text.values, text.mask)  # PixArt does not normalise before cross-attention
        y = gate_mlp * self.ff(mx.fast.layer_norm(x, scale_mlp, shift_mlp, self.eps))
        if scores is not None:
            y = y * mx.sigmoid(scores)[..., None].astype(y.dtype)
        return x + y

    def score(self, x: mx.array) -> mx.array:
        """Score every token in float32, whatever the precision of the model.

        Shapes:
            x (B, N, C) -> (B, N) float32
        """
        return (x.astype(mx.float32) @ self.router.weight.astype(mx.float32).T)[..., 0]

    def routed(
        self, x: mx.array, modulation: mx.array, text: Text, count: int, forced: mx.array | None = None
    ) -> tuple[mx.array, mx.array, mx.array]:
        """Process the `count` tokens with the largest scores, or those of `forced`, and leave the others unchanged.

        Shapes:
            x (B, N, C), forced (B, count) -> x (B, N, C), scores (B, N), kept (B, count)
        """
        scores = self.score(x)
        B, N = scores.shape
        if count == N:
            return self(x, modulation, text, scores), scores, mx.broadcast_to(mx.arange(N, dtype=mx.uint32), (B, N))
        kept = route(scores, count) if forced is None else forced
        rows = self(gather_rows(x, kept), modulation, text, mx.take_along_axis(scores, kept, axis=1))
        return scatter_rows(x, kept, rows), scores, kept


class PixArt(nn.Module):
    """PixArtTransformer2DModel, dense (`plan` None) or routed.

    Example:
        conditions = model.prepare([text, no_text], table.timesteps, 128, 128)
        for step in range(len(table.timesteps)):
            output = model(latents, step, conditions)
    """

    def __init__(self, spec: PixArtSpec, plan: RoutingPlan | None):
        super().__init__()
        self.spec = spec
        self.plan = plan
        self.pos_embed = PatchEmbedding(spec)
        self.adaln_single = AdaLayerNormSingle(spec)
        self.caption_projection = CaptionProjection(spec)
        self.transformer_blocks = [Block(spec, is_routed=plan is not None) for _ in range(spec.num_layers)]
        self.scale_shift_table = mx.zeros((2, spec.hidden_size))
        self.proj_out = nn.Linear(spec.hidden_size, spec.patch_size**2 * spec.out_channels)

    @property
    def dtype(self) -> mx.Dtype:
        """The dtype of the activations."""
        return compute_dtype(self.transformer_blocks[0].attn1.to_q)

    def prepare(
        self,
        text: Sequence[mx.array],
        timesteps: Sequence[float],
        height: int,
        width: int,
        *,
        size: Size | None = None,
    ) -> Conditions:
        """Compute and evaluate what stays the same over a generation.

        Args:
            text: encoded text of each row of the batch, without padding, (L_i, caption_channels); lengths may differ.
            timesteps: of every step, 0..T - 1; may be fractional.
            height: latent pixels, a multiple of patch_size.
            width: latent pixels, a multiple of patch_size.
            size: of the picture, for micro-conditioned models only.

        Raises:
            ShapeError: a side is not made of whole patches, or a text has another width than caption_channels.
            ValueRangeError: a timestep outside the training range, or a size missing or given in vain.
        """
        self._check(text, size)
        spec, blocks, tokens = self.spec, self.transformer_blocks, self.spec.tokens(height, width)
        grid = (height // spec.patch_size, width // spec.patch_size)
        table, embedded = self.adaln_single(timesteps, size)
        one = mx.array([0.0, 1.0, 0.0, 0.0, 1.0, 0.0])[:, None]  # LayerNorm multiplies by 1 + scale
        position = position_embedding(
            spec.hidden_size, *grid, base_size=spec.base_size, interpolation_scale=spec.interpolation_scale
        )
        conditions = Conditions(
            grid=grid,
            position=mx.array(position),
            text=self._cross_attend(text),
            modulation=tuple((table + block.scale_shift_table + one).astype(self.dtype) for block in blocks),
            output_modulation=(embedded[:, None] + self.scale_shift_table + one[:2]).astype(self.dtype),
            capacities=self._capacities(timesteps, tokens),
        )
        mx.eval(conditions.arrays())
        return conditions

    def __call__(
        self,
        latents: mx.array,
        step: int,
        conditions: Conditions,
        record: Record | None = None,
        forced: Sequence[mx.array] | None = None,
    ) -> mx.array:
        """Predict noise or velocity at one step.

        Args:
            latents: any floating dtype.
            step: index into the timesteps given to `prepare`.
            conditions: what `prepare` gave.
            record: called with every routed layer's index, scores and kept indices (lazy arrays).
            forced: tokens to keep in every layer instead of the ranking's, for parity reports.

        Shapes:
            latents (B, H, W, in_channels) -> (B, H, W, out_channels) float32
        """
        x = self.embed(latents, conditions)
        for layer in range(len(self.transformer_blocks)):
            x = self.run_block(x, layer, step, conditions, record, None if forced is None else forced[layer])
        return self.project(x, step, conditions)

    def embed(self, latents: mx.array, conditions: Conditions) -> mx.array:
        """Shapes: latents (B, H, W, in_channels) -> tokens (B, N, C)."""
        return self.pos_embed(latents.astype(self.dtype), conditions.position)

    def run_block(
        self,
        x: mx.array,
        layer: int,
        step: int,
        conditions: Conditions,
        record: Record | None = None,
        forced: mx.array | None = None,
    ) -> mx.array:
        """Shapes: x (B, N, C), forced (B, K) -> (B, N, C)."""
        block, text = self.transformer_blocks[layer], conditions.text[layer]
        modulation = conditions.modulation[layer][step]
        if conditions.capacities is None:
            return block(x, modulation, text)
        x, scores, kept = block.routed(x, modulation, text, conditions.capacities[step][layer], forced)
        if record is not None:
            record(layer, scores, kept)
        return x

    def project(self, x: mx.array, step: int, conditions: Conditions) -> mx.array:
        """Shapes: x (B, N, C) -> (B, H, W, out_channels) float32."""
        shift, scale = conditions.output_modulation[step]
        x = self.proj_out(mx.fast.layer_norm(x, scale, shift, OUTPUT_NORM_EPS))
        (rows, columns), patch, channels = conditions.grid, self.spec.patch_size, self.spec.out_channels
        x = x.reshape(-1, rows, columns, patch, patch, channels).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(-1, rows * patch, columns * patch, channels).astype(mx.float32)

    def _cross_attend(self, rows: Sequence[mx.array]) -> tuple[Text, ...]:
        lengths = [row.shape[0] for row in rows]
        longest = max(lengths)
        padded = mx.stack([mx.pad(row, [(0, longest - row.shape[0]), (0, 0)]) for row in rows])
        mask = None
        if min(lengths) < longest:
            # masked tokens get a weight of exactly zero, so this equals attending to each row's own tokens
            mask = (mx.arange(longest) < mx.array(lengths)[:, None])[:, None, None, :]
        projected = self.caption_projection(padded.astype(self.dtype))
        return tuple(Text(*block.attn2.keys_values(projected), mask) for block in self.transformer_blocks)

    def _capacities(self, timesteps: Sequence[float], tokens: int) -> tuple[tuple[int, ...], ...] | None:
        if self.plan is None:
            return None
        return tuple(self.plan.capacities(region, tokens) for region in self.plan.schedule(timesteps))

    def _check(self, text: Sequence[mx.array], size: Size | None) -> None:
        width = self.spec.caption_channels
        for row in text:
            if row.ndim != 2 or row.shape[0] < 1 or row.shape[1] != width:
                raise ShapeError(f"[transformer] text has the wrong shape, got {row.shape}, want (tokens, {width})")
        if (size is not None) != self.spec.use_additional_conditions:
            verb = "needs" if self.spec.use_additional_conditions else "does not take"
            raise ValueRangeError(f"[transformer] this model {verb} the size of the picture, got {size}")
