"""AutoencoderKL on MLX, NHWC. Attribute names are diffusers' tensor names.

Activations are float32 where the weights are float16: the VAE of SDXL (PixArt-Sigma) leaves float16's range.

Source: diffusers `models/autoencoders/{autoencoder_kl,vae}.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate, pairwise

import mlx.core as mx
import mlx.nn as nn

from mlx_moddit.layers import Attention, GroupNorm, without_overflow
from mlx_moddit.strips import Strips, convolve, drain, hold, normalise, rows_of_strip, split
from moddit.models.vae import LOGVAR_RANGE, VAESpec
from moddit.request import TILE_PARTS

EPS = 1e-6  # of every group norm


class Resnet(nn.Module):
    """Shapes: x (B, H, W, channels_in) -> (B, H, W, channels_out)."""

    def __init__(self, channels_in: int, channels_out: int, groups: int):
        super().__init__()
        self.norm1 = GroupNorm(groups, channels_in, EPS)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.norm2 = GroupNorm(groups, channels_out, EPS)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        if channels_in != channels_out:
            self.conv_shortcut = nn.Conv2d(channels_in, channels_out, 1)

    def __call__(self, x: mx.array) -> mx.array:
        y = self.conv1(nn.silu(self.norm1(x)))
        y = self.conv2(nn.silu(self.norm2(y)))
        return y + (self.conv_shortcut(x) if "conv_shortcut" in self else x)

    def in_strips(self, x: Strips) -> Strips:
        """Do the same to strips, which are used up."""
        activate, shortcut = normalise(x, self.norm1), x
        rows: Iterable[mx.array] = x
        if "conv_shortcut" in self:
            shortcut = Strips()
            rows = self._shortcuts(x, shortcut)
        y = hold(convolve(map(activate, rows), self.conv1))
        activate = normalise(y, self.norm2)
        return hold(map(mx.add, convolve(map(activate, drain(y)), self.conv2), drain(shortcut)))

    def _shortcuts(self, x: Strips, shortcut: Strips) -> Iterator[mx.array]:
        """Give the strips, of which nothing but their shortcuts is kept."""
        for strip in drain(x):
            shortcut.extend(hold([self.conv_shortcut(strip)]))
            yield strip


class PixelAttention(Attention):
    """Attention of one head among all pixels, with its norm and residual. Shapes: x (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, channels: int, groups: int):
        super().__init__(channels, heads=1, bias=True)
        self.group_norm = GroupNorm(groups, channels, EPS)

    def attend(self, x: mx.array) -> mx.array:
        """Mix all pixels."""
        y = self.group_norm(x).reshape(x.shape[0], -1, x.shape[-1])
        return x + self(y, *self.keys_values(y)).reshape(x.shape)

    def in_strips(self, x: Strips, strip_bytes: int) -> Strips:
        """Do the same to strips, which are used up; scores of so many bytes are in memory at once."""
        heights = [strip.shape[1] for strip in x]
        whole = mx.concatenate(list(drain(x)), axis=1)
        y = self.group_norm(whole).reshape(whole.shape[0], -1, whole.shape[-1])
        keys, values = self.keys_values(y)
        mx.eval(whole, y, keys, values)
        queries = max(1, strip_bytes // (y.shape[0] * y.shape[1] * mx.float32.size))
        mixed = hold(self(part, keys, values) for part in split(y, queries))
        whole = whole + mx.concatenate(list(mixed), axis=1).reshape(whole.shape)
        return hold(mx.split(whole, list(accumulate(heights[:-1])), axis=1))


class MidBlock(nn.Module):
    """Shapes: x (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, channels: int, groups: int, *, has_attention: bool):
        super().__init__()
        self.resnets = [Resnet(channels, channels, groups) for _ in range(2)]
        if has_attention:
            self.attentions = [PixelAttention(channels, groups)]

    def __call__(self, x: mx.array) -> mx.array:
        x = self.resnets[0](x)
        if "attentions" in self:
            x = self.attentions[0].attend(x)
        return self.resnets[1](x)

    def in_strips(self, x: Strips, strip_bytes: int) -> Strips:
        """Do the same to strips, which are used up."""
        x = self.resnets[0].in_strips(x)
        if "attentions" in self:
            x = self.attentions[0].in_strips(x, strip_bytes)
        return self.resnets[1].in_strips(x)


class Downsample(nn.Module):
    """Halve both sides; diffusers pads only below and to the right. Shapes: x (B, H, W, C) -> (B, H / 2, W / 2, C)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def __call__(self, x: mx.array) -> mx.array:
        return self._halve(mx.pad(x, [(0, 0), (0, 1), (0, 0), (0, 0)]))

    def in_strips(self, x: Strips, _: int) -> Strips:
        """Do the same to strips, which are used up; a row is made of three, the last of the next one's."""
        return hold(self._parts(x))

    def _parts(self, x: Strips) -> Iterator[mx.array]:
        above = x[0][:, :0]
        for strip in drain(x):
            rows = mx.concatenate([above, strip], axis=1)
            ready = (rows.shape[1] - 1) // 2
            above = rows[:, 2 * ready :]
            if ready:
                yield self._halve(rows[:, : 2 * ready + 1])
        yield self(above)

    def _halve(self, x: mx.array) -> mx.array:
        return self.conv(mx.pad(x, [(0, 0), (0, 0), (0, 1), (0, 0)]))


class Upsample(nn.Module):
    """Double both sides, nearest neighbour, then convolve. Shapes: x (B, H, W, C) -> (B, 2 H, 2 W, C)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def __call__(self, x: mx.array) -> mx.array:
        return self.conv(self._double(x))

    def in_strips(self, x: Strips, strip_bytes: int) -> Strips:
        """Do the same to strips, which are used up; those that it gives are as high as `strip_bytes` allow."""
        B, _, W, C = x[0].shape
        rows = max(1, rows_of_strip((B, 2 * W, C), x[0].itemsize, strip_bytes) // 2)
        parts = (part for strip in drain(x) for part in split(strip, rows))
        return hold(convolve(map(self._double, parts), self.conv))

    @staticmethod
    def _double(x: mx.array) -> mx.array:
        B, H, W, C = x.shape
        x = mx.broadcast_to(x[:, :, None, :, None, :], (B, H, 2, W, 2, C))
        return x.reshape(B, 2 * H, 2 * W, C)


class SideBlock(nn.Module):
    """Resnets, then another size unless it is the last block: `samplers` is the layer that changes it."""

    def __init__(self, channels_in: int, channels_out: int, layers: int, groups: int, **samplers: nn.Module):
        super().__init__()
        widths = [channels_in, *[channels_out] * layers]
        self.resnets = [Resnet(width_in, width_out, groups) for width_in, width_out in pairwise(widths)]
        for name, layer in samplers.items():
            setattr(self, name, [layer])

    def __call__(self, x: mx.array) -> mx.array:
        for layer in (*self.resnets, *self.get("downsamplers", ()), *self.get("upsamplers", ())):
            x = layer(x)
        return x

    def in_strips(self, x: Strips, strip_bytes: int) -> Strips:
        """Do the same to strips, which are used up."""
        for resnet in self.resnets:
            x = resnet.in_strips(x)
        for layer in (*self.get("downsamplers", ()), *self.get("upsamplers", ())):
            x = layer.in_strips(x, strip_bytes)
        return x


class Encoder(nn.Module):
    """Shapes: images (B, H, W, in_channels) -> mean and log variance (B, h, w, 2 * latent_channels)."""

    def __init__(self, spec: VAESpec):
        super().__init__()
        channels, groups = spec.block_out_channels, spec.norm_num_groups
        self.conv_in = nn.Conv2d(spec.in_channels, channels[0], 3, padding=1)
        self.down_blocks = [
            SideBlock(width_in, width_out, spec.layers_per_block, groups, downsamplers=Downsample(width_out))
            for width_in, width_out in pairwise((channels[0], *channels))
        ]
        del self.down_blocks[-1]["downsamplers"]  # the last one keeps its size
        self.mid_block = MidBlock(channels[-1], groups, has_attention=spec.mid_block_add_attention)
        self.conv_norm_out = GroupNorm(groups, channels[-1], EPS)
        self.conv_out = nn.Conv2d(channels[-1], 2 * spec.latent_channels, 3, padding=1)

    def __call__(self, x: mx.array) -> mx.array:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        x = self.mid_block(x)
        return self.conv_out(nn.silu(self.conv_norm_out(x)))

    def in_strips(self, x: mx.array, strip_bytes: int) -> mx.array:
        """Do the same, with little more in memory than one activation of the picture."""
        strips = _begin(x, self.conv_in, strip_bytes)
        for block in self.down_blocks:
            strips = block.in_strips(strips, strip_bytes)
        return _end(self.mid_block.in_strips(strips, strip_bytes), self.conv_norm_out, self.conv_out)


class Decoder(nn.Module):
    """Shapes: latents (B, h, w, latent_channels) -> images (B, H, W, out_channels)."""

    def __init__(self, spec: VAESpec):
        super().__init__()
        channels, groups = spec.block_out_channels[::-1], spec.norm_num_groups
        self.conv_in = nn.Conv2d(spec.latent_channels, channels[0], 3, padding=1)
        self.mid_block = MidBlock(channels[0], groups, has_attention=spec.mid_block_add_attention)
        self.up_blocks = [
            SideBlock(width_in, width_out, spec.layers_per_block + 1, groups, upsamplers=Upsample(width_out))
            for width_in, width_out in pairwise((channels[0], *channels))
        ]
        del self.up_blocks[-1]["upsamplers"]  # the last one keeps its size
        self.conv_norm_out = GroupNorm(groups, channels[-1], EPS)
        self.conv_out = nn.Conv2d(channels[-1], spec.out_channels, 3, padding=1)

    def __call__(self, x: mx.array) -> mx.array:
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(nn.silu(self.conv_norm_out(x)))

    def in_strips(self, x: mx.array, strip_bytes: int) -> mx.array:
        """Do the same, with little more in memory than one activation of the picture."""
        strips = self.mid_block.in_strips(_begin(x, self.conv_in, strip_bytes), strip_bytes)
        for block in self.up_blocks:
            strips = block.in_strips(strips, strip_bytes)
        return _end(strips, self.conv_norm_out, self.conv_out)


def _begin(x: mx.array, conv: nn.Conv2d, strip_bytes: int) -> Strips:
    """Give the first layer's strips of a picture, or of latents."""
    rows = rows_of_strip((x.shape[0], x.shape[2], conv.weight.shape[0]), x.itemsize, strip_bytes)
    return hold(convolve(split(x, rows), conv))


def _end(strips: Strips, norm: GroupNorm, conv: nn.Conv2d) -> mx.array:
    """Put the last layers of strips together, which are used up."""
    activate = normalise(strips, norm)
    return mx.concatenate(list(hold(convolve(map(activate, drain(strips)), conv))), axis=1)


class AutoencoderKL(nn.Module):
    """Between pictures and the latents of the transformer. A half that is never called is never read from its file."""

    def __init__(self, spec: VAESpec):
        super().__init__()
        self.spec = spec
        self.encoder = Encoder(spec)
        self.decoder = Decoder(spec)
        if spec.use_quant_conv:
            self.quant_conv = nn.Conv2d(2 * spec.latent_channels, 2 * spec.latent_channels, 1)
        if spec.use_post_quant_conv:
            self.post_quant_conv = nn.Conv2d(spec.latent_channels, spec.latent_channels, 1)

    def decode(self, latents: mx.array, *, tile: int | None = None, strip_bytes: int | None = None) -> mx.array:
        """Decode the transformer's latents; undoes their scaling.

        Args:
            latents: as the sampler leaves them.
            tile: decode squares of this side (latent pixels, a multiple of TILE_PARTS) one by one and blend them where
                they overlap: bounds memory, and changes the picture a little, as norms see one tile at a time. Computed
                at once, not lazily. None: in one piece.
            strip_bytes: compute each layer in strips that take about so much memory, beside the activation that is
                held (see `mlx_moddit.strips`): bounds memory, and gives the same but for rounding. Computed at once,
                not lazily. None: all rows together. Without effect where there are tiles.

        Shapes: latents (B, h, w, latent_channels) -> pictures (B, H, W, out_channels) float32, about -1..1, not clipped
        """
        x = latents / self.spec.scaling_factor + self.spec.shift_factor
        x = x.astype(without_overflow(self.decoder.conv_in.weight.dtype))
        if tile is None or max(x.shape[1:3]) <= tile:
            return self._decode(x, strip_bytes)
        return self._decode_tiles(x, tile)

    def _decode(self, x: mx.array, strip_bytes: int | None = None) -> mx.array:
        if "post_quant_conv" in self:
            x = self.post_quant_conv(x)
        return (self.decoder(x) if strip_bytes is None else self.decoder.in_strips(x, strip_bytes)).astype(mx.float32)

    def _decode_tiles(self, x: mx.array, tile: int) -> mx.array:
        """Do as diffusers' `tiled_decode`: tiles overlap by a quarter and fade into those above and to the left."""
        assert tile > 0
        assert tile % TILE_PARTS == 0, "otherwise tiles do not meet where they are cut"
        stride, side = tile - tile // TILE_PARTS, tile * self.spec.downscale
        blend = side // TILE_PARTS  # picture pixels
        bands: list[mx.array] = []
        above: list[mx.array] = []
        for top in range(0, x.shape[1], stride):
            row: list[mx.array] = []
            for index, left in enumerate(range(0, x.shape[2], stride)):
                decoded = self._decode(x[:, top : top + tile, left : left + tile])
                if above:
                    decoded = _blend(above[index], decoded, blend, axis=1)
                if row:
                    decoded = _blend(row[-1], decoded, blend, axis=2)
                mx.eval(decoded)  # frees the activations of this tile before the next one
                row.append(decoded)
            above = row
            bands.append(mx.concatenate([part[:, : side - blend, : side - blend] for part in row], axis=2))
        return mx.concatenate(bands, axis=1)

    def encode(self, images: mx.array, *, strip_bytes: int | None = None) -> tuple[mx.array, mx.array]:
        """Encode pictures to the distribution of their latents, in the transformer's scale; `strip_bytes` as `decode`.

        Shapes: images (B, H, W, in_channels), -1..1 -> mean, deviation (B, h, w, latent_channels) float32
        """
        x = images.astype(without_overflow(self.encoder.conv_in.weight.dtype))
        x = self.encoder(x) if strip_bytes is None else self.encoder.in_strips(x, strip_bytes)
        if "quant_conv" in self:
            x = self.quant_conv(x)
        mean, logvar = mx.split(x.astype(mx.float32), 2, axis=-1)
        deviation = mx.exp(0.5 * mx.clip(logvar, *LOGVAR_RANGE))
        return (mean - self.spec.shift_factor) * self.spec.scaling_factor, deviation * self.spec.scaling_factor


def _blend(before: mx.array, after: mx.array, extent: int, axis: int) -> mx.array:
    """Fade from the end of one tile into the start of the next, over `extent` pixels of an axis."""
    extent = min(extent, before.shape[axis], after.shape[axis])
    end = mx.split(before, [before.shape[axis] - extent], axis=axis)[1]
    start, rest = mx.split(after, [extent], axis=axis)
    share = (mx.arange(extent) / extent).reshape([extent if index == axis else 1 for index in range(after.ndim)])
    return mx.concatenate([end * (1 - share) + start * share, rest], axis=axis)
