"""Fine-tuning reaches the target and trains every mode."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import DistributedType

from moddit.errors import (
    MissingError,
    UnsupportedError,
    ValueRangeError,
)
from moddit.routing import RoutingPlan, snap
from moddit.tokens import TokenPolicy
from tests import tiny
from tests.torch_moddit.training import NULL, Latents, configure, read_log, schedule, train
from torch_moddit.finetune import Mode, finetune
from torch_moddit.noising import draw_stratified, make_generators
from torch_moddit.pixart import RoutedPixArt
from torch_moddit.trainee import make_trainee

HALF = RoutingPlan.uniform(3, 4, 5)


@pytest.mark.parametrize("target", [0.3, 0.5, 0.75])
def test_reaches_the_target_and_not_a_point_above(tmp_path: Path, target: float) -> None:
    result = train(configure(tmp_path, target=target))
    plan = result.model.policy.plan
    assert target - 0.1 / 12 < plan.mean_keep_ratio <= target + 1e-9
    assert result.is_finished
    log = read_log(result)
    assert [row["step"] for row in log] == [2, 4, 6, 8]
    assert log[0]["keep_ratio"] > log[1]["keep_ratio"]
    assert log[-1]["keep_ratio"] == pytest.approx(plan.mean_keep_ratio)
    assert len(log[-1]["keep_ratio_by_region"]) == len(log[-1]["diffusion_loss_by_region"]) == 4


def test_reaches_the_target_of_each_region(tmp_path: Path) -> None:
    targets = (0.9, 0.8, 0.6, 0.5)
    result = train(configure(tmp_path, target=targets))
    plan = result.model.policy.plan
    for region, target in enumerate(targets):
        assert target - 0.1 / 3 < sum(plan.row(region)) / 30 <= target + 1e-9
    log = read_log(result)
    fallen = 2 / 3  # of the way in the first row: the means fall in three of eight steps
    assert log[0]["keep_ratio_by_region"] == pytest.approx([1 - fallen * (1 - target) for target in targets])
    assert log[-1]["keep_ratio"] == pytest.approx(plan.mean_keep_ratio)


@pytest.mark.parametrize("freeze_share", [0.6, 1.0])
def test_the_ratio_loss_saves_what_its_ratios_snap_to(
    tmp_path: Path, freeze_share: float, caplog: pytest.LogCaptureFixture
) -> None:
    result = train(configure(tmp_path, ratio_loss=0.3, ratio_rate=0.1, target=0.4, freeze_share=freeze_share))
    plan = result.model.policy.plan
    assert result.keep_ratio is not None
    assert plan.keep_tenths == tuple(tuple(map(snap, row)) for row in result.keep_ratio.tolist())
    assert read_log(result)[-1]["keep_ratio"] == pytest.approx(plan.mean_keep_ratio, abs=0.05)
    # eight steps are too few: what was reached is told
    assert f"led to a mean keep ratio of {plan.mean_keep_ratio:.3g}, where the target is 0.4" in caplog.text


def test_a_model_that_is_split_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.Accelerator.distributed_type", DistributedType.FSDP)
    with pytest.raises(UnsupportedError, match="FSDP splits the model"):
        train(configure(tmp_path))


def test_what_accelerate_launch_says_of_fsdp_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, Accelerate would end with a traceback."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")  # --use_fsdp
    with pytest.raises(UnsupportedError, match="FSDP splits the model"):
        train(configure(tmp_path))


def test_starts_at_the_dense_model(tmp_path: Path) -> None:
    config = configure(tmp_path, steps=100, learning_rate=0.0, router_rate=0.0, ratio_rate=0.0, log_every=1)
    result = train(config, stop_after=1)
    assert read_log(result)[0]["distill_loss"] < 1e-10


def test_the_loss_falls(tmp_path: Path) -> None:
    result = train(configure(tmp_path, steps=40, batch_size=8, log_every=10, save_every=40))
    log = read_log(result)
    assert log[-1]["diffusion_loss"] < log[0]["diffusion_loss"]


@pytest.mark.parametrize("mode", [Mode.UNIFORM, Mode.RANDOM, Mode.DENSE])
def test_controls(tmp_path: Path, mode: Mode) -> None:
    result = train(configure(tmp_path, mode=mode))
    routers = [name for name in result.model.state_dict() if "router" in name]
    assert len(routers) == (3 if mode is Mode.UNIFORM else 0)
    policies = {Mode.DENSE: TokenPolicy.dense(3, 1000), Mode.RANDOM: TokenPolicy.random(HALF)}
    assert result.model.policy == policies.get(mode, TokenPolicy.topk(HALF))
    assert result.keep_ratio is None
    assert read_log(result)[-1]["keep_ratio"] == (1.0 if mode is Mode.DENSE else 0.5)
    if mode is not Mode.DENSE:  # a target for each region is one capacity for all layers in each
        result = train(configure(tmp_path / "regions", mode=mode, target=(0.8, 0.4), regions=2, steps=2))
        assert result.model.policy.plan == RoutingPlan(((8, 4),) * 3)
    if mode is Mode.UNIFORM:
        weights = [parameter for parameter in result.model.router_parameters() if bool((parameter != 0).any())]
        assert len(weights) == 3


def test_a_routed_model_trains_on_under_its_plan(tmp_path: Path) -> None:
    plan = RoutingPlan(((10, 5), (3, 2), (7, 7)))
    model = RoutedPixArt.from_dense(tiny.make_transformer(), TokenPolicy.topk(plan))
    before = copy.deepcopy(model.state_dict())
    config = configure(tmp_path, mode=Mode.FIXED, regions=2)
    result = finetune(config, model, Latents(), schedule(), null=NULL)
    assert result.model.policy.plan == plan
    assert any(not torch.equal(value, before[name]) for name, value in result.model.state_dict().items())
    with pytest.raises(ValueRangeError, match="mode learned got a RoutedPixArt"):
        finetune(configure(tmp_path / "x"), model, Latents(), schedule(), null=NULL)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_loss_is_the_distance_to_what_the_schedule_predicts(tmp_path: Path, prediction_type: str) -> None:
    timestep = 400

    class One(Latents):
        def __len__(self) -> int:
            return 1

    config = configure(
        tmp_path, mode=Mode.DENSE, steps=1, batch_size=1, distill_weight=0.0, caption_dropout=0.0, log_every=1
    )
    transformer = tiny.make_transformer()
    reference = copy.deepcopy(transformer)
    result = finetune(
        config,
        transformer,
        One(),
        schedule(prediction_type=prediction_type),
        draw_timesteps=lambda count, _: torch.full((count,), timestep),
        null=NULL,
    )
    item = One()[0]
    scheduler = tiny.make_scheduler("ddim", prediction_type=prediction_type)
    times = torch.tensor([timestep])
    (generator,) = make_generators(config.seed, 0, 0, 1)
    torch.rand((), generator=generator)  # whether its caption is dropped
    clean, noise = item["latents"][None], torch.randn(1, 4, 8, 8, generator=generator)
    with torch.no_grad():
        output = reference(
            scheduler.add_noise(clean, noise, times),
            encoder_hidden_states=item["text"][None],
            timestep=times,
            encoder_attention_mask=item["mask"][None],
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        ).sample[:, :4]
    wanted = noise if prediction_type == "epsilon" else scheduler.get_velocity(clean, noise, times)
    assert read_log(result)[0]["diffusion_loss"] == pytest.approx(float((output - wanted).square().mean()), rel=1e-4)


def test_drawn_timesteps_cover_the_range() -> None:
    drawn = draw_stratified(10, torch.Generator().manual_seed(0), num_train_timesteps=1000)
    assert sorted((drawn // 100).tolist()) == list(range(10))


@pytest.mark.parametrize("mode", Mode)
def test_gradient_checkpointing_is_for_every_mode(tmp_path: Path, mode: Mode) -> None:
    model = RoutedPixArt.from_dense(tiny.make_transformer(), TokenPolicy.topk(HALF))
    start = model if mode is Mode.FIXED else tiny.make_transformer()
    config = configure(tmp_path, mode=mode, gradient_checkpointing=True)
    assert make_trainee(config, start, 1000).model.gradient_checkpointing


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": 0.05}, "target"),
        ({"steps": 0}, "steps"),
        ({"caption_dropout": 1.5}, "caption_dropout"),
        ({"accumulation": 100_001}, r"accumulation out of range, got 100001, want 1\.\.4096"),
        ({"workers": 10**6}, "workers"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"seed": 2**64}, "seed"),
        ({"schedule_steps": 9}, r"schedule_steps out of range, got 9, want 1\.\.8"),
        ({"lr_scheduler": "step"}, "lr_scheduler is 'step', want one of warmup_stable_decay, constant"),
        ({"mode": Mode.UNIFORM, "target": 0.45}, "whole tenths"),
        ({"target": (0.5, 0.6)}, "target has 2 numbers, want one, or one for each of 4 regions"),
        ({"target": ()}, "target has 0 numbers"),
        ({"fall_share": 0.7}, "fall_share 0.7 is more than freeze_share 0.6"),
        ({"target": (0.5, 0.6, 0.7, 1.2)}, "target keep ratio out of range, got 1.2"),
    ],
)
def test_refuses_configurations_that_cannot_be(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueRangeError, match=message):
        configure(tmp_path, **changes)


def test_the_largest_seed(tmp_path: Path) -> None:
    assert train(configure(tmp_path, steps=2, seed=2**64 - 1)).is_finished


def test_asks_for_what_the_data_needs(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="null"):
        finetune(configure(tmp_path), tiny.make_transformer(), Latents(), schedule())
