"""Noise equals PyTorch's CPU generator."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from moddit.errors import ValueRangeError
from moddit.noise import SEED_MAX, SEED_MIN, NoiseStream, torch_randn

TOLERANCE = 1e-6  # float32 sine, cosine and logarithm of vector libraries at radii up to 5.8
SEEDS = (0, 1, 42, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**63 - 1, 2**63, SEED_MAX, -1, -5, SEED_MIN)


def reference(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)).numpy()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("shape", [(1,), (3, 5), (1, 4, 8, 8), (1, 4, 9, 5), (2, 1000)])
def test_equals_torch_for_seeds_at_every_limit(shape: tuple[int, ...], seed: int) -> None:
    ours = torch_randn(shape, seed)
    assert ours.shape == shape
    assert ours.dtype == np.float32
    assert np.abs(ours - reference(shape, seed)).max() <= TOLERANCE


@pytest.mark.parametrize("count", range(1, 41))
def test_equals_torch_for_every_small_count(count: int) -> None:
    for seed in range(20):
        assert np.abs(torch_randn((count,), seed) - reference((count,), seed)).max() <= TOLERANCE


def test_equals_torch_for_many_seeds() -> None:
    seeds = np.random.default_rng(0).integers(0, 2**64, size=200, dtype=np.uint64)
    for seed in map(int, seeds):
        assert np.abs(torch_randn((1, 4, 32, 32), seed) - reference((1, 4, 32, 32), seed)).max() <= TOLERANCE


@pytest.mark.parametrize("shape", [(), (0,), (4, 0, 2)])
def test_equals_torch_for_degenerate_shapes(shape: tuple[int, ...]) -> None:
    ours = torch_randn(shape, 7)
    assert ours.shape == shape
    assert ours.size == math.prod(shape)
    np.testing.assert_allclose(ours, reference(shape, 7), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("counts", [(256, 256), (1, 1, 1), (3, 20, 2, 5), (15, 17, 0, 4), (20, 3, 16, 1)])
def test_one_tensor_after_the_other_equals_torch(counts: tuple[int, ...]) -> None:
    """Small ones leave the second of a pair to the next small one, whatever is drawn in between."""
    for seed in range(20):
        stream, generator = NoiseStream(seed), torch.Generator("cpu").manual_seed(seed)
        for count in counts:
            wanted = torch.randn(count, generator=generator).numpy()
            np.testing.assert_allclose(stream.normal((count,)), wanted, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("seed", [SEED_MIN - 1, SEED_MAX + 1])
def test_refuses_seeds_that_torch_refuses(seed: int) -> None:
    with pytest.raises(ValueRangeError, match="seed out of range"):
        torch_randn((4,), seed)
    with pytest.raises((RuntimeError, ValueError)):
        torch.Generator("cpu").manual_seed(seed)


def test_refuses_negative_sizes() -> None:
    with pytest.raises(ValueRangeError, match="size out of range"):
        torch_randn((4, -1), 0)
