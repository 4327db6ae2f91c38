"""Token merging (ToMe, arXiv 2303.17604): similar tokens become one before a function, and share what it gives them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def merge_tokens(compute: Callable[..., Tensor], merged: int, columns: int) -> Callable[..., Tensor]:
    """Merge the most similar tokens before a function and copy its results back, as tomesd does (bipartite soft
    matching).

    The first token of each 2 x 2 square is a destination; the others merge into the most similar one, those first that
    are most similar.

    Args:
        compute: gives a result for each token, without the residual: tokens (B, K, C), in no order -> (B, K, C).
        merged: tokens that merge; no more do than are no destination.
        columns: tokens in a row of the picture.

    Shapes: the function made takes and gives (B, N, C), rows of the picture one after the other
    """

    def forward(hidden_states: Tensor, **arguments: Any) -> Tensor:
        width = hidden_states.shape[2]
        target, source = split_squares(hidden_states.shape[1], columns)
        unit = hidden_states / hidden_states.norm(dim=-1, keepdim=True)
        similarity, nearest = (unit[:, source] @ unit[:, target].transpose(1, 2)).max(dim=-1)
        order = similarity.argsort(dim=-1, descending=True)
        gone, kept = order[:, :merged], order[:, merged:]
        into = nearest.gather(1, gone)

        def rows(index: Tensor) -> Tensor:
            return index[..., None].expand(-1, -1, width)

        sources, targets = hidden_states[:, source], hidden_states[:, target]
        targets = targets.scatter_reduce(1, rows(into), sources.gather(1, rows(gone)), reduce="mean")
        mixed = compute(torch.cat([targets, sources.gather(1, rows(kept))], dim=1), **arguments)
        targets, left = mixed.split([len(target), mixed.shape[1] - len(target)], dim=1)
        restored = torch.empty_like(sources).scatter(1, rows(kept), left)
        restored = restored.scatter(1, rows(gone), targets.gather(1, rows(into)))
        result = torch.empty_like(hidden_states)
        result[:, source], result[:, target] = restored, targets
        return result

    return forward


def split_squares(count: int, columns: int) -> tuple[Tensor, Tensor]:
    """List the first token of each 2 x 2 square of a picture, and the others, (T,) and (S,) int64."""
    index = torch.arange(count)
    is_first = (index % columns % 2 == 0) & (index // columns % 2 == 0)
    return is_first.nonzero()[:, 0], (~is_first).nonzero()[:, 0]
