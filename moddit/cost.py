"""FLOPs and bytes of a transformer: what routing saves, counted, not timed.

Two FLOPs per multiply-accumulate; norms, activations, softmax, gather and scatter are left out (below 1 % together).
"""

from __future__ import annotations

from collections.abc import Sequence

from moddit.routing import RoutingPlan
from moddit.spec import PixArtSpec


def block_flops(spec: PixArtSpec, kept: int, text_tokens: int) -> int:
    """Count the FLOPs of one block that processes `kept` tokens, for a batch of one.

    With n tokens, C channels and L text tokens it is n (28 C^2 + 4 n C + 4 L C): self-attention's four projections
    (8 C^2), cross-attention's query and output projections (4 C^2), the MLP of ratio four (16 C^2), and the two matrix
    products of each attention (4 n C and 4 L C). The text's keys and values (4 L C^2) are left out: MLX computes them
    once per picture. Packages for Core ML do so in every step, which this does not count.
    """
    width = spec.hidden_size
    return kept * (28 * width * width + 4 * kept * width + 4 * text_tokens * width)


def router_flops(spec: PixArtSpec, tokens: int) -> int:
    """Count the FLOPs of one block's router, which scores every token."""
    return 2 * tokens * spec.hidden_size


def blocks_flops(spec: PixArtSpec, plan: RoutingPlan | None, region: int, tokens: int, text_tokens: int) -> int:
    """Count the FLOPs of all blocks and their routers at a step in one region, for a batch of one.

    A `plan` of None is the dense model.
    """
    if plan is None:
        return spec.num_layers * block_flops(spec, tokens, text_tokens)
    blocks = sum(block_flops(spec, kept, text_tokens) for kept in plan.capacities(region, tokens))
    return blocks + spec.num_layers * router_flops(spec, tokens)


def step_flops(spec: PixArtSpec, plan: RoutingPlan | None, region: int, tokens: int, text_tokens: int) -> int:
    """Count the FLOPs of one forward pass: the blocks, patch embedding and final projection, for a batch of one."""
    patch = spec.patch_size * spec.patch_size
    ends = 2 * tokens * spec.hidden_size * patch * (spec.in_channels + spec.out_channels)
    return blocks_flops(spec, plan, region, tokens, text_tokens) + ends


def kept_flops_share(
    spec: PixArtSpec, plan: RoutingPlan | None, timesteps: Sequence[float], tokens: int, text_tokens: int
) -> float:
    """Compute the share of the dense blocks' FLOPs that a plan's blocks and routers spend over a sampling run."""
    if plan is None:
        return 1.0
    dense = len(timesteps) * blocks_flops(spec, None, 0, tokens, text_tokens)
    return sum(blocks_flops(spec, plan, region, tokens, text_tokens) for region in plan.schedule(timesteps)) / dense


def activation_bytes(spec: PixArtSpec, kept: int, tokens: int, *, batch: int, itemsize: int) -> int:
    """Estimate the bytes alive at once within a block.

    Counted are the stream before and after, the kept rows, their queries, keys and values, and the MLP's hidden rows.
    """
    width = spec.hidden_size
    return batch * itemsize * width * (2 * tokens + kept * (1 + 3 + 4))
