"""Seeded noise that equals PyTorch's CPU generator, so that a seed means the same picture in every backend.

Port of pytorch: aten/src/ATen/core/MT19937RNGEngine.h, ATen/core/DistributionsHelper.h (normal_distribution) and
ATen/native/cpu/DistributionTemplates.h (normal_fill). Deviations: float32 results only; logarithm, sine and cosine are
taken in float64 and rounded once, where PyTorch uses float32 vector approximations (differences up to 1e-6).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from moddit.errors import ValueRangeError

BLOCK: Final = 16  # values that PyTorch makes at a time; smaller tensors take another road
SEED_MIN: Final = -(2**63)
SEED_MAX: Final = 2**64 - 1


class NoiseStream:
    """Draw what a ``torch.Generator("cpu").manual_seed(seed)`` gives to one ``torch.randn`` after the other.

    Of a seed, -2**63 .. 2**64 - 1, only the low 32 bits count, as in PyTorch. Raises ValueRangeError if it is outside.
    """

    def __init__(self, seed: int) -> None:
        if not SEED_MIN <= seed <= SEED_MAX:
            raise ValueRangeError(f"[noise] seed out of range, got {seed}, want {SEED_MIN}..{SEED_MAX}")
        # RandomState seeds MT19937 by Knuth's recurrence as PyTorch does; NumPy promises never to change its stream.
        self._generator = np.random.RandomState(seed & 0xFFFFFFFF)
        self._spare: list[np.float64] = []  # the second of a pair, which the next small tensor begins with

    def normal(self, shape: Sequence[int]) -> NDArray[np.float32]:
        """Draw the next tensor, within 1e-6.

        Shapes:
            -> (*shape)

        Raises ValueRangeError for a size below 0.
        """
        if any(size < 0 for size in shape):
            raise ValueRangeError(f"[noise] size out of range, got shape {tuple(shape)}, want sizes of at least 0")
        count = math.prod(shape)
        values = _fill_blocks(self._generator, count) if count >= BLOCK else self._fill_pairs(count)
        return values.reshape(tuple(shape))

    def _fill_pairs(self, count: int) -> NDArray[np.float32]:
        """Make fewer than 16 normal values, in pairs from uniform values of 53 random bits."""
        pairs = (count - len(self._spare) + 1) // 2
        words = _words(self._generator, 4 * pairs).astype(np.uint64).reshape(pairs, 2, 2)
        bits = (words[..., 0] << np.uint64(32) | words[..., 1]) & np.uint64(2**53 - 1)
        uniform = bits.astype(np.float64) * 2.0**-53
        radius = np.sqrt(-2.0 * np.log1p(-uniform[:, 1]))
        angle = 2.0 * math.pi * uniform[:, 0]
        drawn = [*self._spare, *np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)]
        self._spare = drawn[count:]
        return np.array(drawn[:count], np.float32)


def torch_randn(shape: Sequence[int], seed: int) -> NDArray[np.float32]:
    """Draw what ``torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))`` draws; otherwise as
    `NoiseStream`.
    """
    return NoiseStream(seed).normal(shape)


def _words(generator: np.random.RandomState, count: int) -> NDArray[np.uint32]:
    """Take the next raw 32-bit outputs of the generator."""
    return generator.randint(0, 2**32, size=count, dtype=np.uint32)


def _uniform32(generator: np.random.RandomState, count: int) -> NDArray[np.float32]:
    """Take uniform values in [0, 1) with 24 random bits each."""
    return (_words(generator, count) & np.uint32(2**24 - 1)).astype(np.float32) * np.float32(2.0**-24)


def _fill_blocks(generator: np.random.RandomState, count: int) -> NDArray[np.float32]:
    """Make 16 or more normal values, in blocks of 16; a partial one is redrawn whole, over the end of the last."""
    uniform = _uniform32(generator, count)
    whole = count - count % BLOCK
    values = np.empty(count, np.float32)
    values[:whole] = _box_muller(uniform[:whole])
    if whole != count:
        values[-BLOCK:] = _box_muller(_uniform32(generator, BLOCK))
    return values


def _box_muller(uniform: NDArray[np.float32]) -> NDArray[np.float32]:
    """Turn blocks of 16 uniform values into normal ones: the first 8 of a block give radii, the last 8 angles."""
    blocks = uniform.reshape(-1, 2, BLOCK // 2)
    radius = np.sqrt(-2.0 * np.log((np.float32(1) - blocks[:, 0]).astype(np.float64)))
    # The angle is rounded to float32 in PyTorch; near 2 pi that alone moves a value by more than 1e-6.
    angle = (np.float32(2 * math.pi) * blocks[:, 1]).astype(np.float64)
    normal = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return normal.astype(np.float32).reshape(-1)
