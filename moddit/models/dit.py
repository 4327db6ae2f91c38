"""DiT: conditioned on a class label, with a modulation of its own in every block, computed from timestep and label.

Source: diffusers `models/transformers/dit_transformer_2d.py`, `models/normalization.py` (`AdaLayerNormZero`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final

from moddit.bounds import Channels, Classes, Epsilon, Heads, HeadWidth, Layers, Patch, Side
from moddit.contract import LABELS, TIMESTEP, TOKENS
from moddit.models.transformer import (
    SampleShapes,
    StepFeatures,
    TransformerSpec,
    attention_operations,
    block_tensors,
    mlp_operations,
    timestep_operations,
    told_operations,
)
from moddit.operations import Operation, activate, matmul, normalise
from moddit.tensors import Role, TensorInfo, Tensors, linear, timestep_embedding

FREQ_SHIFT: Final = 1  # of the timestep's sinusoid (diffusers' downscale_freq_shift)
NORM_EPS: Final = 1e-6  # of the norms before attention and output, whatever norm_eps says


@dataclass(frozen=True)
class _Config:
    """`transformer/config.json` of a DiTTransformer2DModel."""

    num_attention_heads: Heads = 16
    attention_head_dim: HeadWidth = 72
    in_channels: Channels = 4
    out_channels: Channels | None = None
    num_layers: Layers = 28
    attention_bias: bool = True
    sample_size: Side = 32
    patch_size: Patch = 2
    num_embeds_ada_norm: Classes = 1000
    norm_eps: Epsilon = 1e-5


@dataclass(frozen=True)
class DiTSpec(TransformerSpec):
    """Dimensions of a DiTTransformer2DModel."""

    ARCHITECTURE: ClassVar[str] = "dit"
    CONDITIONING: ClassVar[str] = "label"
    DIFFUSERS_CLASS: ClassVar[str] = "DiTTransformer2DModel"
    NORM_TYPE: ClassVar[str] = "ada_norm_zero"
    OUTPUT: ClassVar[str] = "proj_out_2"
    TITLE: ClassVar[str] = "DiT"
    CONFIG: ClassVar[type[Any]] = _Config

    num_classes: Classes  # without the one that stands for no class
    attention_bias: bool
    norm_eps: Epsilon  # of the norm before the MLP; the others have 1e-6

    @classmethod
    def derive(cls, config: _Config) -> dict[str, Any]:
        return {"out_channels": config.in_channels, "num_classes": config.num_embeds_ada_norm}

    def tensors(self, *, has_routers: bool) -> Tensors:
        hidden = self.hidden_size
        tensors = self.embedding_tensors()
        for layer in range(self.num_layers):
            norm = f"transformer_blocks.{layer}.norm1."
            tensors |= timestep_embedding(norm + "emb.timestep_embedder", hidden, role=Role.BLOCK_MODULATION)
            classes = TensorInfo((self.num_classes + 1, hidden), Role.BLOCK_MODULATION)
            tensors[norm + "emb.class_embedder.embedding_table.weight"] = classes
            tensors |= linear(norm + "linear", 6 * hidden, hidden, role=Role.BLOCK_MODULATION)
            tensors |= block_tensors(self, layer, ("attn1",), has_routers=has_routers)
        tensors |= linear("proj_out_1", 2 * hidden, hidden, role=Role.MODULATION)
        return tensors | linear("proj_out_2", self.patch_size**2 * self.out_channels, hidden, role=Role.OUTPUT)

    def block_operations(self, kept: int, text_tokens: int) -> list[Operation]:  # noqa: ARG002 # no text
        """List the operations of one block.

        With n tokens and C channels their FLOPs are n (24 C^2 + 4 n C): attention's four projections (8 C^2) and two
        matrix products (4 n C), and the MLP of ratio four (16 C^2). The modulation (12 C^2 for all tokens together) is
        not among them: MLX computes it once a picture.
        """
        width = self.hidden_size
        return [
            normalise(kept * width),
            *attention_operations(width, self.num_attention_heads, kept, kept, has_keys=False),
            normalise(kept * width),
            *mlp_operations(width, kept),
        ]

    def prepare_operations(self, tokens: int, steps: int, text_tokens: int) -> list[Operation]:  # noqa: ARG002 # no text
        width = self.hidden_size
        layer = [*timestep_operations(width, steps), activate(steps * width), matmul(steps, width, 6 * width)]
        return [*told_operations(self, tokens, steps), *self.num_layers * layer, matmul(steps, width, 2 * width)]

    def step_features(self, batch: int, tokens: int, text_tokens: int) -> StepFeatures:  # noqa: ARG002 # no text
        return StepFeatures(
            first={},
            handed={TOKENS: (batch, tokens, self.hidden_size)},
            always={TIMESTEP: (1,), LABELS: (batch,)},
        )

    def sample_shapes(self) -> SampleShapes:
        return {"labels": ()}
