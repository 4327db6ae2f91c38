"""Routed transformers, over diffusers' own modules; their blocks are written once, for training and inference.

A block scores every token with one linear layer, keeps the `capacity` tokens with the largest scores, runs whole on
them and leaves the others unchanged. sigmoid(score) multiplies the output of the MLP branch, after its adaLN gate and
before the residual sum: that is what teaches the router. During training a block runs at two capacities and mixes the
outcomes, which teaches the keep ratio (`torch_moddit.ratios`).

A routed model starts equal to the dense one: routers start at zero, where sigmoid gives 1/2 exactly, and `from_dense`
doubles the MLP's last layer. Both are exact in binary arithmetic.

Source: DiffCR (arXiv 2412.16822), section 3.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from moddit.cache import FirstBlockCache
from moddit.errors import MissingError, ShapeError
from moddit.models.transformer import TransformerSpec
from moddit.routing import capacity
from moddit.tokens import TokenPolicy
from torch_moddit.tokens import SCORERS, BinUse, Routing, Scorer, follow_plan, keep

Context = Mapping[str, Tensor]  # what the samples are conditioned on, by name, the batch first
# What of a sample of a dataset a model is conditioned on, with its name in the context.
CONTEXT: Final = {
    "text": "text",
    "mask": "text_mask",
    "labels": "labels",
    "resolution": "resolution",
    "aspect_ratio": "aspect_ratio",
}
OPTIONAL: Final = "text_mask"  # where there is no padding
Told = Mapping[str, Tensor]  # what every block takes beside the tokens, by name, the batch first


@dataclass(frozen=True)
class BlockTrace:
    """What one block did, handed to `on_block` (plans only, not the mixing of training)."""

    layer: int
    scores: Tensor | None  # (B, N) float32; None where nothing is ranked
    kept: tuple[Tensor, ...]  # kept token indices of each sample, ascending, (K,)
    output: Tensor  # (B, N, C)


OnBlock = Callable[[BlockTrace], None]


class RoutedTransformer(nn.Module, ABC):
    """A transformer whose blocks process the tokens that a policy says; an architecture is a subclass.

    Owns `transformer`, a module of diffusers, taken over and not copied, with one extra module `router` in each block
    where the policy has routers, unless it is there, so that ``transformer.state_dict()`` carries the canonical names.

    Raises UnsupportedError if its configuration is not implemented, ShapeError if the plan has another number of
    layers.
    """

    SPEC: ClassVar[type[TransformerSpec]]
    transformer: Any
    policy: TokenPolicy

    def __init__(self, transformer: nn.Module, policy: TokenPolicy) -> None:
        super().__init__()
        self.transformer = transformer
        config = {"_class_name": type(transformer).__name__, **self.transformer.config}
        self.spec = self.SPEC.from_diffusers(config, "transformer")
        self.policy = policy
        self.generator: torch.Generator | None = None  # of random scores; None for PyTorch's own
        self.gradient_checkpointing = False
        if policy.plan.layers != self.spec.num_layers:
            raise ShapeError(f"[model] plan has {policy.plan.layers} layers, the transformer {self.spec.num_layers}")
        if policy.has_routers:
            self._add_routers()

    @classmethod
    def from_dense(cls, transformer: nn.Module, policy: TokenPolicy) -> Self:
        """Turn a trained dense transformer into a routed one that, while every token is kept, computes the same.

        Routers start at zero; the MLP's last layer is doubled in place, against sigmoid(0) = 1/2.
        """
        model = cls(transformer, policy)
        if policy.has_routers:
            with torch.no_grad():
                for block in model.blocks:
                    block.ff.net[2].weight.mul_(2)
                    block.ff.net[2].bias.mul_(2)
        return model

    @classmethod
    @abstractmethod
    def make(cls, spec: Any) -> Any:
        """Make the dense module of diffusers with these dimensions and random weights."""

    @abstractmethod
    def tell(self, timestep: Tensor, context: Context, dtype: torch.dtype) -> dict[str, Tensor]:
        """Compute what every block and the output take beside the tokens, which have this dtype."""

    @abstractmethod
    def run_block(self, block: Any, tokens: Tensor, told: Told, gates: Tensor | None) -> Tensor:
        """Run one block on the tokens given, operation for operation as diffusers, but for `gates` of the MLP branch.

        Shapes:
            tokens (B, K, C), gates (B, K) -> (B, K, C)
        """

    @abstractmethod
    def project(self, tokens: Tensor, told: Told) -> Tensor:
        """Modulate and project. Shapes: tokens (B, N, C) -> (B, N, P * P * out_channels)."""

    @property
    def blocks(self) -> Sequence[Any]:
        blocks: Sequence[Any] = self.transformer.transformer_blocks
        return blocks

    def router_parameters(self) -> list[nn.Parameter]:
        """List the routers' weights, each (1, C)."""
        return [block.router.weight for block in self.blocks] if self.policy.has_routers else []

    def forward(
        self,
        latents: Tensor,
        timestep: Tensor,
        context: Context,
        *,
        routing: Routing | None = None,
        score: Scorer | None = None,
        on_block: OnBlock | None = None,
        forced: Sequence[Tensor] | None = None,
        cache: FirstBlockCache[Tensor] | None = None,
    ) -> Tensor:
        """Predict noise or velocity.

        Args:
            latents: noisy latents; sides are multiples of the patch size.
            timestep: of each sample, in 0..num_train_timesteps - 1.
            context: what the samples are conditioned on, as the architecture takes it.
            routing: replaces the plan (training).
            score: replaces the policy's way to score tokens (training).
            on_block: called after each block.
            forced: indices to keep instead of the ranking's, one tensor a layer (parity reports).
            cache: of the picture, which may leave out the blocks behind the first.

        Shapes:
            latents (B, in_channels, H, W), timestep (B,) -> (B, out_channels, H, W); forced[layer] (B, K)

        Raises:
            MissingError: the context lacks something.
            ShapeError: the latents are not made of whole patches.
        """
        _, _, height, width = latents.shape
        self.spec.tokens(height, width)
        missing = sorted({CONTEXT[name] for name in self.spec.sample_shapes()} - context.keys() - {OPTIONAL})
        if missing:
            raise MissingError(f"[model] the context has {sorted(context)}, but no {' and no '.join(missing)}")
        tokens = self.transformer.pos_embed(latents)  # (B, N, C)
        told = self.tell(timestep, context, tokens.dtype)
        plan = self.policy.plan
        routing, score = routing or follow_plan(plan), score or SCORERS[self.policy.name]
        regions = [plan.region(value) for value in timestep.tolist()] if plan.regions > 1 else [0] * len(timestep)

        def run(tokens: Tensor, layers: range) -> Tensor:
            for layer in layers:
                block, uses = self.blocks[layer], routing(layer, regions)
                scores, gates = score(block, tokens, self.generator)
                chosen = None if forced is None else forced[layer]
                inputs = _present(told, tokens=tokens, scores=scores, gates=gates, forced=chosen)
                if self.gradient_checkpointing and torch.is_grad_enabled():
                    tokens, kept = checkpoint(self._run, block, uses, inputs, use_reentrant=False)
                else:
                    tokens, kept = self._run(block, uses, inputs)
                if on_block is not None:
                    on_block(BlockTrace(layer, scores, _by_sample(kept, uses, tokens), tokens))
            return tokens

        first = run(tokens, range(1))
        behind = range(1, len(self.blocks))
        tokens = run(first, behind) if cache is None else cache.run(tokens, first, lambda x: run(x, behind))
        return self._unpatch(self.project(tokens, told), height, width)

    def _run(self, block: Any, uses: list[BinUse], inputs: Told) -> tuple[Tensor, list[Tensor | None]]:
        """Run one block at every keep ratio in use and mix; also return the kept tokens of each use."""
        mixed: Tensor | None = None
        kept: list[Tensor | None] = []
        for use in uses:
            outcome, indices = self._run_bin(block, use.tenths, _take(inputs, use.rows))
            dtype = outcome.dtype
            kept.append(indices)
            if use.weight is not None:
                outcome = outcome * use.weight[:, None, None]  # in float32: in 16 bits shares add up to less or more
            if use.rows is not None:
                mixed = torch.zeros_like(inputs["tokens"], dtype=outcome.dtype) if mixed is None else mixed
                mixed = mixed.index_add(0, use.rows.to(outcome.device), outcome)
            else:
                mixed = outcome if mixed is None else mixed + outcome
        assert mixed is not None
        return mixed.to(dtype), kept

    def _run_bin(self, block: Any, tenths: int, inputs: Told) -> tuple[Tensor, Tensor | None]:
        """Run one block at one keep ratio; kept tokens are None where that is all of them."""
        tokens = inputs["tokens"]
        scores, gates, forced = (inputs.get(name) for name in ("scores", "gates", "forced"))
        kept = keep(tokens, scores, gates, capacity(tenths, tokens.shape[1]), forced)
        return kept.put_back(self.run_block(block, kept.tokens, inputs, kept.gates)), kept.indices

    def _unpatch(self, patches: Tensor, height: int, width: int) -> Tensor:
        """Put the patches in their places: (B, N, P * P * out_channels) -> (B, out_channels, H, W)."""
        patch, channels = self.spec.patch_size, self.spec.out_channels
        grid = patches.reshape(-1, height // patch, width // patch, patch, patch, channels)
        return torch.einsum("nhwpqc->nchpwq", grid).reshape(-1, channels, height, width)

    def _add_routers(self) -> None:
        for block in self.blocks:
            if not hasattr(block, "router"):
                weight = block.ff.net[2].weight
                block.router = nn.Linear(self.spec.hidden_size, 1, bias=False, device=weight.device, dtype=weight.dtype)
                nn.init.zeros_(block.router.weight)


def gate_branch(branch: Tensor, gates: Tensor | None) -> Tensor:
    """Multiply the MLP branch by the gate of each token. Shapes: branch (B, K, C), gates (B, K) -> (B, K, C)."""
    return branch if gates is None else branch * gates.to(branch.dtype).unsqueeze(-1)


def _present(told: Told, **more: Tensor | None) -> dict[str, Tensor]:
    """Join what is there."""
    return {**told, **{name: value for name, value in more.items() if value is not None}}


def _take(inputs: Told, rows: Tensor | None) -> Told:
    """Take some samples of a block's inputs."""
    if rows is None:
        return inputs
    return {name: value[rows.to(value.device)] for name, value in inputs.items()}


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
