"""DiT on MLX: every block computes its own modulation from timestep and class label.

The modulations of all steps are computed once per generation, so that a step does not read the weights that they take,
a third of the model's.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from mlx_moddit.layers import modulate
from mlx_moddit.transformer import Block, Conditions, Sizes, TimestepEmbedding, Told, Transformer, unit_scales
from moddit.errors import ShapeError
from moddit.models.dit import FREQ_SHIFT, NORM_EPS, DiTSpec
from moddit.models.transformer import OUTPUT_NORM_EPS
from moddit.tokens import TokenPolicy


class TimestepAndLabelEmbedding(nn.Module):
    """Shapes: timesteps (S,), labels (B,) -> (S, B, C)."""

    def __init__(self, spec: DiTSpec):
        super().__init__()
        self.timestep_embedder = TimestepEmbedding(spec.hidden_size, FREQ_SHIFT)
        self.class_embedder = {"embedding_table": nn.Embedding(spec.num_classes + 1, spec.hidden_size)}

    def __call__(self, timesteps: Sequence[float], labels: mx.array) -> mx.array:
        return self.timestep_embedder(timesteps)[:, None] + self.class_embedder["embedding_table"](labels)


class AdaLayerNormZero(nn.Module):
    """The modulation of a block. Shapes: timesteps (S,), labels (B,) -> (S, B, 6, C)."""

    def __init__(self, spec: DiTSpec):
        super().__init__()
        self.emb = TimestepAndLabelEmbedding(spec)
        self.linear = nn.Linear(spec.hidden_size, 6 * spec.hidden_size)

    def __call__(self, timesteps: Sequence[float], labels: mx.array) -> mx.array:
        modulation = self.linear(nn.silu(self.emb(timesteps, labels)))
        return modulation.reshape(*modulation.shape[:2], 6, -1)


class DiTBlock(Block):
    """A block that computes its own modulation."""

    def __init__(self, spec: DiTSpec, *, has_router: bool):
        super().__init__(spec, has_router=has_router)
        self.norm1 = AdaLayerNormZero(spec)

    def __call__(self, x: mx.array, modulation: mx.array, gates: Sequence[mx.array]) -> mx.array:
        """Process tokens; gates multiply the MLP branch.

        Shapes: x (B, N, C), modulation (B, 6, C), gates (B, N, 1) -> (B, N, C)
        """
        parts = mx.split(modulation, 6, axis=1)  # six of (B, 1, C)
        shift_attention, scale_attention, gate_attention, shift_mlp, scale_mlp, gate_mlp = parts
        y = modulate(mx.fast.layer_norm(x, None, None, NORM_EPS), scale_attention, shift_attention)
        x = self.attend(x, y, gate_attention)
        y = modulate(mx.fast.layer_norm(x, None, None, self.eps), scale_mlp, shift_mlp)
        return self.feed_forward(x, y, gate_mlp, gates)


class DiT(Transformer):
    """DiTTransformer2DModel. Its context is the number of each row's class, (); one beyond the last is no class."""

    spec: DiTSpec

    def __init__(self, spec: DiTSpec, policy: TokenPolicy):
        super().__init__(spec, policy)
        self.transformer_blocks = [DiTBlock(spec, has_router=policy.has_routers) for _ in range(spec.num_layers)]
        self.proj_out_1 = nn.Linear(spec.hidden_size, 2 * spec.hidden_size)
        self.proj_out_2 = nn.Linear(spec.hidden_size, spec.patch_size**2 * spec.out_channels)

    def tell(self, context: Sequence[mx.array], timesteps: tuple[float, ...], sizes: Sizes) -> Told:  # noqa: ARG002 # a DiT is told no sizes
        if any(row.shape != () for row in context):
            raise ShapeError(f"[transformer] labels have shapes {[row.shape for row in context]}, want ()")
        labels, one = mx.stack(list(context)), unit_scales()
        blocks = self.transformer_blocks
        embedded = blocks[0].norm1.emb(timesteps, labels)  # the output takes the first block's
        table = self.proj_out_1(nn.silu(embedded)).reshape(*embedded.shape[:2], 2, -1)
        return Told(
            context=((),) * len(blocks),
            modulation=tuple(tuple((block.norm1(timesteps, labels) + one).astype(self.dtype)) for block in blocks),
            output_modulation=tuple((table + one[:2]).astype(self.dtype)),
        )

    def project(self, x: mx.array, step: int, conditions: Conditions) -> mx.array:
        shift, scale = mx.split(conditions.told.output_modulation[step], 2, axis=1)
        y = modulate(mx.fast.layer_norm(x, None, None, OUTPUT_NORM_EPS), scale, shift)
        return self.unpatch(self.proj_out_2(y), conditions)
