"""What moves keep ratios: onto the goal by projection, towards it by the paper's loss."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moddit.routing import snap
from torch_moddit import movers
from torch_moddit.movers import Projection, RatioLoss
from torch_moddit.ratios import KeepRatios
from torch_moddit.settings import FinetuneConfig


@given(st.lists(st.floats(-10, 10), min_size=6, max_size=6), st.floats(0.1, 1.0))
def test_steps_end_on_the_goal_and_in_range(gradient: list[float], goal: float) -> None:
    ratios = KeepRatios(3, 2)
    ratios.values.grad = torch.tensor(gradient).view(3, 2)
    Projection(ratios, [goal]).move([goal], 0.1)
    values = ratios.values.detach()
    assert ratios.mean == pytest.approx(goal, abs=1e-5)
    assert 0.1 - 1e-6 <= float(values.min()) <= float(values.max()) <= 1.0


def test_steps_end_on_the_goal_of_each_region() -> None:
    ratios = KeepRatios(3, 2)
    ratios.values.grad = torch.arange(6.0).view(3, 2)
    Projection(ratios, [0.9, 0.4]).move([0.9, 0.4], 0.1)
    assert ratios.region_means() == pytest.approx([0.9, 0.4])
    assert float(ratios.values.detach()[0, 0]) > float(ratios.values.detach()[2, 0])


def test_steps_give_more_to_those_who_gain_more() -> None:
    ratios = KeepRatios(1, 3)
    mover = Projection(ratios, [0.6])
    for _ in range(200):
        # worth of more tokens falls as ratios rise; the second gains most
        ratios.values.grad = -torch.tensor([[1.0, 3.0, 0.5]]) * (1.2 - ratios.values.detach())
        mover.move([0.6], 0.02)
    values = ratios.values.detach()[0]
    worth = torch.tensor([1.0, 3.0, 0.5]) * (1.2 - values)
    assert float(values[1]) > float(values[0]) > float(values[2])
    # at rest the worth of more tokens is the same wherever a ratio is free to move
    assert float(worth[0]) == pytest.approx(float(worth[2]), rel=0.1)


def test_broken_gradients_move_nothing_but_the_mean() -> None:
    ratios = KeepRatios(1, 2)
    ratios.move_to(torch.tensor([[0.5, 0.7]]))
    ratios.values.grad = torch.tensor([[float("nan"), 1.0]])
    Projection(ratios, [0.6]).move([0.6], 0.1)
    torch.testing.assert_close(ratios.values.detach(), torch.tensor([[0.5, 0.7]]))


def learn(worth: torch.Tensor, config: FinetuneConfig, regions: int = 1) -> RatioLoss:
    """Learn ratios whose tokens are worth so much each, less the more are kept."""
    ratios = KeepRatios(len(worth), regions)
    mover = RatioLoss(ratios, config.targets, config.ratio_loss)
    for step in range(config.freeze_step):
        ratios.values.grad = -worth[:, None] * (1.2 - ratios.values.detach())
        mover.move(config.goals(step + 1), config.ratio_rate_at(step))
    return mover


WORTH = torch.logspace(-2, 0, 12)


@pytest.mark.parametrize("steps", [60, 400, 2000])
@pytest.mark.parametrize("size", [1e-4, 0.1])
@pytest.mark.parametrize("target", [0.5, 0.8])
def test_the_ratio_loss_reaches_its_target(steps: int, size: float, target: float) -> None:
    config = FinetuneConfig(Path("out"), steps=steps, target=target, ratio_loss=0.3)
    mover = learn(size * WORTH, config)
    assert mover.ratios.mean == pytest.approx(target, abs=0.02)
    values = mover.ratios.values.detach().flatten().tolist()
    assert values == sorted(values)
    assert values[-1] - values[0] > (0.3 if steps > 60 else 0)


def test_the_ratio_loss_of_a_constant_coefficient_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movers, "GROWTH", 0.0)
    config = FinetuneConfig(Path("out"), steps=2000, target=0.5, ratio_loss=0.3)
    assert learn(WORTH, config).ratios.mean > 0.7


def test_the_coefficient_is_raised_only_where_it_is_needed() -> None:
    config = FinetuneConfig(Path("out"), steps=2000, target=0.8, ratio_loss=0.3)
    assert learn(1e-5 * WORTH, config).coefficients.tolist() == pytest.approx([0.3])
    assert float(learn(0.1 * WORTH, config).coefficients) > 1


def test_the_ratio_loss_of_each_region() -> None:
    config = FinetuneConfig(Path("out"), steps=400, target=(0.9, 0.5), regions=2, ratio_loss=0.3)
    assert learn(0.1 * WORTH, config, regions=2).ratios.region_means() == pytest.approx([0.9, 0.5], abs=0.02)


def test_the_gradient_is_that_of_the_loss() -> None:
    """Adam sees what autograd gives of both losses."""
    seen = []
    for goals in ([0.5], [0.5, 0.9]):
        ratios = KeepRatios(3, 2)
        mover = RatioLoss(ratios, goals, 7.0)
        ratios.values.grad = 4 * torch.arange(6.0).view(3, 2)
        mover.move(goals, 0.0, loss_scale=4.0)
        assert ratios.values.grad is not None
        seen.append(ratios.values.grad.clone())
    table = torch.ones(3, 2, requires_grad=True)
    task = (torch.arange(6.0).view(3, 2) * table).sum()
    (whole,) = torch.autograd.grad(task + 7 * (table.mean() - 0.5) ** 2, table)
    torch.testing.assert_close(seen[0], whole)
    task = (torch.arange(6.0).view(3, 2) * table).sum()
    losses = (table.mean(dim=0) - torch.tensor([0.5, 0.9])) ** 2
    (by_region,) = torch.autograd.grad(task + 7 * losses.mean(), table)
    torch.testing.assert_close(seen[1], by_region)


@given(st.lists(st.floats(0.1, 1.0), min_size=6, max_size=6))
def test_the_ratio_loss_freezes_each_ratio_at_its_nearest_bin(values: list[float]) -> None:
    ratios = KeepRatios(3, 2)
    ratios.move_to(torch.tensor(values).view(3, 2))
    nearest = [[snap(value) for value in row] for row in ratios.values.detach().tolist()]
    RatioLoss(ratios, [0.5], 0.3).freeze()
    assert ratios.frozen.tolist() == nearest
    assert [[snap(value) for value in row] for row in ratios.values.detach().tolist()] == nearest


def test_the_ratio_loss_goes_on_after_broken_gradients() -> None:
    ratios = KeepRatios(1, 2)
    ratios.values.grad = torch.tensor([[float("nan"), 1.0]])
    RatioLoss(ratios, [0.9], 0.3).move([0.9], 0.01)
    torch.testing.assert_close(ratios.values.detach(), torch.tensor([[0.99, 0.99]]))
