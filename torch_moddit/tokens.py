"""Token policies in PyTorch: which tokens a block processes of each sample, at one capacity or, in training, at two.

Choices where the paper is silent: scores are float32 under every precision, ranked raw (sigmoid saturates and ties),
ties to the lower index.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from moddit.routing import RoutingPlan
from moddit.tokens import DENSE, RANDOM, TOPK


@dataclass(frozen=True)
class BinUse:
    """One keep ratio at which a block runs, for some samples of the batch."""

    tenths: int  # keep ratio
    rows: Tensor | None  # samples, (S,) int64; None for all of them, in order
    weight: Tensor | None  # share of each sample's outcome, (S,); None for the whole of it


# The keep ratios at which a layer runs, given each sample's region of timesteps.
Routing = Callable[[int, Sequence[int]], list[BinUse]]


def follow_plan(plan: RoutingPlan) -> Routing:
    """Run each block at the one keep ratio that a plan gives the sample's region."""
    return lambda layer, regions: group_rows([plan.keep_tenths[layer][region] for region in regions])


def group_rows(tenths: Sequence[int]) -> list[BinUse]:
    """Group the samples of a batch by keep ratio, so that each group runs at its own cost."""
    groups = sorted(set(tenths))
    if len(groups) == 1:
        return [BinUse(groups[0], None, None)]
    return [
        BinUse(group, torch.tensor([row for row, value in enumerate(tenths) if value == group]), None)
        for group in groups
    ]


@dataclass(frozen=True)
class Kept:
    """The tokens that a block processes, and the way back to their places."""

    tokens: Tensor  # (B, K, C), in ascending order of their index
    gates: Tensor | None  # (B, K), that multiply the MLP
    indices: Tensor | None  # (B, K) int64; None for all tokens
    put_back: Callable[[Tensor], Tensor]  # processed tokens (B, K, C) -> (B, N, C), the others unchanged


def keep(tokens: Tensor, scores: Tensor | None, gates: Tensor | None, count: int, forced: Tensor | None) -> Kept:
    """Take the `count` tokens of each sample that score highest, or those that are forced.

    Shapes:
        tokens (B, N, C), scores and gates (B, N), forced (B, count)
    """
    if count == tokens.shape[1] or scores is None:
        return Kept(tokens, gates, None, lambda processed: processed)
    kept = select_tokens(scores, count) if forced is None else forced  # (B, K)
    index = kept.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
    return Kept(
        torch.gather(tokens, 1, index),
        None if gates is None else torch.gather(gates, 1, kept),
        kept,
        lambda processed: torch.scatter(tokens.to(processed.dtype), 1, index, processed),
    )


def relative_change(new: Tensor, old: Tensor) -> float:
    """Measure how much a tensor has changed, of any precision: mean |new - old| / mean |old|."""
    new, old = new.float(), old.float()
    return float((new - old).abs().mean() / old.abs().mean())


def select_tokens(scores: Tensor, count: int) -> Tensor:
    """Pick the tokens with the largest scores, ties to the lower index, in ascending order (`moddit.routing`).

    Shapes: scores (B, N) -> (B, count) int64
    """
    order = torch.argsort(scores.detach(), dim=-1, descending=True, stable=True)[:, :count]
    return order.sort(dim=-1).values


Scored = tuple[Tensor | None, Tensor | None]  # scores, and what of them gates the MLP, (B, N) each


def _score_learned(block: Any, tokens: Tensor, _: torch.Generator | None) -> Scored:
    with torch.autocast(tokens.device.type, enabled=False):
        scores = nn.functional.linear(tokens.float(), block.router.weight.float()).squeeze(-1)
    return scores, torch.sigmoid(scores)


def _score_random(_: Any, tokens: Tensor, generator: torch.Generator | None) -> Scored:
    device = "cpu" if generator is None else generator.device
    return torch.rand(tokens.shape[:2], generator=generator, device=device).to(tokens.device), None


# Scores a block's tokens, float32: (block, tokens (B, N, C), source of random scores).
Scorer = Callable[[Any, Tensor, torch.Generator | None], Scored]
SCORERS: Final[Mapping[str, Scorer]] = {
    DENSE: lambda *_: (None, None),
    TOPK: _score_learned,
    RANDOM: _score_random,
}
