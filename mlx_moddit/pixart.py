"""PixArt (alpha and Sigma) on MLX: one modulation for all samples of a batch, cross-attention to the text.

All samples share the timestep, so shift and scale are vectors, and LayerNorm with modulation is one kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from mlx_moddit.layers import Attention
from mlx_moddit.transformer import Block, Conditions, Sizes, TimestepEmbedding, Told, Transformer, unit_scales
from moddit.errors import ShapeError
from moddit.models.pixart import PixArtSpec
from moddit.models.transformer import OUTPUT_NORM_EPS
from moddit.tokens import TokenPolicy

# Keys and values (B, H, L, D) of the text for a layer, and its mask (B, 1, 1, L): true for real tokens; None if all are
Text = tuple[mx.array, mx.array, mx.array | None]


class SizeAndTimestepEmbedding(nn.Module):
    """Timestep embedding, plus those of the picture's height, width and aspect ratio in a micro-conditioned model.

    Shapes: timesteps (S,) -> (S, C)
    """

    def __init__(self, spec: PixArtSpec):
        super().__init__()
        self.timestep_embedder = TimestepEmbedding(spec.hidden_size)
        if spec.use_additional_conditions:
            self.resolution_embedder = TimestepEmbedding(spec.hidden_size // 3)
            self.aspect_ratio_embedder = TimestepEmbedding(spec.hidden_size // 3)

    def __call__(self, timesteps: Sequence[float], sizes: Sizes) -> mx.array:
        embedded = self.timestep_embedder(timesteps)
        if not sizes:
            return embedded
        sides = self.resolution_embedder(sizes["resolution"]).reshape(-1)  # (2 C / 3,)
        return embedded + mx.concatenate([sides, self.aspect_ratio_embedder(sizes["aspect_ratio"])[0]])


class AdaLayerNormSingle(nn.Module):
    """One modulation for all blocks, to which every block adds its own table.

    Shapes: timesteps (S,) -> modulation (S, 6, C), embedded timesteps (S, C)
    """

    def __init__(self, spec: PixArtSpec):
        super().__init__()
        self.emb = SizeAndTimestepEmbedding(spec)
        self.linear = nn.Linear(spec.hidden_size, 6 * spec.hidden_size)

    def __call__(self, timesteps: Sequence[float], sizes: Sizes) -> tuple[mx.array, mx.array]:
        embedded = self.emb(timesteps, sizes)
        return self.linear(nn.silu(embedded)).reshape(len(timesteps), 6, -1), embedded


class CaptionProjection(nn.Module):
    """Shapes: text (B, L, caption_channels) -> (B, L, C)."""

    def __init__(self, spec: PixArtSpec):
        super().__init__()
        self.linear_1 = nn.Linear(spec.caption_channels, spec.hidden_size)
        self.linear_2 = nn.Linear(spec.hidden_size, spec.hidden_size)

    def __call__(self, text: mx.array) -> mx.array:
        return self.linear_2(nn.gelu_approx(self.linear_1(text)))


class PixArtBlock(Block):
    """A block with cross-attention to the text."""

    def __init__(self, spec: PixArtSpec, *, has_router: bool):
        super().__init__(spec, has_router=has_router)
        self.scale_shift_table = mx.zeros((6, spec.hidden_size))
        self.attn2 = Attention(spec.hidden_size, spec.num_attention_heads, bias=spec.attention_bias)

    def __call__(self, x: mx.array, modulation: mx.array, gates: Sequence[mx.array], *text: *Text) -> mx.array:
        """Process tokens; gates multiply the MLP branch.

        Shapes: x (B, N, C), modulation (6, C), gates (B, N, 1) -> (B, N, C)
        """
        shift_attention, scale_attention, gate_attention, shift_mlp, scale_mlp, gate_mlp = modulation
        y = mx.fast.layer_norm(x, scale_attention, shift_attention, self.eps)
        x = self.attend(x, y, gate_attention)
        x = x + self.attn2(x, *text)  # PixArt does not normalise before cross-attention
        y = mx.fast.layer_norm(x, scale_mlp, shift_mlp, self.eps)
        return self.feed_forward(x, y, gate_mlp, gates)


class PixArt(Transformer):
    """PixArtTransformer2DModel. Its context is the encoded text of each row of the batch, (L_i, caption_channels)
    without padding; lengths may differ.
    """

    spec: PixArtSpec

    def __init__(self, spec: PixArtSpec, policy: TokenPolicy):
        super().__init__(spec, policy)
        self.adaln_single = AdaLayerNormSingle(spec)
        self.caption_projection = CaptionProjection(spec)
        self.transformer_blocks = [PixArtBlock(spec, has_router=policy.has_routers) for _ in range(spec.num_layers)]
        self.scale_shift_table = mx.zeros((2, spec.hidden_size))
        self.proj_out = nn.Linear(spec.hidden_size, spec.patch_size**2 * spec.out_channels)

    def tell(self, context: Sequence[mx.array], timesteps: tuple[float, ...], sizes: Sizes) -> Told:
        texts = self._cross_attend(context)
        table, embedded = self.adaln_single(timesteps, sizes)
        one = unit_scales()
        return Told(
            context=texts,
            modulation=tuple(
                tuple((table + block.scale_shift_table + one).astype(self.dtype)) for block in self.transformer_blocks
            ),
            output_modulation=tuple((embedded[:, None] + self.scale_shift_table + one[:2]).astype(self.dtype)),
            shared=tuple(array for keys, values, _ in texts for array in (keys, values)),
        )

    def project(self, x: mx.array, step: int, conditions: Conditions) -> mx.array:
        shift, scale = conditions.told.output_modulation[step]
        return self.unpatch(self.proj_out(mx.fast.layer_norm(x, scale, shift, OUTPUT_NORM_EPS)), conditions)

    def _cross_attend(self, rows: Sequence[mx.array]) -> tuple[Text, ...]:
        width = self.spec.caption_channels
        for row in rows:
            if row.ndim != 2 or row.shape[0] < 1 or row.shape[1] != width:
                raise ShapeError(f"[transformer] text has the wrong shape, got {row.shape}, want (tokens, {width})")
        lengths = [row.shape[0] for row in rows]
        longest = max(lengths)
        padded = mx.stack([mx.pad(row, [(0, longest - row.shape[0]), (0, 0)]) for row in rows])
        mask = None
        if min(lengths) < longest:
            # masked tokens get a weight of exactly zero, so this equals attending to each row's own tokens
            mask = (mx.arange(longest) < mx.array(lengths)[:, None])[:, None, None, :]
        projected = self.caption_projection(padded.astype(self.dtype))
        return tuple((*block.attn2.keys_values(projected), mask) for block in self.transformer_blocks)
