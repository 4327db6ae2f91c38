"""Quantisation equals MLX's, bit for bit."""

from __future__ import annotations

from dataclasses import asdict

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from convert.mlx.quantize import quantize
from moddit.checkpoint.precision import narrow, widen
from moddit.quantization import AFFINE, BITS, MODES, MXFP4, Packing
from moddit.tensors import Role, TensorInfo

MLX_DTYPES = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16}
ALL_PACKINGS = [Packing(bits, size, AFFINE) for bits in BITS for size in MODES[AFFINE].group_sizes]
ALL_PACKINGS.append(Packing(4, 32, MXFP4))
HALFWAY = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 6]  # between the numbers of e2m1; the last is one


def check_equal(values: np.ndarray, dtype: str, packing: Packing) -> None:
    values = widen(narrow(values, dtype), dtype)
    wanted = mx.quantize(mx.array(values).astype(MLX_DTYPES[dtype]), **asdict(packing))
    found = quantize(values, dtype, packing)
    assert [part.shape for part in found] == list(packing.parts("x.weight", values.shape).values())
    for ours, mlx in zip(found, wanted, strict=True):
        assert ours.itemsize == mlx.itemsize
        if mlx.dtype in (mx.uint32, mx.uint8):
            assert np.array_equal(ours, np.array(mlx))
        else:
            assert np.array_equal(widen(ours, dtype), np.array(mlx.astype(mx.float32)))


def restore(values: np.ndarray, packing: Packing) -> np.ndarray:
    """Quantise here, and let MLX compute what becomes of the values."""
    words, scales, *biases = (mx.array(part) for part in quantize(values, "F32", packing))
    settings = {**asdict(packing), "dtype": mx.float32}
    return np.array(mx.dequantize(words, scales, biases[0] if biases else None, **settings))


@pytest.mark.parametrize("dtype", MLX_DTYPES)
@pytest.mark.parametrize("packing", ALL_PACKINGS, ids=lambda packing: packing.words)
def test_equals_mlx(dtype: str, packing: Packing) -> None:
    values = np.random.default_rng(packing.bits).standard_normal((24, 256)).astype(np.float32)
    values[0], values[1], values[2], values[3] = 0, 0.5, np.abs(values[2]), -np.abs(values[3])
    values[4] *= 1e-6  # near the smallest scale
    values[5] = np.tile([*HALFWAY, *(-x for x in HALFWAY)], 16)
    check_equal(values, dtype, packing)


@given(
    hnp.arrays(np.float32, (4, 32), elements=st.floats(-100, 100, width=16)),
    st.sampled_from([packing for packing in ALL_PACKINGS if packing.group_size == 32]),
    st.sampled_from(list(MLX_DTYPES)),
)
def test_equals_mlx_on_anything(values: np.ndarray, packing: Packing, dtype: str) -> None:
    check_equal(values, dtype, packing)


@pytest.mark.parametrize("bits", BITS)
def test_error_is_at_most_half_a_step(bits: int) -> None:
    values = np.random.default_rng(0).standard_normal((8, 128)).astype(np.float32)
    packing = Packing(bits, 64, AFFINE)
    errors = np.abs(restore(values, packing) - values)
    steps = np.repeat(np.abs(quantize(values, "F32", packing)[1]), 64, axis=1)
    # The far end of a range may lie up to half a step beyond the last number, since zero is moved onto the grid.
    assert (errors <= 1.01 * steps).all()
    assert (errors <= 0.501 * steps).mean() > 0.95


def test_the_smallest_numbers_become_nothing_in_mxfp4() -> None:
    values = np.full((1, 32), 1e-42, np.float32)  # for which there is no scale
    assert (np.abs(restore(values, Packing(4, 32, MXFP4))) < 1e-38).all()


def test_nothing_is_clipped_in_mxfp4() -> None:
    values = np.random.default_rng(0).standard_normal((8, 128)).astype(np.float32)
    packing = Packing(4, 32, MXFP4)
    errors = np.abs(restore(values, packing) - values)
    largest = np.abs(values).reshape(8, 4, 32).max(-1)
    steps = np.repeat(2 ** np.ceil(np.log2(largest / 6)), 32, axis=1)
    assert (errors <= np.maximum(0.25 * steps, np.abs(values) / 5)).all()  # half of the way between two neighbours


@pytest.mark.parametrize(
    ("mode", "bits", "group_size"),
    [(mode, bits, size) for mode in (AFFINE, MXFP4) for bits in (3, 4, 5, 6, 7, 8) for size in (16, 32, 64, 128, 256)],
)
def test_refuses_what_mlx_refuses(mode: str, bits: int, group_size: int) -> None:
    kind = MODES[mode]
    if bits in kind.bits and group_size in kind.group_sizes:
        mx.eval(mx.quantize(mx.ones((1, 256)), group_size, bits, mode))
    else:
        with pytest.raises(ValueError, match="quantize"):
            mx.quantize(mx.ones((1, 256)), group_size, bits, mode)


def test_only_products_of_whole_groups_fit() -> None:
    affine, mxfp4 = Packing(3, 64, AFFINE), Packing(4, 32, MXFP4)
    assert affine.fits(TensorInfo((3, 64), Role.LINEAR))
    assert not affine.fits(TensorInfo((3, 96), Role.LINEAR))
    assert not affine.fits(TensorInfo((64, 64), Role.BLOCK_MODULATION))
    assert mxfp4.fits(TensorInfo((4, 96), Role.LINEAR))
    assert not mxfp4.fits(TensorInfo((3, 96), Role.LINEAR))  # 9 bytes of scales, and then words
