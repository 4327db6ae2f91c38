"""What moves the keep ratios in training: each step along the loss's gradient, and their mean to its target.

`Projection` meets the target exactly and always, instead of through a weighted loss (mean - target)^2. Under any
constant weight the mean settles above the target, where the loss's push equals what more tokens are worth; and a
weight that is raised until the mean obeys drowns the differences between ratios in Adam's normalised steps. Here each
step moves the ratios along the diffusion loss's gradient, then adds one number to all of them, within [0.1, 1], so
that their mean is the step's goal. That number is the multiplier of the constrained problem: at rest, every ratio that
is not at an end has the same marginal worth. The goal falls from 1 to the target over part of the training. At the end
ratios are rounded to bins, as many tenths in all as the target allows and none above, so the plan's mean is at most
the target and within one tenth of one ratio of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor

from torch_moddit.ratios import KeepRatios
from torch_moddit.targets import project, round_to_budget

MEMORY: Final = 0.9  # of the average gradient
OUTLIER: Final = 5.0  # mean gradient sizes


class Projection:
    """Moves ratios along the gradient, then projects them onto the goal.

    The gradient is divided by its mean size over all ratios, never per ratio as Adam does, because the differences in
    size are what tells layers and regions apart; outliers, which the kinks at the bins cause, are cut.
    """

    def __init__(self, ratios: KeepRatios) -> None:
        self.ratios = ratios
        # average gradient and its average size; one memory for both, so that neither needs a correction at the start
        self.momentum = torch.zeros_like(ratios.values)
        self.size = torch.zeros((), device=ratios.values.device)

    @torch.no_grad()
    def move(self, goals: Sequence[float], rate: float, *, loss_scale: float = 1.0) -> None:
        """Take one step.

        Args:
            goals: mean keep ratio after the step, one or one for each region.
            rate: change of a ratio whose gradient has the mean size, before the projection.
            loss_scale: that the gradient was multiplied with (fp16).
        """
        values = self.ratios.values.detach()
        if (gradient := _read_gradient(self.ratios, loss_scale)) is not None:
            self.momentum.lerp_(gradient, 1 - MEMORY)
            self.size.lerp_(gradient.abs().mean(), 1 - MEMORY)
        if float(self.size) > 0:
            values = values - rate * (self.momentum / self.size).clamp(-OUTLIER, OUTLIER)
        self.ratios.move_to(torch.tensor(project(values.tolist(), goals)))

    def freeze(self, targets: Sequence[float]) -> None:
        """End the learning of ratios: round them to bins whose mean is at most the target, and as near to it as can be.

        Args:
            targets: mean keep ratio, one or one for each region.
        """
        self.ratios.freeze(round_to_budget(self.ratios.values.detach().tolist(), targets))

    def state_dict(self) -> dict[str, Tensor]:
        return {"momentum": self.momentum, "size": self.size}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.momentum.copy_(state["momentum"])
        self.size.copy_(state["size"])


def _read_gradient(ratios: KeepRatios, loss_scale: float) -> Tensor | None:
    """Read the gradient of the loss by the ratios; None where it is not finite, as fp16 makes it."""
    gradient = ratios.values.grad
    return None if gradient is None or not bool(torch.isfinite(gradient).all()) else gradient / loss_scale
