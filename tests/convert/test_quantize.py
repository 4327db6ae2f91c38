"""Quantisation equals MLX's, bit for bit."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from convert.mlx.quantize import BITS, GROUP_SIZES, quantize
from moddit.checkpoint.precision import narrow, widen

MLX_DTYPES = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16}


def check_equal(values: np.ndarray, dtype: str, bits: int, group_size: int) -> None:
    values = widen(narrow(values, dtype), dtype)
    wanted = mx.quantize(mx.array(values).astype(MLX_DTYPES[dtype]), group_size=group_size, bits=bits)
    words, scales, biases = quantize(values, dtype, bits=bits, group_size=group_size)
    assert np.array_equal(words, np.array(wanted[0]))
    for ours, mlx in ((scales, wanted[1]), (biases, wanted[2])):
        assert np.array_equal(widen(ours, dtype), np.array(mlx.astype(mx.float32)))


@pytest.mark.parametrize("dtype", MLX_DTYPES)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("group_size", GROUP_SIZES)
def test_equals_mlx(dtype: str, bits: int, group_size: int) -> None:
    values = np.random.default_rng(bits + group_size).standard_normal((24, 256)).astype(np.float32)
    values[0], values[1], values[2], values[3] = 0, 0.5, np.abs(values[2]), -np.abs(values[3])
    values[4] *= 1e-6  # near the smallest scale
    check_equal(values, dtype, bits, group_size)


@given(hnp.arrays(np.float32, (2, 32), elements=st.floats(-100, 100, width=16)), st.sampled_from(BITS))
def test_equals_mlx_on_anything(values: np.ndarray, bits: int) -> None:
    check_equal(values, "F16", bits, 32)


@pytest.mark.parametrize("bits", BITS)
def test_error_is_at_most_half_a_step(bits: int) -> None:
    values = np.random.default_rng(0).standard_normal((8, 128)).astype(np.float32)
    packed = quantize(values, "F32", bits=bits, group_size=64)
    words, scales, biases = map(mx.array, packed)
    restored = np.array(mx.dequantize(words, scales, biases, group_size=64, bits=bits))
    steps = np.repeat(np.abs(packed[1]), 64, axis=1)
    # The far end of a range may lie up to half a step beyond the last number, since zero is moved onto the grid.
    assert (np.abs(restored - values) <= 1.01 * steps).all()
    assert (np.abs(restored - values) <= 0.501 * steps).mean() > 0.99
