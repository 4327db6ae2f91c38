"""Token policies as operations of Core ML: score, rank, gather, scatter, at one fixed capacity.

Scores and their ranking are float32 in every form. Two forms select the same tokens and give the same values:

- ROWS: top-k, gather and scatter of rows, in the order in which top-k gives them: a block treats tokens alike in any
  order. Core ML does not say which of equal scores its top-k prefers: where the last score kept equals the first left
  out, the other token may be kept. Equal scores that are both kept or both left out do not matter.
- ONEHOT: ranks by comparing all pairs of scores, of equal ones the lower index first, then moves tokens by products
  with matrices of zeros and ones. No top-k, gather or scatter, for which the Neural Engine has no place; but N^2
  comparisons, exact only up to MAX_ONEHOT_TOKENS. Scores, comparisons and sinusoid are float32 here too, which the
  Neural Engine does not compute: Core ML has to run these elsewhere, in every layer. How much that costs, nobody has
  measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from coremltools.converters.mil import Builder as mb

from convert.coreml.choices import Routing
from convert.coreml.layers import cast, dtype_of, number
from convert.coreml.scratch import Array
from convert.coreml.weights import Var, Weights
from moddit.contract import KEPT
from moddit.tensors import ROUTER
from moddit.tokens import DENSE, TOPK, TokenPolicy

MAX_ONEHOT_TOKENS: Final = 2048  # float16 holds every integer up to here

Constant = Callable[[str, Callable[[], Array]], Var]  # adds a constant of this name to the function, once


@dataclass(frozen=True)
class Kept:
    """The tokens that a block processes, and the way back to their places."""

    tokens: Var  # (B, K, C), in any order
    gates: tuple[Var, ...]  # at most one, (B, K, 1), that multiplies the MLP
    put_back: Callable[[Var], Var]  # processed tokens (B, K, C) -> (B, N, C), the others unchanged


@dataclass(frozen=True)
class Keeper:
    """Keeps the tokens of the blocks of one model."""

    policy: TokenPolicy
    form: Routing
    weights: Weights
    constant: Constant

    def keep(self, x: Var, layer: int, count: int, name: str) -> Kept:
        """Take the `count` tokens that a block processes. Shapes: x (B, N, C)."""
        return _KEEPERS[self.policy.name](self, x, layer, count, name)


def _keep_all(_: Keeper, x: Var, __: int, ___: int, ____: str) -> Kept:
    return Kept(x, (), lambda processed: processed)


def _keep_best(keeper: Keeper, x: Var, layer: int, count: int, name: str) -> Kept:
    """Keep the tokens that the block's router scores highest; their scores gate the MLP."""
    scores = score(keeper.weights, x, layer, name)
    if count == x.shape[1]:
        return Kept(x, (gate(scores, dtype_of(x), name),), lambda processed: processed)
    if keeper.form is Routing.ROWS:
        return _select_rows(x, scores, count, name)
    return _select_onehot(x, scores, count, name, keeper.constant)


_KEEPERS: Final[Mapping[str, Callable[[Keeper, Var, int, int, str], Kept]]] = {DENSE: _keep_all, TOPK: _keep_best}


def score(weights: Weights, x: Var, layer: int, name: str) -> Var:
    """Score every token in float32. Shapes: x (B, N, C) -> (B, N)."""
    wide = cast(x, "fp32", name + "_router_input")
    column = mb.linear(x=wide, weight=weights.emit(ROUTER.format(layer=layer), "fp32"), name=name + "_router")
    return mb.squeeze(x=column, axes=[2], name=name + "_scores")


def gate(scores: Var, dtype: str, name: str) -> Var:
    """What multiplies the MLP branch. Shapes: scores (B, K) -> (B, K, 1)."""
    opened = mb.expand_dims(x=mb.sigmoid(x=scores, name=name + "_sigmoid"), axes=[2], name=name + "_gate_column")
    return cast(opened, dtype, name + "_gate")


def _select_rows(x: Var, scores: Var, count: int, name: str) -> Kept:
    batch, tokens, width = x.shape
    chosen, kept = mb.topk(  # scores and indices, (B, K) each
        x=scores, k=count, axis=1, ascending=False, sort=False, return_indices=True, output_indices_dtype="int32",
        name=name + KEPT,
    )  # fmt: skip
    if batch > 1:
        starts = np.arange(batch, dtype=np.int32)[:, None] * tokens
        kept = mb.add(x=kept, y=starts, name=name + "_rows")
    rows = mb.reshape(x=kept, shape=[batch * count], name=name + "_flat_rows")
    flat = mb.reshape(x=x, shape=[batch * tokens, width], name=name + "_flat")
    taken = mb.gather(x=flat, indices=rows, axis=0, name=name + "_gather")

    def put_back(processed: Var) -> Var:
        updates = mb.reshape(x=processed, shape=[batch * count, width], name=name + "_updates")
        merged = mb.scatter(data=flat, indices=rows, updates=updates, axis=0, mode="update", name=name + "_scatter")
        return mb.reshape(x=merged, shape=[batch, tokens, width], name=name + "_merged")

    gates = (gate(chosen, dtype_of(x), name),)
    return Kept(mb.reshape(x=taken, shape=[batch, count, width], name=name + "_tokens"), gates, put_back)


def _select_onehot(x: Var, scores: Var, count: int, name: str, constant: Constant) -> Kept:
    tokens, dtype = x.shape[1], dtype_of(x)
    column = mb.expand_dims(x=scores, axes=[2], name=name + "_column")  # (B, N, 1)
    row = mb.expand_dims(x=scores, axes=[1], name=name + "_row")  # (B, 1, N)
    beats = cast(mb.greater(x=row, y=column, name=name + "_greater"), dtype, name + "_beats")  # (B, N, N)
    ties = cast(mb.equal(x=row, y=column, name=name + "_equal"), dtype, name + "_ties")
    earlier = constant(f"earlier_{tokens}", lambda: np.tri(tokens, k=-1).astype(np.float16))  # 1 where j < i
    before = mb.add(x=beats, y=mb.mul(x=ties, y=earlier, name=name + "_earlier"), name=name + "_before")
    rank = mb.reduce_sum(x=before, axes=[2], keep_dims=False, name=name + "_rank")  # (B, N)
    keep = cast(mb.less(x=rank, y=number(x, count), name=name + "_less"), dtype, name + KEPT)
    upto = constant(f"upto_{tokens}", lambda: np.triu(np.ones((tokens, tokens), np.float16)))
    ordinal = mb.matmul(x=mb.expand_dims(x=keep, axes=[1], name=name + "_kept_row"), y=upto, name=name + "_ordinal")
    wanted = np.arange(1, count + 1, dtype=np.float16)[:, None]
    hit = cast(mb.equal(x=ordinal, y=wanted, name=name + "_hit"), dtype, name + "_hits")  # (B, K, N)
    keep_row = mb.expand_dims(x=keep, axes=[1], name=name + "_keep_row")
    pick = mb.mul(x=hit, y=keep_row, name=name + "_pick")  # one 1 in each row
    taken = mb.matmul(x=pick, y=x, name=name + "_gather")
    exact = mb.matmul(x=cast(pick, "fp32", name + "_pick_fp32"), y=column, name=name + "_kept_column")
    chosen = mb.squeeze(x=exact, axes=[2], name=name + "_kept_scores")

    def put_back(processed: Var) -> Var:
        spread = mb.matmul(x=pick, y=processed, transpose_x=True, name=name + "_scatter")
        left = mb.sub(
            x=number(x, 1), y=mb.expand_dims(x=keep, axes=[2], name=name + "_keep_column"), name=name + "_left"
        )
        return mb.add(x=mb.mul(x=x, y=left, name=name + "_others"), y=spread, name=name + "_merged")

    return Kept(taken, (gate(chosen, dtype, name),), put_back)
