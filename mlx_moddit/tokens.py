"""Token policies on MLX: a block's tokens are ranked by score, the kept rows gathered, and scattered back. All is lazy.

Ranking is the rule of `moddit.routing.select_tokens`. Kept tokens are numbered over the batch, once a layer, because
MLX has coalesced Metal kernels for one index along axis 0 and none for indices per sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import mlx.core as mx

from moddit.cache import FirstBlockCache
from moddit.tokens import DENSE, FIRST, TOPK, TokenPolicy

OnBlock = Callable[[int, mx.array, mx.array], None]  # layer, scores (B, N) float32, kept (B, K) uint32


@dataclass(frozen=True)
class Kept:
    """The tokens that a block processes, and the way back to their places."""

    tokens: mx.array  # (B, K, C), in ascending order of their index
    gates: tuple[mx.array, ...]  # at most one, (B, K, 1), that multiplies the MLP
    put_back: Callable[[mx.array], mx.array]  # processed tokens (B, K, C) -> (B, N, C), the others unchanged


class TokenRun:
    """What the blocks process in the steps of one picture; whatever a policy remembers between steps is here.

    `on_block` is called with every layer's index, scores and kept indices (lazy arrays), where tokens are scored;
    `forced` are tokens to keep in every layer instead of the ranking's, (B, K) each, for parity reports; `cache` is the
    threshold of a first-block cache, if there is to be one.
    """

    def __init__(
        self,
        policy: TokenPolicy,
        timesteps: Sequence[float],
        tokens: int,
        *,
        on_block: OnBlock | None = None,
        forced: Sequence[mx.array] | None = None,
        cache: float | None = None,
    ):
        self.capacities = [policy.plan.capacities(region, tokens) for region in policy.plan.schedule(timesteps)]
        self.on_block = on_block
        self.forced = forced
        self.cache: FirstBlockCache[mx.array] | None = None
        if cache is not None:
            self.cache = FirstBlockCache(cache, relative_change)
        self._keep = KEEPERS[policy.name]

    @property
    def remembered(self) -> tuple[mx.array, ...]:
        """What later steps may need, to be evaluated with a step: unevaluated it would hold on to more."""
        return () if self.cache is None else self.cache.residuals

    @property
    def is_cached(self) -> bool:
        """Whether the last step has left out the blocks behind the first."""
        return self.cache is not None and self.cache.is_hit

    def keep(self, block: Any, x: mx.array, layer: int, step: int) -> Kept:
        """Take the tokens that a block processes in a step. Shapes: x (B, N, C)."""
        return self._keep(self, block, x, layer, self.capacities[step][layer])


def _keep_best(run: TokenRun, block: Any, x: mx.array, layer: int, count: int) -> Kept:
    """Keep the `count` tokens that the block's router scores highest."""
    scores = score(block.router.weight, x)
    B, N = scores.shape
    if count == N:
        kept = mx.broadcast_to(mx.arange(N, dtype=mx.uint32), (B, N))
        found = Kept(x, (_gate(scores, x.dtype),), lambda processed: processed)
    else:
        kept = select_tokens(scores, count) if run.forced is None else run.forced[layer]
        rows = number_rows(kept, N)
        gate = _gate(mx.take(scores, rows).reshape(kept.shape), x.dtype)
        found = Kept(gather_rows(x, rows), (gate,), lambda processed: scatter_rows(x, rows, processed))
    if run.on_block is not None:
        run.on_block(layer, scores, kept)
    return found


def _keep_first(_: TokenRun, __: Any, x: mx.array, ___: int, count: int) -> Kept:
    if count == x.shape[1]:
        return Kept(x, (), lambda processed: processed)
    kept, left = mx.split(x, [count], axis=1)
    return Kept(kept, (), lambda processed: mx.concatenate([processed, left], axis=1))


KEEPERS: Final[Mapping[str, Callable[[TokenRun, Any, mx.array, int, int], Kept]]] = {
    DENSE: _keep_first,  # all of them
    TOPK: _keep_best,
    FIRST: _keep_first,
}


def relative_change(new: mx.array, old: mx.array) -> float:
    """Measure how much an array has changed, of any precision: mean |new - old| / mean |old|. Computes it at once."""
    new, old = new.astype(mx.float32), old.astype(mx.float32)
    share = (mx.abs(new - old).mean() / mx.abs(old).mean()).item()
    assert isinstance(share, float)
    return share


def score(router: mx.array, x: mx.array) -> mx.array:
    """Score every token. Shapes: router (1, C), x (B, N, C) of any precision -> (B, N) float32."""
    return (x.astype(mx.float32) @ router.astype(mx.float32).T)[..., 0]


def _gate(scores: mx.array, dtype: mx.Dtype) -> mx.array:
    return mx.sigmoid(scores)[..., None].astype(dtype)


def select_tokens(scores: mx.array, count: int) -> mx.array:
    """Pick the tokens with the largest scores of each sample, in ascending index order; ties go to the lower index.

    The negated scores are partitioned, not the scores: MLX's partition is stable, so ties then fall to the lower index.

    Shapes: scores (B, N) float32 -> kept (B, count) uint32
    """
    assert scores.dtype == mx.float32, scores.dtype  # half precision ties too often to rank by
    assert 1 <= count <= scores.shape[1], (count, scores.shape)
    order = mx.argpartition(-scores, count - 1, axis=-1)[:, :count]
    return mx.sort(order, axis=-1)


def number_rows(kept: mx.array, tokens: int) -> mx.array:
    """Number kept tokens over the whole batch, of `tokens` a sample. Shapes: kept (B, K) -> rows (B * K,) uint32."""
    return (kept + mx.arange(0, kept.shape[0] * tokens, tokens, dtype=mx.uint32)[:, None]).flatten()


def gather_rows(tokens: mx.array, rows: mx.array) -> mx.array:
    """Take as many tokens of each sample (see `number_rows`). Shapes: tokens (B, N, C), rows (B * K,) -> (B, K, C)."""
    return mx.take(tokens.flatten(0, 1), rows, axis=0).reshape(len(tokens), -1, tokens.shape[-1])


def scatter_rows(tokens: mx.array, rows: mx.array, updates: mx.array) -> mx.array:
    """Replace tokens (see `number_rows`) and leave the others as they are; `tokens` itself is not changed.

    Shapes: tokens (B, N, C), rows (B * K,), updates (B, K, C) -> (B, N, C)
    """
    merged, updates = tokens.flatten(0, 1), updates.flatten(0, 1)
    # Metal scatters 16-bit values by compare-and-swap on 32-bit words, so two channels move as one word instead.
    is_paired = tokens.dtype.size == 2 and tokens.shape[-1] % 2 == 0
    if is_paired:
        merged, updates = merged.view(mx.uint32), updates.view(mx.uint32)
    merged[rows] = updates
    return (merged.view(tokens.dtype) if is_paired else merged).reshape(tokens.shape)
