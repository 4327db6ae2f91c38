"""PixArt (alpha and Sigma): conditioned on a text by cross-attention, with one modulation for all blocks.

Source: diffusers `models/transformers/pixart_transformer_2d.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

from moddit.bounds import Channels, Epsilon, Heads, HeadWidth, Layers, Patch, Scale, Side, Width
from moddit.contract import (
    ASPECT_RATIO,
    EMBEDDED,
    MODULATION,
    RESOLUTION,
    TEXT,
    TEXT_MASK,
    TEXT_STATES,
    TIMESTEP,
    TOKENS,
)
from moddit.errors import ShapeError, UnsupportedError
from moddit.models.config import Config
from moddit.models.transformer import (
    SampleShapes,
    Shapes,
    StepFeatures,
    TransformerSpec,
    attention_operations,
    block_tensors,
    mlp_operations,
    timestep_operations,
    told_operations,
)
from moddit.operations import Operation, activate, combine, matmul, normalise
from moddit.tensors import Role, TensorInfo, Tensors, linear, timestep_embedding

_CONDITIONS: Final = "adaln_single.emb.resolution_embedder."
_MICRO_CONDITIONED: Final = 128  # latent pixels: a model of this size has conditions unless it says otherwise


@dataclass(frozen=True)
class _Config:
    """`transformer/config.json` of a PixArtTransformer2DModel."""

    caption_channels: Width  # without it diffusers has no text projection
    num_attention_heads: Heads = 16
    attention_head_dim: HeadWidth = 72
    in_channels: Channels = 4
    out_channels: Channels | None = 8
    num_layers: Layers = 28
    cross_attention_dim: Width = 1152
    attention_bias: bool = True
    sample_size: Side = 128
    patch_size: Patch = 2
    norm_eps: Epsilon = 1e-6
    interpolation_scale: Scale | None = None
    use_additional_conditions: bool | None = None


@dataclass(frozen=True)
class PixArtSpec(TransformerSpec):
    """Dimensions of a PixArtTransformer2DModel (alpha or Sigma)."""

    ARCHITECTURE: ClassVar[str] = "pixart"
    CONDITIONING: ClassVar[str] = "text"
    DIFFUSERS_CLASS: ClassVar[str] = "PixArtTransformer2DModel"
    NORM_TYPE: ClassVar[str] = "ada_norm_single"
    OUTPUT: ClassVar[str] = "proj_out"
    TITLE: ClassVar[str] = "PixArt"
    HAS_BINS: ClassVar[bool] = True
    CONFIG: ClassVar[type[Any]] = _Config
    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {"attention_type": ("default", None)}

    cross_attention_dim: Width
    caption_channels: Width
    interpolation_scale: Scale  # of the position embedding
    attention_bias: bool
    norm_eps: Epsilon
    use_additional_conditions: bool  # resolution and aspect ratio (alpha at 1024 pixels)

    def __post_init__(self) -> None:
        if self.cross_attention_dim != self.hidden_size:
            raise UnsupportedError(
                f"[spec] cross_attention_dim is not the hidden size, "
                f"got {self.cross_attention_dim}, want {self.hidden_size}"
            )
        super().__post_init__()

    @classmethod
    def complete(cls, config: Config, names: Mapping[str, object]) -> Config:
        """Take from the tensors' names whether there are additional conditions.

        diffusers expects them at the size of the alpha of 1024 pixels, and a Sigma without them would fail in it.
        """
        if config.get("use_additional_conditions") is not None:
            return config
        is_conditioned = any(name.startswith(_CONDITIONS) for name in names)
        is_sized = config.get("sample_size", _MICRO_CONDITIONED) == _MICRO_CONDITIONED
        return {**config, "use_additional_conditions": is_sized and is_conditioned}

    @classmethod
    def from_diffusers(cls, config: Config, where: str) -> Self:
        spec = super().from_diffusers(config, where)
        if spec.use_additional_conditions and spec.hidden_size % 3:
            raise ShapeError(
                f"[spec] {where}: the hidden size {spec.hidden_size} is not a multiple of 3, as resolution and aspect "
                "ratio (use_additional_conditions) need"
            )
        return spec

    @classmethod
    def derive(cls, config: _Config) -> dict[str, Any]:
        return {
            "out_channels": config.in_channels,
            "interpolation_scale": float(max(config.sample_size // 64, 1)),
            "use_additional_conditions": config.sample_size == _MICRO_CONDITIONED,
        }

    def tensors(self, *, has_routers: bool) -> Tensors:
        hidden = self.hidden_size
        tensors: Tensors = {"scale_shift_table": TensorInfo((2, hidden), Role.MODULATION)} | self.embedding_tensors()
        for layer in range(self.num_layers):
            table = f"transformer_blocks.{layer}.scale_shift_table"
            tensors[table] = TensorInfo((6, hidden), Role.MODULATION)
            tensors |= block_tensors(self, layer, ("attn1", "attn2"), has_routers=has_routers)
        tensors |= linear("proj_out", self.patch_size**2 * self.out_channels, hidden, role=Role.OUTPUT)
        tensors |= timestep_embedding("adaln_single.emb.timestep_embedder", hidden)
        if self.use_additional_conditions:
            for name in ("resolution_embedder", "aspect_ratio_embedder"):
                tensors |= timestep_embedding(f"adaln_single.emb.{name}", hidden // 3)
        tensors |= linear("adaln_single.linear", 6 * hidden, hidden, role=Role.MODULATION)
        tensors |= linear("caption_projection.linear_1", hidden, self.caption_channels)
        tensors |= linear("caption_projection.linear_2", hidden, hidden)
        return tensors

    def block_operations(self, kept: int, text_tokens: int) -> list[Operation]:
        """List the operations of one block.

        With n tokens, C channels and L text tokens their FLOPs are n (28 C^2 + 4 n C + 4 L C): self-attention's four
        projections (8 C^2), cross-attention's query and output projections (4 C^2), the MLP of ratio four (16 C^2), and
        the two matrix products of each attention (4 n C and 4 L C). The text's keys and values (4 L C^2) are not among
        them: MLX computes them once a picture. Packages for Core ML do so in every step, which this does not count.
        """
        width, heads = self.hidden_size, self.num_attention_heads
        return [
            normalise(kept * width),
            *attention_operations(width, heads, kept, kept, has_keys=False),
            *attention_operations(width, heads, kept, text_tokens, has_keys=True),
            normalise(kept * width),
            *mlp_operations(width, kept),
        ]

    def prepare_operations(self, tokens: int, steps: int, text_tokens: int) -> list[Operation]:
        width = self.hidden_size
        modulation = [*timestep_operations(width, steps), activate(steps * width), matmul(steps, width, 6 * width)]
        projection = [matmul(text_tokens, self.caption_channels, width), activate(text_tokens * width)]
        layer = [*2 * [matmul(text_tokens, width, width)], combine(6 * steps * width)]
        text = [*projection, matmul(text_tokens, width, width), *self.num_layers * layer]
        return [*told_operations(self, tokens, steps), *modulation, *text]

    def step_features(self, batch: int, tokens: int, text_tokens: int) -> StepFeatures:
        width = self.hidden_size
        sizes: Shapes = {RESOLUTION: (2,), ASPECT_RATIO: (1,)} if self.use_additional_conditions else {}
        return StepFeatures(
            first={TIMESTEP: (1,), TEXT: (batch, text_tokens, self.caption_channels), **sizes},
            handed={
                TOKENS: (batch, tokens, width),
                MODULATION: (1, 6, width),
                EMBEDDED: (1, 1, width),
                TEXT_STATES: (batch, text_tokens, width),
            },
            always={TEXT_MASK: (batch, text_tokens)},
        )

    def sample_shapes(self) -> SampleShapes:
        told: SampleShapes = {"text": ("L", self.caption_channels), "mask": ("L",)}
        return {**told, "resolution": (2,), "aspect_ratio": (1,)} if self.use_additional_conditions else told

    def size_features(self, height: int, width: int) -> Mapping[str, tuple[float, ...]]:
        if not self.use_additional_conditions:
            return {}
        return {RESOLUTION: (height, width), ASPECT_RATIO: (height / width,)}

    @property
    def position_scale(self) -> float:
        return self.interpolation_scale
