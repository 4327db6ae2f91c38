"""What all denoising transformers have in common; an architecture is a subclass in a module of its own.

Three counts of channels are apart: what the model reads, what the latent has, and what the model predicts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from moddit.bounds import Channels, Heads, HeadWidth, Layers, Patch, Side
from moddit.embeddings import position_embedding
from moddit.errors import ShapeError, UnsupportedError
from moddit.models.config import EXPORT_AGAIN, ComponentSpec, Config, check_implemented
from moddit.operations import Operation, activate, attend, combine, count_flops, matmul
from moddit.record import Keys, Origin, decode
from moddit.tensors import ROUTER, TIMESTEP_CHANNELS, Role, TensorInfo, Tensors, conv, linear

OUTPUT_NORM_EPS: Final = 1e-6  # diffusers' `norm_out`, which does not follow the configuration's norm_eps

Shapes = Mapping[str, tuple[int, ...]]
SampleShapes = Mapping[str, tuple[int | str, ...]]


@dataclass(frozen=True)
class StepFeatures:
    """What a step is fed beside the latents, and what is prepared (`prepare_features`).

    Shapes by name, the batch first where each sample has its own value.
    """

    first: Shapes  # at the start
    handed: Shapes  # from each package to the next, where the model is divided into several
    always: Shapes  # at the start, and to every package


@dataclass(frozen=True)
class _Dimensions(ComponentSpec):
    """The dimensions that all of them have."""

    num_layers: Layers
    num_attention_heads: Heads
    attention_head_dim: HeadWidth
    in_channels: Channels  # that it reads
    out_channels: Channels  # that it predicts, a variance included
    patch_size: Patch  # latent pixels
    sample_size: Side  # latent pixels


class TransformerSpec(_Dimensions, ABC):
    """Dimensions of a denoising transformer over patches of a latent.

    One that inpaints reads more channels than it predicts: the noisy latents, the mask, and the latents of the masked
    image, in this order, as diffusers' StableDiffusionInpaintPipeline feeds its own.

    Raises ShapeError for sizes that do not divide, UnsupportedError for channels that are neither a prediction nor one
    with a variance.
    """

    ARCHITECTURE: ClassVar[str]  # its name in a bundle
    CONDITIONING: ClassVar[str]  # kind of what it is conditioned on
    DIFFUSERS_CLASS: ClassVar[str]
    NORM_TYPE: ClassVar[str]  # diffusers' kind of its blocks
    OUTPUT: ClassVar[str]  # name of the final projection
    TITLE: ClassVar[str]  # for people
    HAS_BINS: ClassVar[bool] = False  # trained at the sizes of `moddit.bins`
    CONFIG: ClassVar[type[Any]]  # record of `transformer/config.json`, with diffusers' defaults
    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {}  # what further keys may be that change the computation

    attention_bias: bool
    norm_eps: float
    caption_channels: int  # only of a model that is conditioned on a text
    num_classes: int  # only of a model that is conditioned on a label

    def __post_init__(self) -> None:
        if self.sample_size % self.patch_size:
            raise ShapeError(f"[spec] sample_size {self.sample_size} is not a multiple of patch_size {self.patch_size}")
        if self.hidden_size % 4:
            raise ShapeError(f"[spec] the hidden size {self.hidden_size} is not a multiple of 4, as positions need")
        latent = self.latent_channels
        if self.out_channels not in (latent, 2 * latent) or self.in_channels not in (latent, 2 * latent + 1):
            raise UnsupportedError(
                f"[spec] out_channels = {self.out_channels} is not implemented, want in_channels {self.in_channels}, "
                "or twice that with a variance; or of a model that inpaints the half of in_channels without its mask"
            )

    @classmethod
    def complete(cls, config: Config, names: Mapping[str, object]) -> Config:  # noqa: ARG003 # some need them
        """Fill in what a configuration leaves to the names of the tensors."""
        return config

    @classmethod
    def from_diffusers(cls, config: Config, where: str) -> Self:
        """Read `transformer/config.json`; raises InputError, naming `where` and the key."""
        implemented = {
            "_class_name": (cls.DIFFUSERS_CLASS,),
            "activation_fn": ("gelu-approximate",),
            "norm_elementwise_affine": (False,),
            "norm_type": (cls.NORM_TYPE,),
            **cls.FIXED,
        }
        check_implemented(config, implemented, where, required=("_class_name",))
        found = decode(config, cls.CONFIG, Origin("spec", where, EXPORT_AGAIN), Keys.ANY)
        read, derived = {field.name: getattr(found, field.name, None) for field in fields(cls)}, cls.derive(found)
        values = {name: derived[name] if value is None else value for name, value in read.items()}
        return decode(values, cls, Origin("spec", where))

    @classmethod
    @abstractmethod
    def derive(cls, config: Any) -> dict[str, Any]:
        """Give the fields that a configuration has by another name, or leaves open, as diffusers fills them in."""

    @abstractmethod
    def tensors(self, *, has_routers: bool) -> Tensors:
        """List the canonical tensors, with a router in every block if asked."""

    @abstractmethod
    def block_operations(self, kept: int, text_tokens: int) -> list[Operation]:
        """List the operations of one block that processes `kept` tokens, without those that are done once a picture."""

    @abstractmethod
    def prepare_operations(self, tokens: int, steps: int, text_tokens: int) -> list[Operation]:
        """List what MLX computes once for a picture of so many tokens: the modulations of all steps among it."""

    def block_flops(self, kept: int, text_tokens: int) -> int:
        """Count the FLOPs of one block that processes `kept` tokens, for a batch of one."""
        return count_flops(self.block_operations(kept, text_tokens))

    @abstractmethod
    def step_features(self, batch: int, tokens: int, text_tokens: int) -> StepFeatures:
        """Say what a step of so many image tokens is fed."""

    def prepare_features(self, batch: int, text_tokens: int) -> tuple[Shapes, Shapes]:  # noqa: ARG002 # of a text
        """Say what is told once a picture and what is made of it, which every step takes; nothing unless some is."""
        return {}, {}

    @abstractmethod
    def sample_shapes(self) -> SampleShapes:
        """Say what a training sample tells the model beside its latents; equal letters stand for equal sizes."""

    def size_features(self, height: int, width: int) -> Mapping[str, tuple[float, ...]]:  # noqa: ARG002 # some do
        """Say what a step is told about the picture's size, pixels; nothing unless the model was trained on it."""
        return {}

    def position_embedding(self, rows: int, columns: int) -> NDArray[np.float32]:
        """Embed the positions of a grid of patches. Shapes: -> (rows * columns, hidden_size)."""
        return position_embedding(
            self.hidden_size, rows, columns, base_size=self.base_size, interpolation_scale=self.position_scale
        )

    @property
    def position_scale(self) -> float:
        """What positions are divided by."""
        return 1.0

    @property
    def inpaints(self) -> bool:
        """Whether it draws a part of an image anew: it reads the mask and the masked image beside the noisy latents."""
        return self.out_channels < self.in_channels

    @property
    def latent_channels(self) -> int:
        """Channels of what is denoised."""
        return (self.in_channels - 1) // 2 if self.inpaints else self.in_channels

    @property
    def hidden_size(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @property
    def base_size(self) -> int:
        """Side of the patch grid that the position embedding is normalised by."""
        return self.sample_size // self.patch_size

    def tokens(self, height: int, width: int) -> int:
        """Count the tokens of a latent; raises ShapeError if its sides are not positive multiples of the patch size."""
        if height < 1 or width < 1 or height % self.patch_size or width % self.patch_size:
            raise ShapeError(f"[spec] latent size {height}x{width} is not made of whole patches of {self.patch_size}")
        return (height // self.patch_size) * (width // self.patch_size)

    def embedding_tensors(self) -> Tensors:
        """List the tensors of the patch embedding."""
        return conv("pos_embed.proj", self.hidden_size, self.in_channels, self.patch_size)


def block_tensors(spec: TransformerSpec, layer: int, attentions: tuple[str, ...], *, has_routers: bool) -> Tensors:
    """List the tensors of a block's attentions and MLP, and of its router."""
    hidden, block = spec.hidden_size, f"transformer_blocks.{layer}."
    tensors: Tensors = {}
    for attention in attentions:
        for name in ("to_q", "to_k", "to_v"):
            tensors |= linear(f"{block}{attention}.{name}", hidden, hidden, bias=spec.attention_bias)
        tensors |= linear(f"{block}{attention}.to_out.0", hidden, hidden)
    tensors |= linear(block + "ff.net.0.proj", 4 * hidden, hidden)
    tensors |= linear(block + "ff.net.2", hidden, 4 * hidden)
    if has_routers:
        tensors[ROUTER.format(layer=layer)] = TensorInfo((1, hidden), Role.ROUTER)
    return tensors


def told_operations(spec: TransformerSpec, tokens: int, steps: int) -> list[Operation]:
    """List what it takes to embed positions, and to lay the modulation of each step and layer, and the last, apart."""
    apart = [combine(6 * spec.hidden_size, 1)] * steps
    return [combine(tokens * spec.hidden_size, 1), *(spec.num_layers + 1) * apart]


def timestep_operations(width: int, steps: int) -> list[Operation]:
    """List what it takes to embed the timesteps of so many steps."""
    return [matmul(steps, TIMESTEP_CHANNELS, width), activate(steps * width), matmul(steps, width, width)]


def attention_operations(width: int, heads: int, queries: int, keys: int, *, has_keys: bool) -> list[Operation]:
    """List the operations of an attention and its gated residual.

    Args:
        width: of all heads together.
        heads: their number.
        queries: tokens that attend.
        keys: tokens that are attended to.
        has_keys: whether keys and values are there already.
    """
    projections = [matmul(queries, width, width)] + ([] if has_keys else 2 * [matmul(keys, width, width)])
    return [
        *projections,
        attend(queries, keys, width, heads),
        matmul(queries, width, width),
        combine(queries * width),
    ]


def mlp_operations(width: int, tokens: int) -> list[Operation]:
    """List the operations of an MLP of ratio four and its gated residual."""
    return [
        matmul(tokens, width, 4 * width),
        activate(4 * tokens * width),
        matmul(tokens, 4 * width, width),
        combine(tokens * width),
    ]
