from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from mlx_moddit.tokens import gather_rows, number_rows, scatter_rows, select_tokens
from moddit import routing

LARGEST = float(np.finfo(np.float32).max)
SIZES = st.tuples(st.integers(1, 3), st.integers(1, 70))


def _scores(elements: st.SearchStrategy[float]) -> st.SearchStrategy[NDArray[np.float32]]:
    return SIZES.flatmap(lambda size: hnp.arrays(np.float32, size, elements=elements))


RANDOM = _scores(st.floats(-LARGEST, LARGEST, width=32))
TIED = _scores(st.sampled_from([-1.0, -0.0, 0.0, 1e-45, 1.0]))
CONSTANT = SIZES.map(lambda size: np.full(size, 0.25, dtype=np.float32))


class TestSelectTokens:
    @given(scores=st.one_of(RANDOM, TIED, CONSTANT), data=st.data())
    @settings(deadline=None, max_examples=150)
    def test_equals_the_reference_ranking(self, scores: NDArray[np.float32], data: st.DataObject) -> None:
        count = data.draw(st.integers(1, scores.shape[1]))
        np.testing.assert_array_equal(
            np.array(select_tokens(mx.array(scores), count)), routing.select_tokens(scores, count)
        )

    @pytest.mark.parametrize("tokens", [64, 720, 1024, 4096])
    @pytest.mark.parametrize("tenths", [1, 3, 5, 9, 10])
    def test_equals_the_reference_ranking_at_the_sizes_of_pictures(self, tokens: int, tenths: int) -> None:
        rounded = np.round(np.random.default_rng(tokens + tenths).normal(size=(2, tokens)), 1).astype(np.float32)
        count = -(-tenths * tokens // 10)
        np.testing.assert_array_equal(
            np.array(select_tokens(mx.array(rounded), count)), routing.select_tokens(rounded, count)
        )

    def test_zero_and_minus_zero_tie(self) -> None:
        scores = mx.array([[0.0, -0.0, 0.0, -0.0, 1.0]])
        assert select_tokens(scores, 3).tolist() == [[0, 1, 4]]

    def test_refuses_half_precision_scores(self) -> None:
        with pytest.raises(AssertionError):
            select_tokens(mx.zeros((1, 4), dtype=mx.float16), 2)


class TestRows:
    @pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
    @pytest.mark.parametrize("channels", [6, 7])  # 16-bit channels move in pairs where they can
    def test_gather_and_scatter_equal_numpy(self, dtype: mx.Dtype, channels: int) -> None:
        random = np.random.default_rng(0)
        tokens = mx.array(random.normal(size=(3, 10, channels))).astype(dtype)
        kept = np.stack([np.sort(random.permutation(10)[:4]) for _ in range(3)])
        rows = mx.array(random.normal(size=(3, 4, channels))).astype(dtype)
        before = np.array(tokens.astype(mx.float32))

        numbers = number_rows(mx.array(kept, dtype=mx.uint32), 10)
        gathered = gather_rows(tokens, numbers)
        merged = scatter_rows(tokens, numbers, rows)

        wanted = before.copy()
        np.put_along_axis(wanted, kept[..., None], np.array(rows.astype(mx.float32)), axis=1)
        np.testing.assert_array_equal(
            np.array(gathered.astype(mx.float32)), np.take_along_axis(before, kept[..., None], axis=1)
        )
        np.testing.assert_array_equal(np.array(merged.astype(mx.float32)), wanted)
        assert merged.dtype == dtype
        np.testing.assert_array_equal(np.array(tokens.astype(mx.float32)), before)  # the input is not changed

    def test_scatter_keeps_every_bit_of_other_tokens(self) -> None:
        bits = mx.array(np.arange(2 * 8 * 4, dtype=np.uint16).reshape(2, 8, 4) * 997)  # NaNs and subnormals among them
        tokens = bits.view(mx.float16)
        numbers = number_rows(mx.array([[1, 6], [0, 7]], dtype=mx.uint32), 8)
        merged = scatter_rows(tokens, numbers, gather_rows(tokens, numbers))
        np.testing.assert_array_equal(np.array(merged.view(mx.uint16)), np.array(bits))
