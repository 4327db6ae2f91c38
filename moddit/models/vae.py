"""AutoencoderKL: its dimensions and its tensors.

Source: diffusers `models/autoencoders/{autoencoder_kl,vae}.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Annotated, Any, Final

from msgspec import Meta

from moddit.bounds import LEVELS, Channels, Layers, Name, Scale, Shift, Width
from moddit.errors import ShapeError, UnsupportedError
from moddit.models.config import EXPORT_AGAIN, ComponentSpec, Config, check_implemented
from moddit.operations import Operation, activate, attend, combine, convolve, matmul, normalise
from moddit.record import Keys, Origin, decode
from moddit.tensors import Role, TensorInfo, Tensors, conv, linear

Widths = Annotated[tuple[Width, ...], Meta(min_length=1, max_length=LEVELS)]  # of the levels of a VAE
Blocks = Annotated[tuple[Name, ...], Meta(min_length=1, max_length=LEVELS)]

VAE_IMPLEMENTED: Final[dict[str, tuple[Any, ...]]] = {"_class_name": ("AutoencoderKL",), "act_fn": ("silu", "swish")}
LOGVAR_RANGE: Final = (-30.0, 20.0)  # of an encoder's log variance, in diffusers' DiagonalGaussianDistribution


@dataclass(frozen=True)
class VAESpec(ComponentSpec):
    """Dimensions of an AutoencoderKL."""

    in_channels: Channels
    out_channels: Channels
    latent_channels: Channels
    block_out_channels: Widths  # from the picture's side to the latent's
    layers_per_block: Layers
    norm_num_groups: Width
    scaling_factor: Scale  # latents of the transformer = (encoded - shift_factor) * scaling_factor
    shift_factor: Shift
    use_quant_conv: bool
    use_post_quant_conv: bool
    mid_block_add_attention: bool

    def __post_init__(self) -> None:
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) != 3:
                raise UnsupportedError(f"[spec] {name} = {getattr(self, name)} of a VAE is not implemented, want 3")
        if any(width % self.norm_num_groups for width in self.block_out_channels):
            raise ShapeError(
                f"[spec] block_out_channels {list(self.block_out_channels)} are not multiples of norm_num_groups "
                f"{self.norm_num_groups}"
            )

    @property
    def downscale(self) -> int:
        """Picture pixels per latent pixel."""
        return int(2 ** (len(self.block_out_channels) - 1))

    @classmethod
    def from_diffusers(cls, config: Config, where: str) -> VAESpec:
        """Read `vae/config.json`; raises InputError, naming `where` and the key."""
        check_implemented(config, VAE_IMPLEMENTED, where, required=("_class_name",))
        found = decode(config, _Config, Origin("spec", where, EXPORT_AGAIN), Keys.ANY)
        levels = len(found.block_out_channels)
        for key, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
            blocks = getattr(found, key)
            if blocks != (kind,) * levels:
                raise UnsupportedError(
                    f"[spec] {where}: {key} is not implemented, got {blocks}, want {levels} times {kind!r}"
                )
        values = {field.name: getattr(found, field.name) for field in fields(cls)}
        return decode(values | {"shift_factor": found.shift_factor or 0.0}, cls, Origin("spec", where))

    def tensors(self) -> Tensors:
        """List the tensors of an AutoencoderKL."""
        channels, latent, layers = self.block_out_channels, self.latent_channels, self.layers_per_block
        tensors: Tensors = {}
        for half, way, widths, count, width_first, width_last in (
            ("encoder", "down", channels, layers, self.in_channels, 2 * latent),
            ("decoder", "up", channels[::-1], layers + 1, latent, self.out_channels),
        ):
            tensors |= conv(f"{half}.conv_in", widths[0], width_first, 3)
            for index, (width_in, width_out) in enumerate(zip((widths[0], *widths), widths, strict=False)):
                block = f"{half}.{way}_blocks.{index}."
                tensors |= _resnets(block, width_in, width_out, count)
                if index < len(widths) - 1:
                    tensors |= conv(f"{block}{way}samplers.0.conv", width_out, width_out, 3)
            tensors |= _mid_block(f"{half}.mid_block.", channels[-1], self.mid_block_add_attention)
            tensors |= _norm(f"{half}.conv_norm_out", widths[-1])
            tensors |= conv(f"{half}.conv_out", width_last, widths[-1], 3)
        if self.use_quant_conv:
            tensors |= conv("quant_conv", 2 * latent, 2 * latent, 1)
        if self.use_post_quant_conv:
            tensors |= conv("post_quant_conv", latent, latent, 1)
        return tensors

    def decoder_operations(self, height: int, width: int) -> list[Operation]:
        """List the operations that decode a picture of height x width pixels."""
        widths, pixels = self.block_out_channels[::-1], height * width // self.downscale**2
        post = [convolve(pixels, self.latent_channels, self.latent_channels, 1)] if self.use_post_quant_conv else []
        found = [*post, convolve(pixels, self.latent_channels, widths[0]), *_resnet_operations(pixels, *2 * widths[:1])]
        if self.mid_block_add_attention:
            found += _attention_operations(pixels, widths[0])
        found += _resnet_operations(pixels, *2 * widths[:1])
        for index, (width_in, width_out) in enumerate(zip((widths[0], *widths), widths, strict=False)):
            for resnet in range(self.layers_per_block + 1):
                found += _resnet_operations(pixels, width_out if resnet else width_in, width_out)
            if index < len(widths) - 1:
                pixels *= 4
                found += [combine(pixels * width_out, 1), convolve(pixels, width_out, width_out)]
        last = pixels * widths[-1]
        return [*found, normalise(last), activate(last), convolve(pixels, widths[-1], self.out_channels)]


@dataclass(frozen=True)
class _Config:
    """`vae/config.json` of an AutoencoderKL."""

    in_channels: Channels = 3
    out_channels: Channels = 3
    down_block_types: Blocks = ("DownEncoderBlock2D",)
    up_block_types: Blocks = ("UpDecoderBlock2D",)
    block_out_channels: Widths = (64,)
    layers_per_block: Layers = 1
    latent_channels: Channels = 4
    norm_num_groups: Width = 32
    scaling_factor: Scale = 0.18215
    shift_factor: Shift | None = None
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True


def _norm(name: str, width: int) -> Tensors:
    return {name + ".weight": TensorInfo((width,), Role.NORM), name + ".bias": TensorInfo((width,), Role.NORM)}


def _resnet_operations(pixels: int, width_in: int, width_out: int) -> list[Operation]:
    shortcut = [convolve(pixels, width_in, width_out, 1)] if width_in != width_out else []
    return [
        *(normalise(pixels * width_in), activate(pixels * width_in), convolve(pixels, width_in, width_out)),
        *(normalise(pixels * width_out), activate(pixels * width_out), convolve(pixels, width_out, width_out)),
        *shortcut,
        combine(pixels * width_out),
    ]


def _attention_operations(pixels: int, width: int) -> list[Operation]:
    """List the operations of one head among all pixels."""
    return [
        normalise(pixels * width),
        *3 * [matmul(pixels, width, width)],
        attend(pixels, pixels, width, 1),
        matmul(pixels, width, width),
        combine(pixels * width),
    ]


def _resnets(block: str, width_in: int, width_out: int, count: int) -> Tensors:
    tensors: Tensors = {}
    for name in (f"{block}resnets.{index}." for index in range(count)):
        tensors |= _norm(name + "norm1", width_in) | conv(name + "conv1", width_out, width_in, 3)
        tensors |= _norm(name + "norm2", width_out) | conv(name + "conv2", width_out, width_out, 3)
        if width_in != width_out:
            tensors |= conv(name + "conv_shortcut", width_out, width_in, 1)
        width_in = width_out
    return tensors


def _mid_block(name: str, width: int, attention: bool) -> Tensors:
    tensors = _resnets(name, width, width, 2)
    if attention:
        tensors |= _norm(name + "attentions.0.group_norm", width)
        for part in ("to_q", "to_k", "to_v", "to_out.0"):
            tensors |= linear(f"{name}attentions.0.{part}", width, width)
    return tensors
