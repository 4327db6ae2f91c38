"""A picture's activation as strips of whole rows, so that convolutions and norms hold little beside it.

Exact, unlike decoding in tiles: a convolution sees the rows above and below its strip, a norm has the statistics of the
whole picture. What comes out differs from the layer on the whole picture by the rounding of float32 sums alone.

Strips are computed one by one and let go as they are read (`drain`): at any time an activation and the one it is made
from share the memory of the larger one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Final

import mlx.core as mx
import mlx.nn as nn

from mlx_moddit.layers import GroupNorm, channel_moments

# Of a strip that a 3x3 convolution has unfolded, as MLX does on a CPU: 14 rows of 1024 pixels with 256 channels.
STRIP_BYTES: Final = 128 * 2**20
WINDOW: Final = 9  # values that a 3x3 convolution reads for one

Strips = deque[mx.array]  # of shape (B, rows, W, C) each, from top to bottom, computed


def rows_of_strip(row: tuple[int, int, int], itemsize: int, budget: int) -> int:
    """Choose the rows of a strip so that a 3x3 convolution unfolds it into at most `budget` bytes; one row at least.

    Args:
        row: batch, width in pixels and channels of a row.
        itemsize: bytes of a value.
        budget: bytes.
    """
    batch, width, channels = row
    return max(1, budget // (WINDOW * batch * width * channels * itemsize))


def split(x: mx.array, rows: int) -> list[mx.array]:
    """Cut an activation into pieces of at most so many rows, of nearly equal heights.

    Shapes:
        x (B, H, W, C) -> pieces (B, <= rows, W, C)
    """
    height = x.shape[1]
    count = -(-height // rows)
    return list(mx.split(x, [height * index // count for index in range(1, count)], axis=1))


def hold(parts: Iterable[mx.array]) -> Strips:
    """Compute strips one after the other, so that what one takes on the way is free before the next."""
    strips = Strips()
    for part in parts:
        mx.eval(part)
        strips.append(part)
    return strips


def drain(strips: Strips) -> Iterator[mx.array]:
    """Give the strips from top to bottom, and let go of each."""
    while strips:
        yield strips.popleft()


def convolve(strips: Iterable[mx.array], conv: nn.Conv2d) -> Iterator[mx.array]:
    """Apply a 3x3 convolution with a padding of one; every strip gives one of its height.

    Shapes:
        strips (B, rows, W, channels_in) -> (B, rows, W, channels_out)
    """
    above: mx.array | None = None
    rest = iter(strips)
    strip = next(rest, None)
    while strip is not None:
        below = next(rest, None)
        near = [above, strip, None if below is None else below[:, :1]]
        x = mx.concatenate([part for part in near if part is not None], axis=1)
        outside = ([int(above is None), 1], [int(below is None), 1])
        y = mx.conv_general(x, conv.weight, padding=outside)
        yield y + conv.bias if "bias" in conv else y
        above, strip = strip[:, -1:], below


def normalise(strips: Strips, norm: GroupNorm) -> Callable[[mx.array], mx.array]:
    """Give the function that applies a group norm of the whole picture, then silu, to one strip.

    Shapes:
        strips (B, rows, W, C) -> function of (B, rows, W, C), which keeps shape and dtype
    """
    moments = []
    for strip in strips:
        moments.append(channel_moments(strip))
        mx.eval(moments[-1])
    mean, scale = norm.merge([strip.shape[1] for strip in strips], moments)
    return partial(_normalise_silu, mean=mean, scale=scale, bias=norm.bias)


@partial(mx.compile, shapeless=True)
def _normalise_silu(x: mx.array, mean: mx.array, scale: mx.array, bias: mx.array) -> mx.array:
    y = ((x - mean) * scale + bias).astype(x.dtype)
    return y * mx.sigmoid(y)
