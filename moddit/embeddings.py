"""The embeddings that nothing learns: of timesteps, of positions in a picture, of distances in a text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

MAX_PERIOD: Final = 10_000  # longest wavelength of the sinusoids, in positions or timesteps, over 2 pi


def sinusoid(values: Sequence[float], channels: int, freq_shift: int = 0) -> NDArray[np.float32]:
    """Embed timesteps (or sizes) as diffusers' `Timesteps(channels, True, freq_shift)`.

    Rounds to float32 where diffusers does: at t = 999 the last bit of a frequency moves its angle by 6e-5.

    Shapes:
        values (S,) -> (S, channels), cosines first
    """
    angles = (np.asarray(values, dtype=np.float32)[:, None] * sinusoid_frequencies(channels, freq_shift)).astype(
        np.float64
    )
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=-1).astype(np.float32)


def sinusoid_frequencies(channels: int, freq_shift: int = 0) -> NDArray[np.float32]:
    """Angles per unit of `sinusoid`. Shapes: -> (channels / 2,)."""
    half = channels // 2
    exponents = np.float32(-math.log(MAX_PERIOD)) * np.arange(half, dtype=np.float32) / np.float32(half - freq_shift)
    return np.exp(exponents.astype(np.float64)).astype(np.float32)


def position_embedding(
    channels: int, height: int, width: int, *, base_size: int, interpolation_scale: float
) -> NDArray[np.float32]:
    """Embed the positions of a grid of patches as diffusers' `PatchEmbed`: columns in the first half of the channels.

    Positions are scaled so that any grid spans 0..base_size / interpolation_scale, where `base_size` is the side of the
    grid that the model was built for. All sizes count patches.

    Shapes:
        -> (height * width, channels), row by row
    """
    # each coordinate once, not each patch: sines of float64 are what takes time here
    rows, columns = (
        _axis_embedding(_positions(count, base_size, interpolation_scale), channels // 2) for count in (height, width)
    )
    shape = (height, width, channels // 2)
    halves = [np.broadcast_to(part, shape) for part in (columns, rows[:, None])]
    return np.concatenate(halves, axis=-1).reshape(height * width, channels)


def relative_buckets(length: int, buckets: int, max_distance: int) -> NDArray[np.int32]:
    """Number the distance of every key from every query: near distances exactly, far ones in logarithmic bins, by side.

    Float32 as in transformers, whose truncation decides the bin of the far distances.

    Shapes:
        -> (length, length), queries by keys, 0..buckets - 1
    """
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]
    side, exact = buckets // 2, buckets // 4
    near = np.abs(distance)
    octaves = np.log(np.maximum(near, 1).astype(np.float32) / np.float32(exact))
    share = octaves / np.float32(math.log(max_distance / exact))
    far = np.minimum(exact + (share * np.float32(side - exact)).astype(np.int64), side - 1)
    numbers: NDArray[np.int64] = np.where(distance > 0, side, 0) + np.where(near < exact, near, far)
    return numbers.astype(np.int32)


def _positions(count: int, base_size: int, interpolation_scale: float) -> NDArray[np.float32]:
    indices = np.arange(count, dtype=np.float32)
    return indices / np.float32(count / base_size) / np.float32(interpolation_scale)


def _axis_embedding(positions: NDArray[np.float32], channels: int) -> NDArray[np.float32]:
    frequencies = 1.0 / MAX_PERIOD ** (np.arange(channels // 2, dtype=np.float64) / (channels / 2.0))
    angles = np.outer(positions.astype(np.float64), frequencies)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1).astype(np.float32)
