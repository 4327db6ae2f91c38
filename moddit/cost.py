"""FLOPs and bytes of a transformer: what routing saves, counted, not timed.

Two FLOPs per multiply-accumulate; norms, activations, softmax, gather and scatter are left out (below 1 % together).
"""

from __future__ import annotations

from collections.abc import Sequence

from moddit.models.transformer import TransformerSpec
from moddit.operations import Operation, combine, count_flops, matmul, normalise
from moddit.tokens import TokenPolicy


def router_flops(spec: TransformerSpec, tokens: int) -> int:
    """Count the FLOPs of one block's router, which scores every token."""
    return 2 * tokens * spec.hidden_size


def dense_flops(spec: TransformerSpec, tokens: int, text_tokens: int) -> int:
    """Count the FLOPs of a step in which every block processes every token, for a batch of one."""
    return step_flops(spec, TokenPolicy.dense(spec.num_layers, 1), 0, tokens, text_tokens)


def blocks_flops(spec: TransformerSpec, policy: TokenPolicy, region: int, tokens: int, text_tokens: int) -> int:
    """Count the FLOPs of all blocks and their routers at a step in one region, for a batch of one."""
    blocks = sum(spec.block_flops(kept, text_tokens) for kept in policy.plan.capacities(region, tokens))
    return blocks + (spec.num_layers * router_flops(spec, tokens) if policy.has_routers else 0)


def step_operations(
    spec: TransformerSpec, policy: TokenPolicy, region: int, tokens: int, text_tokens: int
) -> list[Operation]:
    """List the operations of one forward pass, routing among them, for a batch of one."""
    width, patch = spec.hidden_size, spec.patch_size**2
    found = [matmul(tokens, patch * spec.in_channels, width), combine(tokens * width)]
    for kept in policy.plan.capacities(region, tokens):
        found += spec.block_operations(kept, text_tokens) + _routing_operations(policy, kept, tokens, width)
    return [*found, normalise(tokens * width), matmul(tokens, width, patch * spec.out_channels)]


def _routing_operations(policy: TokenPolicy, kept: int, tokens: int, width: int) -> list[Operation]:
    """List what it takes to score and rank tokens, to gather those that are kept, and to put them back."""
    moved = [combine(kept * width, 1), combine(tokens * width, 1)] if kept < tokens else []
    if not policy.has_routers:
        return moved
    return [matmul(tokens, width, 1), *moved, combine(kept * width)]


def step_flops(spec: TransformerSpec, policy: TokenPolicy, region: int, tokens: int, text_tokens: int) -> int:
    """Count the FLOPs of one forward pass: the blocks, patch embedding and final projection, for a batch of one."""
    return count_flops(step_operations(spec, policy, region, tokens, text_tokens))


def kept_flops_share(
    spec: TransformerSpec, policy: TokenPolicy, timesteps: Sequence[float], tokens: int, text_tokens: int
) -> float:
    """Compute the share of the dense blocks' FLOPs that a policy's blocks and routers spend over a sampling run."""
    dense = len(timesteps) * spec.num_layers * spec.block_flops(tokens, text_tokens)
    regions = policy.plan.schedule(timesteps)
    return sum(blocks_flops(spec, policy, region, tokens, text_tokens) for region in regions) / dense


def activation_bytes(spec: TransformerSpec, kept: int, tokens: int, *, batch: int, itemsize: int) -> int:
    """Estimate the bytes alive at once within a block.

    Counted are the stream before and after, the kept rows, their queries, keys and values, and the MLP's hidden rows.
    """
    width = spec.hidden_size
    return batch * itemsize * width * (2 * tokens + kept * (1 + 3 + 4))
