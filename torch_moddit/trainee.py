"""What a fine-tuning run changes: a routed transformer with its keep ratios, and the optimizers that move it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from moddit.errors import ValueRangeError
from moddit.routing import DENOMINATOR, RoutingPlan
from moddit.tokens import TokenPolicy
from torch_moddit.architectures import dense, routed_class
from torch_moddit.model import Context, RoutedTransformer
from torch_moddit.ratios import KeepRatios, round_to_budget
from torch_moddit.settings import FinetuneConfig, Mode

MakeOptimizers = Callable[[FinetuneConfig, "Trainee"], Sequence[torch.optim.Optimizer]]


class Trainee(nn.Module):
    """What training changes, as one module for Accelerate: the transformer and its keep ratios."""

    def __init__(self, model: RoutedTransformer, ratios: KeepRatios | None) -> None:
        super().__init__()
        self.model = model
        self.ratios = ratios

    def forward(self, latents: Tensor, timestep: Tensor, context: Context) -> Tensor:
        if self.ratios is None:
            return self.model(latents, timestep, context)
        output = self.model(latents, timestep, context, routing=self.ratios.read().bins)
        # frozen ratios stay part of the graph, because distributed training waits for every gradient
        return output + 0.0 * self.ratios.values.sum()

    @property
    def keep_ratio(self) -> float:
        """Mean over layers and regions."""
        return self.model.policy.plan.mean_keep_ratio if self.ratios is None else self.ratios.mean

    def keep_ratio_by_region(self, regions: int) -> list[float]:
        """Give the mean of each region over the layers."""
        plan = self.model.policy.plan
        if self.ratios is not None:
            return self.ratios.region_means()
        if self.model.policy.is_dense:
            return [plan.mean_keep_ratio] * regions
        return [sum(row[region] for row in plan.keep_tenths) / (10 * plan.layers) for region in range(plan.regions)]

    def plan(self) -> RoutingPlan:
        """Make the plan that the model has now: that of its ratios, rounded to what their mean allows."""
        plan = self.model.policy.plan
        if self.ratios is None or self.ratios.is_frozen:
            return plan if self.ratios is None else self.ratios.plan()
        rows = round_to_budget(self.ratios.values.detach().tolist(), min(1.0, self.ratios.mean))
        return RoutingPlan(tuple(map(tuple, rows)), plan.num_train_timesteps)


def make_trainee(config: FinetuneConfig, model: nn.Module, num_train_timesteps: int) -> Trainee:
    """Add what a mode trains to a dense transformer, which it takes over.

    Raises ValueRangeError if the model is already routed in another mode than FIXED, or not routed in it.
    """
    if isinstance(model, RoutedTransformer) != (config.mode is Mode.FIXED):
        raise ValueRangeError(
            f"[finetune] mode {config.mode.value} got a {type(model).__name__}, want a dense transformer of diffusers, "
            "or in mode fixed a RoutedTransformer"
        )
    routed, ratios = _route(config, model, num_train_timesteps)
    routed.gradient_checkpointing = config.gradient_checkpointing
    return Trainee(routed, ratios)


def _route(
    config: FinetuneConfig, model: nn.Module, num_train_timesteps: int
) -> tuple[RoutedTransformer, KeepRatios | None]:
    if isinstance(model, RoutedTransformer):
        return model, None
    if config.mode is Mode.DENSE:
        return dense(model, num_train_timesteps), None
    layers = len(model.transformer_blocks)  # type: ignore[arg-type]
    tenths = DENOMINATOR if config.mode is Mode.LEARNED else config.tenths
    plan = RoutingPlan.uniform(layers, config.regions, tenths, num_train_timesteps)
    policy = TokenPolicy.random(plan) if config.mode is Mode.RANDOM else TokenPolicy.topk(plan)
    ratios = KeepRatios(layers, config.regions, num_train_timesteps) if config.mode is Mode.LEARNED else None
    return routed_class(model).from_dense(model, policy), ratios


def make_adamw(config: FinetuneConfig, trainee: Trainee) -> list[torch.optim.Optimizer]:
    """Make AdamW with rates of their own for transformer and routers; ratios move by `KeepRatios.follow`."""
    routers = trainee.model.router_parameters()
    known = {id(parameter) for parameter in routers}
    weights = [parameter for parameter in trainee.model.parameters() if id(parameter) not in known]
    groups: list[dict[str, Any]] = [
        {"name": "weights", "params": weights, "lr": config.learning_rate, "weight_decay": config.weight_decay}
    ]
    if routers:
        groups.append({"name": "routers", "params": routers, "lr": config.router_rate, "weight_decay": 0.0})
    return [torch.optim.AdamW(groups, betas=(0.9, config.beta2))]
