"""What moves the keep ratios in training: each step along the loss's gradient, and their mean to its target.

The mean has a goal at each step, which falls from 1 to the target over part of the training. Choices where the paper is
silent, or does not reach its target in runs that one person can pay:
- `Projection`, the default, meets the goal exactly and always. Each step moves the ratios along the diffusion loss's
  gradient, then adds one number to all of them, within [0.1, 1], so that their mean is the goal. That number is the
  multiplier of the constrained problem: at rest, every ratio that is not at an end has the same marginal worth. At the
  end ratios are rounded to bins, as many tenths in all as the target allows and none above, so the plan's mean is at
  most the target and within one tenth of one ratio of it.
- `RatioLoss` is the paper's: coefficient * (mean - target)^2 is added to the loss, Adam moves the ratios, and at the
  end each snaps to its nearest bin. Under a constant coefficient the mean settles above the target, where the loss's
  push equals what more tokens are worth. So here the coefficient is the least, and is raised while the mean lies above
  its goal and lowered again below it: where the paper's is enough, nothing is added to it.

Source: DiffCR (arXiv 2412.16822), section 3.2, for the ratio loss; raising the coefficient until a constraint holds is
the quadratic penalty method (Nocedal and Wright, Numerical Optimization, chapter 17).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from moddit.routing import RoutingPlan
from torch_moddit.ratios import KeepRatios
from torch_moddit.targets import project, round_to_budget

NEAR: Final = 1e-6  # by which a mean of float32 ratios may lie below what it was projected onto
MEMORY: Final = 0.9  # of the average gradient
OUTLIER: Final = 5.0  # mean gradient sizes
SLACK: Final = 0.005  # by which the mean may lie above its goal before the ratio loss is weighted more
# Logarithm of the largest change of the ratio loss's coefficient while a ratio goes from 0 to 1: in the whole of a run
# it may grow a few thousandfold. With twice as much the mean began to swing in runs of 60 steps (simulated).
GROWTH: Final = 6.0
BETAS: Final = (0.9, 0.99)  # of Adam: a short memory of sizes, since the coefficient grows


class Mover(Protocol):
    """A way in which keep ratios learn; goals and targets of their mean are one, or one for each region."""

    ratios: KeepRatios

    def move(self, goals: Sequence[float], rate: float, *, loss_scale: float = 1.0) -> None:
        """Take one step.

        Args:
            goals: mean keep ratio that is wanted after the step.
            rate: change of a ratio whose gradient has the usual size.
            loss_scale: that the gradient was multiplied with (fp16).
        """

    def plan(self) -> RoutingPlan:
        """Make the plan that the ratios would be rounded to if their learning ended now."""

    def freeze(self) -> None:
        """End the learning of ratios: from now on they are bins, whose mean is to be the target."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


def make_mover(ratios: KeepRatios, targets: Sequence[float], coefficient: float) -> Mover:
    """Make what moves ratios: `RatioLoss` with its least coefficient, or `Projection` if that is 0."""
    return RatioLoss(ratios, targets, coefficient) if coefficient > 0 else Projection(ratios, targets)


class Projection:
    """Moves ratios along the gradient, then projects them onto the goal.

    The gradient is divided by its mean size over all ratios, never per ratio as Adam does, because the differences in
    size are what tells layers and regions apart; outliers, which the kinks at the bins cause, are cut.
    """

    def __init__(self, ratios: KeepRatios, targets: Sequence[float]) -> None:
        self.ratios = ratios
        self.targets = targets
        # average gradient and its average size; one memory for both, so that neither needs a correction at the start
        self.momentum = torch.zeros_like(ratios.values)
        self.size = torch.zeros((), device=ratios.values.device)

    @torch.no_grad()
    def move(self, goals: Sequence[float], rate: float, *, loss_scale: float = 1.0) -> None:
        values = self.ratios.values.detach()
        if (gradient := _read_gradient(self.ratios, loss_scale)) is not None:
            self.momentum.lerp_(gradient, 1 - MEMORY)
            self.size.lerp_(gradient.abs().mean(), 1 - MEMORY)
        if float(self.size) > 0:
            values = values - rate * (self.momentum / self.size).clamp(-OUTLIER, OUTLIER)
        self.ratios.move_to(torch.tensor(project(values.tolist(), goals)))

    def plan(self) -> RoutingPlan:
        means = self.ratios.region_means() if len(self.targets) > 1 else [self.ratios.mean]
        rows = round_to_budget(self.ratios.values.detach().tolist(), [min(1.0, mean + NEAR) for mean in means])
        return RoutingPlan(tuple(map(tuple, rows)), self.ratios.num_train_timesteps)

    def freeze(self) -> None:
        self.ratios.freeze(round_to_budget(self.ratios.values.detach().tolist(), self.targets))

    def state_dict(self) -> dict[str, Tensor]:
        return {"momentum": self.momentum, "size": self.size}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.momentum.copy_(state["momentum"])
        self.size.copy_(state["size"])


class RatioLoss:
    """Moves ratios with Adam along the gradient of loss + coefficient * (mean - goal)^2, clamped to 0.1..1.

    With a goal for each region the second loss is the mean of theirs. Its gradient, which is known, is added here.
    """

    def __init__(self, ratios: KeepRatios, targets: Sequence[float], coefficient: float) -> None:
        self.ratios = ratios
        self.least = coefficient
        self.coefficients = torch.full((len(targets),), coefficient, device=ratios.values.device)
        self.adam = torch.optim.Adam([ratios.values], betas=BETAS)

    @torch.no_grad()
    def move(self, goals: Sequence[float], rate: float, *, loss_scale: float = 1.0) -> None:
        values = self.ratios.values
        means = values.mean(dim=0) if len(goals) > 1 else values.mean().view(1)
        excess = means - torch.tensor(goals, device=values.device)
        gradient = _read_gradient(self.ratios, loss_scale)
        push = 2 * self.coefficients * excess / values.numel()
        values.grad = (torch.zeros_like(values) if gradient is None else gradient) + push
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.step()
        self.ratios.move_to(values)
        change = rate * GROWTH * (excess / SLACK - 1).clamp(-1, 1)
        self.coefficients.mul_(change.exp()).clamp_(min=self.least)

    def plan(self) -> RoutingPlan:
        return self.ratios.plan()

    def freeze(self) -> None:
        self.ratios.freeze(self.plan().keep_tenths)

    def state_dict(self) -> dict[str, Any]:
        return {"coefficients": self.coefficients, "adam": self.adam.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.coefficients.copy_(state["coefficients"])
        self.adam.load_state_dict(state["adam"])


def _read_gradient(ratios: KeepRatios, loss_scale: float) -> Tensor | None:
    """Read the gradient of the loss by the ratios; None where it is not finite, as fp16 makes it."""
    gradient = ratios.values.grad
    return None if gradient is None or not bool(torch.isfinite(gradient).all()) else gradient / loss_scale
