from __future__ import annotations

from typing import Any, Final

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlx_moddit.layers import Attention
from tests.parity.bridge import relative_error

WIDTH: Final = 64


@pytest.mark.parametrize(
    ("width", "queries", "is_metal", "is_gpu", "is_demanded"),
    [
        (72, 820, True, True, True),  # PixArt and DiT XL
        (64, 9, True, True, True),  # T5
        (72, 8, True, True, False),  # of 32 pixels: another kernel, for other widths
        (8, 820, True, True, False),  # shapes64
        (512, 4096, True, True, False),  # a VAE's
        (72, 820, True, False, False),
        (72, 820, False, True, False),  # CUDA
    ],
)
def test_fused_attention_is_demanded_where_metal_has_it(
    monkeypatch: pytest.MonkeyPatch, width: int, queries: int, is_metal: bool, is_gpu: bool, is_demanded: bool
) -> None:
    demands: list[bool] = []
    fast = mx.fast.scaled_dot_product_attention

    def watch(*arrays: mx.array, force_fused: bool, **arguments: Any) -> mx.array:
        demands.append(force_fused)
        return fast(*arrays, **arguments)

    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", watch)
    monkeypatch.setattr(mx.metal, "is_available", lambda: is_metal)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu if is_gpu else mx.cpu, 0))
    attention = Attention(width, 1, bias=True)
    x = mx.ones((1, queries, width))
    attention(x, *attention.keys_values(x))
    assert demands == [is_demanded]


@pytest.mark.parametrize("quantised", [(), ("to_q", "to_k", "to_v")], ids=["exact", "quantised"])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_joined_projections_compute_the_same(quantised: tuple[str, ...], dtype: mx.Dtype) -> None:
    attention = make_attention(quantised, dtype)
    x = mx.random.normal((2, 5, WIDTH)).astype(dtype)
    wanted = attention.self_attend(x)
    mx.eval(wanted)
    attention.join_projections()
    assert attention.to_qkv.weight.shape[0] == 3 * WIDTH
    assert not {"to_q", "to_k", "to_v"} & attention.keys()  # else they would take memory
    assert (
        relative_error(attention.self_attend(x), wanted) < 4 * mx.finfo(dtype).eps
    )  # a product may add in another order


def test_projections_that_are_stored_differently_stay_apart() -> None:
    attention = make_attention(("to_v",), mx.float32)
    x = mx.random.normal((2, 5, WIDTH))
    wanted = attention.self_attend(x)
    attention.join_projections()
    assert "to_qkv" not in attention
    assert mx.array_equal(attention.self_attend(x), wanted)


def make_attention(quantised: tuple[str, ...], dtype: mx.Dtype) -> Attention:
    """Make one with some of its linear layers quantised to 4 bits."""
    attention = Attention(WIDTH, 2, bias=True)
    attention.set_dtype(dtype)
    nn.quantize(attention, 32, 4, class_predicate=lambda path, _: path in quantised)
    return attention
