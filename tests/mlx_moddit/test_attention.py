from __future__ import annotations

from typing import Any

import mlx.core as mx
import pytest

from mlx_moddit.layers import Attention


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
