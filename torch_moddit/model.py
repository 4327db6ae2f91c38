"""The routed PixArt transformer, over diffusers' own modules; its block is written once, for training and inference.

A block scores every token with one linear layer, keeps the `capacity` tokens with the largest scores, runs whole on
them and leaves the others unchanged. sigmoid(score) multiplies the output of the MLP branch, after its adaLN gate and
before the residual sum: that is what teaches the router. During training a block runs at two capacities and mixes the
outcomes, which teaches the keep ratio (`torch_moddit.ratios`).

Choices where the paper is silent:
- Scores are float32 under every precision, ranked raw (sigmoid saturates and ties), ties to the lower index.
- A routed model starts equal to the dense one: routers start at zero, where sigmoid gives 1/2 exactly, and `from_dense`
  doubles the MLP's last layer. Both are exact in binary arithmetic.

Source: DiffCR (arXiv 2412.16822), section 3; diffusers/models/transformers/pixart_transformer_2d.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from moddit.errors import MissingError, ShapeError
from moddit.routing import RoutingPlan, capacity
from moddit.spec import PixArtSpec

MASKED = -10000.0  # attention bias of a text token that is padding, as in diffusers


class Scoring(Enum):
    """Where the ranking of tokens comes from."""

    LEARNED = "learned"  # the block's router; sigmoid(score) gates the MLP branch
    RANDOM = "random"  # fresh random numbers, no gate: a control without any router


@dataclass(frozen=True)
class BinUse:
    """One keep ratio at which a block runs, for some samples of the batch."""

    tenths: int  # keep ratio
    rows: Tensor | None  # samples, (S,) int64; None for all of them, in order
    weight: Tensor | None  # share of each sample's outcome, (S,); None for the whole of it


class Routing(Protocol):
    """What decides how many tokens a block keeps of each sample."""

    def bins(self, layer: int, regions: Sequence[int]) -> list[BinUse]:
        """List the keep ratios at which `layer` runs, given each sample's region of timesteps."""


@dataclass(frozen=True)
class BlockTrace:
    """What one block did, handed to `record` (plans only, not the mixing of training)."""

    layer: int
    scores: Tensor | None  # (B, N) float32; None in a dense model
    kept: tuple[Tensor, ...]  # kept token indices of each sample, ascending, (K,)
    output: Tensor  # (B, N, C)


Record = Callable[[BlockTrace], None]
# tokens (B, N, C), scores (B, N), modulation (B, 6, C), text (B, L, C), text bias (B, 1, L), forced indices (B, K)
_Inputs = tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor | None, Tensor | None]


class PlanRouting:
    """Run each block at the one keep ratio that a plan gives the sample's region."""

    def __init__(self, plan: RoutingPlan) -> None:
        self.plan = plan

    def bins(self, layer: int, regions: Sequence[int]) -> list[BinUse]:
        tenths = [self.plan.keep_tenths[layer][region] for region in regions]
        return group_rows(tenths)


def group_rows(tenths: Sequence[int]) -> list[BinUse]:
    """Group the samples of a batch by keep ratio, so that each group runs at its own cost."""
    groups = sorted(set(tenths))
    if len(groups) == 1:
        return [BinUse(groups[0], None, None)]
    return [
        BinUse(group, torch.tensor([row for row, value in enumerate(tenths) if value == group]), None)
        for group in groups
    ]


class RoutedPixArt(nn.Module):
    """A PixArt transformer whose blocks process only some of the tokens.

    Owns `transformer`, a PixArtTransformer2DModel with one extra module `router` in each block, so that
    ``transformer.state_dict()`` carries the canonical names.

    Args:
        transformer: alpha or Sigma; taken over, not copied. Routers are added unless they are there.
        plan: kept tokens of every layer and region; None for the dense model, without routers and gates.
        scoring: LEARNED, or RANDOM for the control.

    Raises:
        UnsupportedError: if the transformer's configuration is not implemented.
        ShapeError: if the plan has another number of layers.
    """

    def __init__(
        self, transformer: PixArtTransformer2DModel, plan: RoutingPlan | None, scoring: Scoring = Scoring.LEARNED
    ) -> None:
        super().__init__()
        self.transformer: Any
        self.transformer = transformer
        config = {"_class_name": type(transformer).__name__, **self.transformer.config}
        self.spec = PixArtSpec.from_diffusers(config, "transformer")
        self.plan = plan
        self.scoring = scoring
        self.generator: torch.Generator | None = None  # of RANDOM scores; None for PyTorch's own
        self.gradient_checkpointing = False
        if plan is not None and plan.layers != self.spec.num_layers:
            raise ShapeError(f"[model] plan has {plan.layers} layers, the transformer {self.spec.num_layers}")
        if self.has_routers:
            self._add_routers()

    @classmethod
    def from_dense(
        cls, transformer: PixArtTransformer2DModel, plan: RoutingPlan | None, scoring: Scoring = Scoring.LEARNED
    ) -> RoutedPixArt:
        """Turn a trained dense transformer into a routed one that, while every token is kept, computes the same.

        Routers start at zero; the MLP's last layer is doubled in place, against sigmoid(0) = 1/2.
        """
        model = cls(transformer, plan, scoring)
        if model.has_routers:
            with torch.no_grad():
                for block in model.blocks:
                    block.ff.net[2].weight.mul_(2)
                    block.ff.net[2].bias.mul_(2)
        return model

    @property
    def has_routers(self) -> bool:
        return self.plan is not None and self.scoring is Scoring.LEARNED

    @property
    def blocks(self) -> Sequence[Any]:
        blocks: Sequence[Any] = self.transformer.transformer_blocks
        return blocks

    def router_parameters(self) -> list[nn.Parameter]:
        """List the routers' weights, each (1, C)."""
        return [block.router.weight for block in self.blocks] if self.has_routers else []

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        text: Tensor,
        text_mask: Tensor | None = None,
        conditions: Mapping[str, Tensor] | None = None,
        *,
        routing: Routing | None = None,
        record: Record | None = None,
        forced: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """Predict noise or velocity.

        Args:
            latents: noisy latents; sides are multiples of the patch size.
            timestep: of each sample, in 0..num_train_timesteps - 1.
            text: text encoder states.
            text_mask: 1 for tokens, 0 for padding; None if there is no padding.
            conditions: "resolution" (B, 2) and "aspect_ratio" (B, 1), for models with additional conditions.
            routing: replaces the plan (training).
            record: called after each block.
            forced: indices to keep instead of the ranking's, one tensor a layer (parity reports).

        Shapes:
            latents (B, C, H, W), timestep (B,), text (B, L, D), text_mask (B, L) -> (B, out_channels, H, W);
            forced[layer] (B, K)

        Raises:
            MissingError: additional conditions are needed and absent.
            ShapeError: the latents are not made of whole patches.
        """
        model = self.transformer
        batch, _, height, width = latents.shape
        self.spec.tokens(height, width)
        if self.spec.use_additional_conditions and conditions is None:
            raise MissingError("[model] this transformer needs the conditions 'resolution' and 'aspect_ratio'")
        tokens = model.pos_embed(latents)  # (B, N, C)
        modulation, embedded = model.adaln_single(  # (B, 6C), (B, C)
            timestep, dict(conditions) if conditions else None, batch_size=batch, hidden_dtype=tokens.dtype
        )
        text = model.caption_projection(text).view(batch, -1, tokens.shape[-1])  # (B, L, C)
        bias = None if text_mask is None else ((1 - text_mask.to(tokens.dtype)) * MASKED).unsqueeze(1)  # (B, 1, L)
        modulation = modulation.reshape(batch, 6, -1)
        if routing is None and self.plan is not None:
            routing = PlanRouting(self.plan)
        regions = self._regions(timestep) if routing is not None else []
        for layer, block in enumerate(self.blocks):
            uses = [BinUse(10, None, None)] if routing is None else routing.bins(layer, regions)
            scores = self._score(block, tokens)
            inputs = (tokens, scores, modulation, text, bias, None if forced is None else forced[layer])
            if self.gradient_checkpointing and torch.is_grad_enabled():
                tokens, kept = checkpoint(self._run, block, uses, inputs, use_reentrant=False)
            else:
                tokens, kept = self._run(block, uses, inputs)
            if record is not None:
                record(BlockTrace(layer, scores, _by_sample(kept, uses, tokens), tokens))
        return self._unpatch(tokens, embedded, height, width)

    def _run(self, block: Any, uses: list[BinUse], inputs: _Inputs) -> tuple[Tensor, list[Tensor | None]]:
        """Run one block at every keep ratio in use and mix; also return the kept tokens of each use."""
        mixed: Tensor | None = None
        kept: list[Tensor | None] = []
        for use in uses:
            outcome, indices = self._run_bin(block, use.tenths, *_take(inputs, use.rows))
            kept.append(indices)
            if use.weight is not None:
                outcome = outcome * use.weight.to(outcome.dtype)[:, None, None]
            if use.rows is not None:
                mixed = torch.zeros_like(inputs[0], dtype=outcome.dtype) if mixed is None else mixed
                mixed = mixed.index_add(0, use.rows.to(outcome.device), outcome)
            else:
                mixed = outcome if mixed is None else mixed + outcome
        assert mixed is not None
        return mixed, kept

    def _run_bin(
        self,
        block: Any,
        tenths: int,
        tokens: Tensor,
        scores: Tensor | None,
        modulation: Tensor,
        text: Tensor,
        bias: Tensor | None,
        forced: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Run one block at one keep ratio; kept tokens are None where that is all of them."""
        count = tokens.shape[1]
        kept_count = capacity(tenths, count)
        gates = torch.sigmoid(scores) if scores is not None and self.scoring is Scoring.LEARNED else None
        if kept_count == count or scores is None:
            return run_block(block, tokens, modulation, text, bias, gates), None
        kept = select_tokens(scores, kept_count) if forced is None else forced  # (B, K)
        index = kept.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
        rows = torch.gather(tokens, 1, index)  # (B, K, C)
        gates = None if gates is None else torch.gather(gates, 1, kept)
        outcome = run_block(block, rows, modulation, text, bias, gates)
        return torch.scatter(tokens.to(outcome.dtype), 1, index, outcome), kept

    def _score(self, block: Any, tokens: Tensor) -> Tensor | None:
        """Score every token in float32, (B, N); None in a dense model."""
        if self.plan is None:
            return None
        if self.scoring is Scoring.RANDOM:
            device = "cpu" if self.generator is None else self.generator.device
            scores = torch.rand(tokens.shape[:2], generator=self.generator, device=device)
            return scores.to(tokens.device)
        with torch.autocast(tokens.device.type, enabled=False):
            return nn.functional.linear(tokens.float(), block.router.weight.float()).squeeze(-1)

    def _regions(self, timestep: Tensor) -> list[int]:
        assert self.plan is not None
        return [self.plan.region(value) for value in timestep.tolist()]

    def _unpatch(self, tokens: Tensor, embedded: Tensor, height: int, width: int) -> Tensor:
        """Modulate, project and put the patches back in place: tokens (B, N, C) -> (B, out_channels, H, W)."""
        model, patch = self.transformer, self.spec.patch_size
        shift, scale = (model.scale_shift_table[None] + embedded[:, None]).chunk(2, dim=1)
        tokens = model.proj_out(model.norm_out(tokens) * (1 + scale) + shift)  # (B, N, P * P * out)
        grid = tokens.reshape(-1, height // patch, width // patch, patch, patch, self.spec.out_channels)
        return torch.einsum("nhwpqc->nchpwq", grid).reshape(-1, self.spec.out_channels, height, width)

    def _add_routers(self) -> None:
        for block in self.blocks:
            if not hasattr(block, "router"):
                weight = block.ff.net[2].weight
                block.router = nn.Linear(self.spec.hidden_size, 1, bias=False, device=weight.device, dtype=weight.dtype)
                nn.init.zeros_(block.router.weight)


def run_block(
    block: Any, tokens: Tensor, modulation: Tensor, text: Tensor, bias: Tensor | None, gates: Tensor | None
) -> Tensor:
    """Run one block on the tokens given: self-attention among them, cross-attention to the text, MLP.

    Operation for operation diffusers' BasicTransformerBlock with "ada_norm_single", but for `gates`.

    Args:
        block: BasicTransformerBlock.
        tokens: what the block processes.
        modulation: the timestep's shift, scale and gate of attention, then of the MLP.
        text: projected text states.
        bias: attention bias of the text tokens.
        gates: sigmoid of each token's score; None for no gate.

    Shapes:
        tokens (B, K, C), modulation (B, 6, C), text (B, L, C), bias (B, 1, L), gates (B, K) -> (B, K, C)
    """
    table = block.scale_shift_table[None] + modulation
    shift_attention, scale_attention, gate_attention, shift_mlp, scale_mlp, gate_mlp = table.chunk(6, dim=1)
    normed = block.norm1(tokens) * (1 + scale_attention) + shift_attention
    tokens = gate_attention * block.attn1(normed) + tokens
    # PixArt does not normalise before cross-attention; norm2 belongs to the MLP.
    tokens = block.attn2(tokens, encoder_hidden_states=text, attention_mask=bias) + tokens
    normed = block.norm2(tokens) * (1 + scale_mlp) + shift_mlp
    branch = gate_mlp * block.ff(normed)
    if gates is not None:
        branch = branch * gates.to(branch.dtype).unsqueeze(-1)
    outcome: Tensor = branch + tokens
    return outcome


def select_tokens(scores: Tensor, count: int) -> Tensor:
    """Pick the tokens with the largest scores, ties to the lower index, in ascending order (`moddit.routing.select`).

    Shapes: scores (B, N) -> (B, count) int64
    """
    order = torch.argsort(scores.detach(), dim=-1, descending=True, stable=True)[:, :count]
    return order.sort(dim=-1).values


def _take(inputs: _Inputs, rows: Tensor | None) -> _Inputs:
    """Take some samples of a block's inputs."""
    if rows is None:
        return inputs
    tokens, scores, modulation, text, bias, forced = (
        value if value is None else value[rows.to(value.device)] for value in inputs
    )
    assert tokens is not None
    assert modulation is not None
    assert text is not None
    return tokens, scores, modulation, text, bias, forced


def _by_sample(kept: list[Tensor | None], uses: list[BinUse], tokens: Tensor) -> tuple[Tensor, ...]:
    """Rearrange the kept tokens of each use by sample; None stands for all tokens."""
    everything = torch.arange(tokens.shape[1], device=tokens.device)
    samples: list[Tensor] = [everything] * tokens.shape[0]
    for use, indices in zip(uses, kept, strict=True):
        assert use.weight is None, "a mix of two capacities has no one set of kept tokens"
        rows = range(tokens.shape[0]) if use.rows is None else use.rows.tolist()
        for position, row in enumerate(rows):
            samples[row] = everything if indices is None else indices[position]
    return tuple(samples)
