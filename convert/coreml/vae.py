"""Decoder and encoder of AutoencoderKL as Core ML functions, one for each picture size.

The stream that residuals are added to is float32, with the norms and the convolutions that write to it, because the VAE
of SDXL (PixArt-Sigma) leaves float16's range; the first convolution of each residual block is float16.

Source: diffusers `models/autoencoders/{autoencoder_kl,vae}.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import Program, types

from convert.coreml.layers import cast, conv, number, self_attention
from convert.coreml.package import build_program
from convert.coreml.weights import Var, Weights
from moddit.contract import IMAGE, LATENTS, MOMENTS
from moddit.models.vae import VAESpec

EPS: Final = 1e-6  # of every group norm
_DOWN_PAD: Final = (0, 1, 0, 1)  # diffusers pads only below and to the right
_NO_PAD: Final = (0, 0, 0, 0)

Frame = tuple[str, int, int]  # name of the function, picture height and width in pixels


def build_decoder(spec: VAESpec, weights: Weights, sizes: Sequence[Frame]) -> Program:
    """Build the program whose functions take latents (1, latent_channels, H / f, W / f), as the transformer has them.

    They give image (1, out_channels, H, W), about -1..1. Both are float32; the latents' scale and shift are undone
    inside.
    """
    shape = (1, spec.latent_channels)
    inputs = {name: (*shape, height // spec.downscale, width // spec.downscale) for name, height, width in sizes}
    return _build(LATENTS, inputs, lambda latents: _decode(spec, weights, latents))


def build_encoder(spec: VAESpec, weights: Weights, sizes: Sequence[Frame]) -> Program:
    """Build the program whose functions take image (1, in_channels, H, W), -1..1, and give moments.

    moments (1, 2 * latent_channels, H / f, W / f) are the mean and then the logarithm of the variance, neither scaled
    nor shifted; whoever calls samples from them. Both are float32.
    """
    inputs = {name: (1, spec.in_channels, height, width) for name, height, width in sizes}
    return _build(IMAGE, inputs, lambda image: _encode(spec, weights, image))


def _build(input_name: str, shapes: Mapping[str, tuple[int, ...]], build: Callable[[Var], Var]) -> Program:
    return build_program(
        (name, {input_name: mb.placeholder(list(shape), dtype=types.fp32)}, lambda inputs: [build(inputs[input_name])])
        for name, shape in shapes.items()
    )


def _decode(spec: VAESpec, weights: Weights, latents: Var) -> Var:
    x = mb.mul(x=latents, y=np.float32(1 / spec.scaling_factor), name="unscaled")
    if spec.shift_factor:
        x = mb.add(x=x, y=np.float32(spec.shift_factor), name="unshifted")
    if spec.use_post_quant_conv:
        x = conv(weights, x, "post_quant_conv", "post_quant_conv", pad=_NO_PAD)
    x = conv(weights, x, "decoder.conv_in", "conv_in")
    x = _mid_block(spec, weights, x, "decoder.mid_block.")
    blocks = len(spec.block_out_channels)
    for index in range(blocks):
        block, name = f"decoder.up_blocks.{index}.", f"up{index}"
        for number_ in range(spec.layers_per_block + 1):
            x = _resnet(spec, weights, x, f"{block}resnets.{number_}.", f"{name}_resnet{number_}")
        if index < blocks - 1:
            x = mb.upsample_nearest_neighbor(x=x, scale_factor_height=2, scale_factor_width=2, name=name + "_upsample")
            x = conv(weights, x, block + "upsamplers.0.conv", name + "_upsample_conv")
    x = mb.silu(x=_group_norm(spec, weights, x, "decoder.conv_norm_out", "norm_out"), name="act_out")
    return conv(weights, x, "decoder.conv_out", IMAGE)


def _encode(spec: VAESpec, weights: Weights, image: Var) -> Var:
    x = conv(weights, image, "encoder.conv_in", "conv_in")
    blocks = len(spec.block_out_channels)
    for index in range(blocks):
        block, name = f"encoder.down_blocks.{index}.", f"down{index}"
        for number_ in range(spec.layers_per_block):
            x = _resnet(spec, weights, x, f"{block}resnets.{number_}.", f"{name}_resnet{number_}")
        if index < blocks - 1:
            x = conv(weights, x, block + "downsamplers.0.conv", name + "_downsample", stride=2, pad=_DOWN_PAD)
    x = _mid_block(spec, weights, x, "encoder.mid_block.")
    x = mb.silu(x=_group_norm(spec, weights, x, "encoder.conv_norm_out", "norm_out"), name="act_out")
    x = conv(weights, x, "encoder.conv_out", "conv_out" if spec.use_quant_conv else MOMENTS)
    return conv(weights, x, "quant_conv", MOMENTS, pad=_NO_PAD) if spec.use_quant_conv else x


def _mid_block(spec: VAESpec, weights: Weights, x: Var, block: str) -> Var:
    x = _resnet(spec, weights, x, block + "resnets.0.", "mid_resnet0")
    if spec.mid_block_add_attention:
        x = _pixel_attention(spec, weights, x, block + "attentions.0")
    return _resnet(spec, weights, x, block + "resnets.1.", "mid_resnet1")


def _resnet(spec: VAESpec, weights: Weights, x: Var, tensor: str, name: str) -> Var:
    """Shapes: x (B, in, H, W) float32 -> (B, out, H, W) float32."""
    y = mb.silu(x=_group_norm(spec, weights, x, tensor + "norm1", name + "_norm1"), name=name + "_act1")
    y = cast(
        conv(weights, cast(y, "fp16", name + "_act1_fp16"), tensor + "conv1", name + "_conv1"),
        "fp32",
        name + "_conv1_fp32",
    )
    y = mb.silu(x=_group_norm(spec, weights, y, tensor + "norm2", name + "_norm2"), name=name + "_act2")
    y = conv(weights, y, tensor + "conv2", name + "_conv2")
    if tensor + "conv_shortcut.weight" in weights:
        x = conv(weights, x, tensor + "conv_shortcut", name + "_shortcut", pad=_NO_PAD)
    return mb.add(x=x, y=y, name=name)


def _pixel_attention(spec: VAESpec, weights: Weights, x: Var, tensor: str) -> Var:
    """Attention of one head among all pixels, in float16 but for its norm.

    Shapes: x (B, C, H, W) float32 -> the same
    """
    batch, channels, height, width = x.shape
    normed = cast(
        _group_norm(spec, weights, x, tensor + ".group_norm", "mid_attention_norm"), "fp16", "mid_attention_fp16"
    )
    flat = mb.reshape(x=normed, shape=[batch, channels, height * width], name="mid_attention_flat")
    rows = mb.transpose(x=flat, perm=[0, 2, 1], name="mid_attention_pixels")  # (B, H * W, C)
    mixed = self_attention(weights, rows, tensor, 1, "mid_attention")
    columns = mb.transpose(x=mixed, perm=[0, 2, 1], name="mid_attention_columns")
    grid = mb.reshape(x=columns, shape=[batch, channels, height, width], name="mid_attention_grid")
    return mb.add(x=x, y=cast(grid, "fp32", "mid_attention_fp32"), name="mid_attention_residual")


def _group_norm(spec: VAESpec, weights: Weights, x: Var, tensor: str, name: str) -> Var:
    """Normalise each group of channels over all its pixels. Shapes: x (B, C, H, W) float32 -> the same."""
    batch, channels, height, width = x.shape
    flat = mb.reshape(x=x, shape=[batch, spec.norm_num_groups, -1], name=name + "_groups")
    normed = mb.layer_norm(x=flat, axes=[2], epsilon=number(x, EPS), name=name + "_normed")
    grid = mb.reshape(x=normed, shape=[batch, channels, height, width], name=name + "_grid")
    factor, shift = (
        weights.emit(f"{tensor}.{part}", "fp32", lambda array: array[None, :, None, None])
        for part in ("weight", "bias")
    )
    return mb.add(x=mb.mul(x=grid, y=factor, name=name + "_scaled"), y=shift, name=name)
