"""What makes a trained transformer process fewer tokens, without training: the methods that routing replaces.

Each is given in its form that hurts least: only what a block adds to its tokens is shared or copied, so that every
token stays itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from benchmarks.merging import merge_tokens, split_squares
from moddit.cost import router_flops
from moddit.models.transformer import TransformerSpec, attention_operations
from moddit.operations import count_flops
from moddit.routing import RoutingPlan, capacity
from moddit.tokens import TokenPolicy
from torch_moddit.model import RoutedTransformer, Told
from torch_moddit.tokens import select_tokens

RANKING_ROUNDS: Final = 4  # of the page rank over a map of attention


@dataclass(frozen=True)
class Rival:
    """A method without training."""

    apply: Callable[[RoutedTransformer, int], None]  # change a dense model, at a keep ratio in tenths
    # FLOPs of one block: (dimensions, tokens of the picture, of them kept, tokens of the text); None as the policy says
    block_flops: Callable[[TransformerSpec, int, int, int], int] | None


def block_flops(
    rival: Rival | None, spec: TransformerSpec, policy: TokenPolicy, tokens: int, kept: int, text_tokens: int
) -> int:
    """Count the FLOPs of one block that keeps some tokens of a picture's, for a batch of one."""
    if rival is not None and rival.block_flops is not None:
        return rival.block_flops(spec, tokens, kept, text_tokens)
    return spec.block_flops(kept, text_tokens) + (router_flops(spec, tokens) if policy.has_routers else 0)


def drop_at_random(model: RoutedTransformer, tenths: int) -> None:
    """Let each block process any tokens and leave the others unchanged."""
    plan = model.policy.plan
    model.policy = TokenPolicy.random(RoutingPlan.uniform(plan.layers, 1, tenths, plan.num_train_timesteps))


def merge(model: RoutedTransformer, tenths: int) -> None:
    """Merge tokens around each block (ToMe, arXiv 2303.17604)."""
    run = model.run_block
    columns = model.spec.base_size

    def run_merged(block: Any, tokens: Tensor, told: Told, gates: Tensor | None) -> Tensor:
        count = tokens.shape[1]

        def change(rows: Tensor) -> Tensor:
            return run(block, rows, told, gates) - rows

        return tokens + merge_tokens(change, count - capacity(tenths, count), columns)(tokens)

    _replace(model, run_merged)


def merge_flops(spec: TransformerSpec, tokens: int, kept: int, text_tokens: int) -> int:
    """Count a block of so many tokens, and what it takes to compare the others with those that they may merge into."""
    target, source = split_squares(tokens, spec.base_size)
    return spec.block_flops(kept, text_tokens) + 2 * len(target) * len(source) * spec.hidden_size


def prune(model: RoutedTransformer, tenths: int) -> None:
    """Let self-attention's map say which tokens the rest of a block processes; the others get what it adds to the most
    similar of them (AT-EDM, arXiv 2405.05252, with a map for each block and no schedule over steps).
    """
    run = model.run_block

    def run_pruned(block: Any, tokens: Tensor, told: Told, gates: Tensor | None) -> Tensor:
        maps: list[Tensor] = []

        def attend(normed: Tensor) -> Tensor:
            result, weights = attend_openly(block.attn1, normed)
            maps.append(weights)
            return result

        attended = run(_Parts(block, {"attn1": attend, "attn2": _nothing, "ff": _nothing}), tokens, told, gates)
        kept = select_tokens(rank(maps[0]), capacity(tenths, tokens.shape[1]))
        rows = _take(attended, kept)
        change = run(_Parts(block, {"attn1": _nothing}), rows, told, gates) - rows
        unit = attended / attended.norm(dim=-1, keepdim=True)
        nearest = (unit @ _take(unit, kept).transpose(1, 2)).argmax(dim=-1)  # of a token that is kept: itself
        return attended + _take(change, nearest)

    _replace(model, run_pruned)


def prune_flops(spec: TransformerSpec, tokens: int, kept: int, text_tokens: int) -> int:
    """Count self-attention of all tokens, the rest of the block for those kept, the ranking and the comparison."""

    def attention(count: int) -> int:
        return count_flops(
            attention_operations(spec.hidden_size, spec.num_attention_heads, count, count, has_keys=False)
        )

    block = spec.block_flops(kept, text_tokens) - attention(kept) + attention(tokens)
    return block + 2 * RANKING_ROUNDS * tokens**2 + 2 * tokens * kept * spec.hidden_size


def attend_openly(attention: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Compute a self-attention of diffusers, and give its map.

    Shapes: tokens (B, N, C) -> (B, N, C), map (B, N, N) from queries to keys, in the mean over heads
    """
    query, key, value = (
        attention.head_to_batch_dim(project(tokens)) for project in (attention.to_q, attention.to_k, attention.to_v)
    )
    weights = attention.get_attention_scores(query, key)  # (B * heads, N, N)
    result = attention.to_out[0](attention.batch_to_head_dim(torch.bmm(weights, value)))
    return result, weights.unflatten(0, (len(tokens), attention.heads)).mean(dim=1)


def rank(weights: Tensor) -> Tensor:
    """Score tokens by the attention they receive from tokens that receive much (page rank).

    Shapes: map (B, N, N) from queries to keys -> (B, N)
    """
    scores = torch.full_like(weights[:, :, 0], 1 / weights.shape[1])
    for _ in range(RANKING_ROUNDS):
        scores = (scores[:, None] @ weights)[:, 0]
    return scores


class _Parts:
    """A block of diffusers with others in the place of some of its parts."""

    def __init__(self, block: Any, parts: Mapping[str, Callable[..., Any]]) -> None:
        self._block = block
        self._parts = parts

    def __getattr__(self, name: str) -> Any:
        return self._parts[name] if name in self._parts else getattr(self._block, name)


def _nothing(*_: object, **__: object) -> float:
    """Stand for a branch that adds nothing."""
    return 0.0


def _take(rows: Tensor, index: Tensor) -> Tensor:
    """Take some rows of each sample. Shapes: rows (B, N, C), index (B, K) -> (B, K, C)."""
    return rows.gather(1, index[..., None].expand(-1, -1, rows.shape[-1]))


def _replace(model: RoutedTransformer, run_block: Callable[..., Tensor]) -> None:
    assert model.policy.is_dense, "these methods are for models that process every token"
    model.run_block = run_block  # type: ignore[method-assign]


RANDOM_DROP: Final = Rival(drop_at_random, None)
MERGING: Final = Rival(merge, merge_flops)
PRUNING: Final = Rival(prune, prune_flops)
