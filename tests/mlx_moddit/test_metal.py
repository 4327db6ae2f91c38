"""What only a Mac can show. The other tests of MLX run on Metal there too, as it is MLX's default device."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from mlx_moddit.layers import FUSED_WIDTHS, UNFUSED_QUERIES, attend
from mlx_moddit.tokens import gather_rows, number_rows, scatter_rows, select_tokens
from moddit import routing

pytestmark = pytest.mark.mac


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32], ids=str)
@pytest.mark.parametrize("queries", [1024, 820, 103])  # all tokens of a 512-pixel picture, 8 tenths, 1 tenth
@pytest.mark.parametrize(("keys", "is_masked"), [(1024, False), (300, False), (300, True)])
def test_attention_of_pixart_is_fused(dtype: mx.Dtype, queries: int, keys: int, is_masked: bool) -> None:
    """Heads of width 72; without a fused kernel the scores alone take 2 GB for a 1024-pixel picture."""
    q = mx.random.normal((2, 16, queries, 72)).astype(dtype)
    k, v = (mx.random.normal((2, 16, keys, 72)).astype(dtype) for _ in range(2))
    mask = (mx.arange(keys) < mx.array([[keys], [1]]))[:, None, None, :] if is_masked else None
    fused = mx.fast.scaled_dot_product_attention(q, k, v, scale=72**-0.5, mask=mask, force_fused=True)
    assert bool(mx.isfinite(fused).all())


@pytest.mark.parametrize("width", sorted(FUSED_WIDTHS))
def test_every_width_that_is_demanded_exists(width: int) -> None:
    q = mx.random.normal((1, 2, UNFUSED_QUERIES + 1, width))
    assert bool(mx.isfinite(attend(q, q, q, width**-0.5, None)).all())


def test_gpu_and_cpu_route_alike() -> None:
    random = np.random.default_rng(0)
    scores = np.round(random.normal(size=(2, 4096)), 2).astype(np.float32)  # hundreds of ties
    tokens = mx.array(random.normal(size=(2, 4096, 72)), dtype=mx.float16)
    results = []
    for device in (mx.gpu, mx.cpu):
        with mx.stream(device):
            kept = select_tokens(mx.array(scores), 2048)
            numbers = number_rows(kept, 4096)
            merged = scatter_rows(tokens, numbers, 2 * gather_rows(tokens, numbers))
            mx.eval(kept, merged)
        np.testing.assert_array_equal(np.array(kept), routing.select_tokens(scores, 2048))
        results.append(np.array(merged))
    np.testing.assert_array_equal(results[0], results[1])
