"""Routing on MLX: rank tokens by score, gather the kept rows, scatter them back. Everything stays lazy.

Ranking is the rule of `moddit.routing.select`. Indices are flattened over the batch, because MLX has a coalesced Metal
kernel for taking rows along axis 0 and none for indices per sample.
"""

from __future__ import annotations

import mlx.core as mx


def route(scores: mx.array, count: int) -> mx.array:
    """Pick the tokens with the largest scores of each sample, in ascending index order; ties go to the lower index.

    The negated scores are partitioned, not the scores: MLX's partition is stable, so ties then fall to the lower index.

    Args:
        scores: raw router scores, float32, (B, N).
        count: tokens to keep, 1..N; a Python integer, because it decides shapes.

    Shapes:
        scores (B, N) -> kept (B, count), uint32
    """
    assert scores.dtype == mx.float32, scores.dtype  # half precision ties too often to rank by
    assert 1 <= count <= scores.shape[1], (count, scores.shape)
    order = mx.argpartition(-scores, count - 1, axis=-1)[:, :count]
    return mx.sort(order, axis=-1)


def gather_rows(tokens: mx.array, kept: mx.array) -> mx.array:
    """Take the kept tokens of each sample.

    Shapes:
        tokens (B, N, C), kept (B, K) -> rows (B, K, C)
    """
    B, N, C = tokens.shape
    return mx.take(tokens.reshape(B * N, C), _flat(kept, N), axis=0).reshape(B, kept.shape[1], C)


def scatter_rows(tokens: mx.array, kept: mx.array, rows: mx.array) -> mx.array:
    """Replace the kept tokens of each sample and leave the others as they are; `tokens` itself is not changed.

    Shapes:
        tokens (B, N, C), kept (B, K), rows (B, K, C) -> (B, N, C)
    """
    B, N, C = tokens.shape
    merged, updates = tokens.reshape(B * N, C), rows.reshape(-1, C)
    # Metal scatters 16-bit values by compare-and-swap on 32-bit words, so two channels move as one word instead.
    is_paired = tokens.dtype.size == 2 and C % 2 == 0
    if is_paired:
        merged, updates = merged.view(mx.uint32), updates.view(mx.uint32)
    merged[_flat(kept, N)] = updates
    return (merged.view(tokens.dtype) if is_paired else merged).reshape(B, N, C)


def _flat(kept: mx.array, tokens: int) -> mx.array:
    offsets = mx.arange(kept.shape[0], dtype=mx.uint32)[:, None] * tokens
    return (kept + offsets).reshape(-1)
