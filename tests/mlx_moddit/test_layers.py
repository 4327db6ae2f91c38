"""The layers that the models share, against the same in float64."""

from __future__ import annotations

from typing import Final

import mlx.core as mx
import numpy as np
import pytest

from mlx_moddit.layers import GroupNorm

# Of float32 alone. A sum of one group's values in float32, one after the other, would err by 1e-4 and more.
NORM_ERROR: Final = 1e-5


@pytest.mark.parametrize("mean", [0, 3])
def test_group_norm_of_a_large_picture_is_as_exact_as_of_a_small_one(mean: int) -> None:
    groups, width = 2, 4
    values = np.random.default_rng(0).normal(mean, 1, size=(2, 256, 257, groups * width)).astype(np.float32)
    norm = GroupNorm(groups, groups * width, 1e-6)
    norm.weight, norm.bias = mx.arange(1, groups * width + 1, dtype=mx.float32), mx.ones(groups * width)
    found = norm(mx.array(values))
    exact = values.astype(np.float64).reshape(2, 256, 257, groups, width)
    axes = (1, 2, 4)
    exact = (exact - exact.mean(axes, keepdims=True)) / np.sqrt(exact.var(axes, keepdims=True) + 1e-6)
    wanted = exact.reshape(values.shape) * np.arange(1, groups * width + 1) + 1
    assert np.abs(np.array(found) - wanted).max() < NORM_ERROR * np.abs(wanted).max()


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_group_norm_keeps_the_dtype_of_its_input(dtype: mx.Dtype) -> None:
    assert GroupNorm(2, 8, 1e-6)(mx.ones((1, 3, 5, 8), dtype)).dtype == dtype
