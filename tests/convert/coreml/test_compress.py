"""Compression of matrices: how far values move, what is exact, and what it costs."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from convert.coreml.compress import BLOCK, GROUP, Blockwise, Palette, Plain, Scheme, compress

INTEGERS: Final = [Scheme.INT8, Scheme.INT4]
PALETTES: Final = [Scheme.PALETTE4, Scheme.PALETTE6]
SCHEMES: Final = [*INTEGERS, *PALETTES]
# A scale is rounded to float16, at most 2^-11 of it, and so the largest number moves by that share of itself.
SCALE_ROUNDING: Final = 2.0**-11
FINENESS: Final = 2048  # bins of the histogram: a value is as good as the middle of its own


def by_value(scheme: Scheme) -> str:
    return scheme.value


@st.composite
def matrices(draw: st.DrawFn, smallest: float = -3.0) -> NDArray[np.float32]:
    """Matrices that every scheme fits, of normal or heavy-tailed numbers, with rows of different sizes."""
    rows, columns = GROUP * draw(st.integers(1, 3)), BLOCK * draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    numbers = rng.standard_normal((rows, columns)) ** draw(st.sampled_from([1, 3]))
    numbers += draw(st.sampled_from([0.0, 0.5]))
    sizes = 10.0 ** rng.uniform(smallest, 2, (rows, 1)) if draw(st.booleans()) else 1.0
    return (numbers * sizes).astype(np.float32)


def blocks_of(matrix: NDArray[Any], scheme: Scheme) -> NDArray[Any]:
    """What shares a scale or a palette: (blocks, numbers)."""
    if scheme.is_palette:
        return matrix.reshape(len(matrix) // GROUP, -1)
    return matrix.reshape(-1, BLOCK if scheme is Scheme.INT4 else matrix.shape[1])


@given(matrix=matrices(), scheme=st.sampled_from(INTEGERS))
def test_integers_move_by_half_a_step(matrix: NDArray[np.float32], scheme: Scheme) -> None:
    stored = compress(matrix, scheme)
    values, numbers = blocks_of(stored.values(), scheme), blocks_of(matrix, scheme)
    largest = np.abs(numbers).max(axis=1, keepdims=True)
    half = 1 << (scheme.bits - 1)
    # a whole step only where a number nearly as large as the largest has the other sign: there is one integer less
    step = largest / half * (1 + SCALE_ROUNDING)
    moved = np.abs(values - numbers)
    near = np.abs(numbers) <= largest * (half - 1) / half
    assert np.all(moved <= step * 0.5 + largest * SCALE_ROUNDING + np.where(near, 0, step * 0.5))


def signed_values(matrix: NDArray[np.float32], scheme: Scheme) -> NDArray[np.float32]:
    """What packages held before scales were positive: signed integers, some scales negative."""
    blocks, bottom = blocks_of(matrix, scheme), -(1 << (scheme.bits - 1))
    low, high = blocks.min(axis=1), blocks.max(axis=1)
    scales = (np.where(-low > high, low, high) / bottom).astype(np.float16)
    smallest = np.float16(6e-8)
    scales = np.where(np.abs(scales) < smallest, smallest, scales)[:, None].astype(np.float32)
    numbers = np.clip(np.rint(blocks / scales), bottom, -bottom - 1).astype(np.int8)
    return (numbers.astype(np.float32) * scales).reshape(matrix.shape)


@given(matrix=matrices(-9.0), scheme=st.sampled_from(INTEGERS))
def test_positive_scales_lose_nothing(matrix: NDArray[np.float32], scheme: Scheme) -> None:
    stored = compress(matrix, scheme)
    assert isinstance(stored, Blockwise)
    assert np.all(stored.scales > 0)
    assert stored.numbers.max() < 1 << scheme.bits
    assert np.array_equal(stored.values(), signed_values(matrix, scheme))


@given(matrix=matrices(), scheme=st.sampled_from(PALETTES))
def test_palettes_take_the_nearest_entry(matrix: NDArray[np.float32], scheme: Scheme) -> None:
    stored = compress(matrix, scheme)
    assert isinstance(stored, Palette)
    groups = blocks_of(matrix, scheme)
    tables = stored.tables.astype(np.float32)
    nearest = np.abs(groups[:, :, None] - tables[:, None, :]).min(axis=2)
    span = groups.max(axis=1, keepdims=True) - groups.min(axis=1, keepdims=True)
    moved = np.abs(blocks_of(stored.values(), scheme) - groups)
    assert np.all(moved <= nearest + span * (2 / FINENESS) + np.abs(groups) * 1e-6)


@pytest.mark.parametrize(
    ("scheme", "limit"),
    [(Scheme.INT8, 1e-2), (Scheme.INT4, 0.1), (Scheme.PALETTE4, 0.11), (Scheme.PALETTE6, 0.035)],
    ids=str,
)
def test_error_of_normal_numbers(scheme: Scheme, limit: float) -> None:
    """Lloyd's optimum for 16 levels of a normal distribution is 0.0975 (20.2 dB), for 64 levels 0.025."""
    matrix = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    error = compress(matrix, scheme).values() - matrix
    assert np.sqrt(np.mean(error**2)) < limit


@given(matrix=matrices(), scheme=st.sampled_from(SCHEMES))
def test_depends_on_the_matrix_alone(matrix: NDArray[np.float32], scheme: Scheme) -> None:
    one, two = compress(matrix, scheme), compress(matrix.copy(), scheme)
    for name, value in vars(one).items():
        assert np.array_equal(getattr(two, name), value), name


@given(matrix=matrices(), scheme=st.sampled_from(PALETTES))
def test_palettes_ascend(matrix: NDArray[np.float32], scheme: Scheme) -> None:
    stored = compress(matrix, scheme)
    assert isinstance(stored, Palette)
    assert np.all(np.diff(stored.tables.astype(np.float64), axis=1) >= 0)
    assert stored.tables.shape == (len(matrix) // GROUP, 1 << scheme.bits)
    assert stored.indices.max() < 1 << scheme.bits


class TestExact:
    @given(seed=st.integers(0, 2**32 - 1), scheme=st.sampled_from(INTEGERS), exponent=st.integers(-14, 6))
    def test_multiples_of_a_scale(self, seed: int, scheme: Scheme, exponent: int) -> None:
        rng = np.random.default_rng(seed)
        half = 1 << (scheme.bits - 1)
        matrix = rng.integers(-half, half, (GROUP, 2 * BLOCK)).astype(np.float32)
        blocks_of(matrix, scheme)[:, 0] = -half
        matrix *= np.float32(2.0**exponent) * rng.choice(np.array([-1, 1], np.float32), (GROUP, 1))
        assert np.array_equal(compress(matrix, scheme).values(), matrix)

    @given(seed=st.integers(0, 2**32 - 1), scheme=st.sampled_from(PALETTES), data=st.data())
    def test_few_distinct_values(self, seed: int, scheme: Scheme, data: st.DataObject) -> None:
        rng = np.random.default_rng(seed)
        count = data.draw(st.integers(1, 1 << (scheme.bits - 1)))
        palette = rng.permutation(np.arange(-512, 512))[:count].astype(np.float32) / 256
        # each about as often: Lloyd's algorithm does not look for rare values
        matrix = rng.permutation(np.resize(palette, GROUP * 8 * BLOCK)).reshape(GROUP, 8 * BLOCK)
        assert np.array_equal(compress(matrix, scheme).values(), matrix)

    @pytest.mark.parametrize("scheme", SCHEMES, ids=by_value)
    def test_zeros(self, scheme: Scheme) -> None:
        matrix = np.random.default_rng(0).standard_normal((2 * GROUP, 2 * BLOCK)).astype(np.float32)
        matrix[:GROUP] = 0
        values = compress(matrix, scheme).values()
        assert np.array_equal(values[:GROUP], matrix[:GROUP])
        assert values[GROUP:].any(axis=1).all()

    @pytest.mark.parametrize("scheme", INTEGERS, ids=by_value)
    @pytest.mark.parametrize("size", [1e-8, 1e-6, 1e4])
    def test_scales_stay_finite(self, scheme: Scheme, size: float) -> None:
        """The smallest float16 is 6e-8: numbers below a few of it vanish, but none becomes NaN."""
        matrix = (np.random.default_rng(0).standard_normal((GROUP, BLOCK)) * size).astype(np.float32)
        stored = compress(matrix, scheme)
        assert isinstance(stored, Blockwise)
        assert np.isfinite(stored.scales).all()
        assert np.all(stored.scales > 0)
        assert np.abs(stored.values() - matrix).max() <= max(np.abs(matrix).max() / 7, 6e-8)


class TestSizes:
    def test_plain(self) -> None:
        assert Plain(np.ones((3, 5), np.float16)).values().dtype == np.float32

    @pytest.mark.parametrize(
        ("rows", "columns", "fitting"),
        [
            (GROUP, BLOCK, {Scheme.INT8, Scheme.INT4, Scheme.PALETTE4, Scheme.PALETTE6}),
            (GROUP + 1, BLOCK, {Scheme.INT8, Scheme.INT4}),
            (GROUP, BLOCK + 1, {Scheme.INT8, Scheme.PALETTE4, Scheme.PALETTE6}),
            (1, 1, {Scheme.INT8}),
        ],
    )
    def test_what_fits(self, rows: int, columns: int, fitting: set[Scheme]) -> None:
        assert {scheme for scheme in Scheme if scheme.fits(rows, columns)} == fitting
