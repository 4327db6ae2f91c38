"""Learning rates over the steps of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.optimization import get_scheduler

from moddit.errors import ValueRangeError
from tests.torch_moddit.training import REPEATED, configure, difference, read_log, train
from torch_moddit.rates import make_rate_factor
from torch_moddit.settings import RATE_SCHEDULES

OTHERS = RATE_SCHEDULES[1:]


def test_rates_rise_stay_and_fall(tmp_path: Path) -> None:
    factor = make_rate_factor(configure(tmp_path, steps=100, warmup=10, flat_share=0.5, floor=0.1))
    assert [factor(step) for step in (0, 9, 30)] == pytest.approx([0.1, 1.0, 1.0])
    assert factor(75) == pytest.approx(0.55)
    assert factor(99) == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("name", OTHERS)
def test_after_the_warm_up_they_are_those_of_diffusers(tmp_path: Path, name: str) -> None:
    config = configure(tmp_path, steps=40, warmup=10, lr_scheduler=name, lr_cycles=3, lr_power=2.0)
    factor = make_rate_factor(config)
    optimizer: Any = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=10, num_training_steps=40, num_cycles=3, power=2.0)
    for step in range(40):
        if step >= 10:
            assert factor(step) == pytest.approx(scheduler.get_last_lr()[0])
        else:
            assert factor(step) == (1.0 if name == "constant" else (step + 1) / 10)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("name", ["linear", "cosine_with_restarts"])
def test_a_run_resumes_where_its_rates_were(tmp_path: Path, name: str) -> None:
    config = configure(tmp_path / "whole", lr_scheduler=name, lr_cycles=2, log_every=1)
    whole = train(config)
    parts = replace(config, output=tmp_path / "parts")
    train(parts, stop_after=5)
    resumed = train(parts)
    assert difference(resumed, whole) <= REPEATED
    rates = [[row["learning_rate"] for row in read_log(run)] for run in (whole, resumed)]
    assert rates[0] == rates[1]
    assert len(set(rates[0][2:])) >= 3
    with pytest.raises(ValueRangeError, match=rf"another lr_scheduler \(was '{name}', is 'constant'\)"):
        train(replace(parts, lr_scheduler="constant"))


@pytest.mark.parametrize("name", RATE_SCHEDULES)
def test_a_run_is_not_made_longer_where_nothing_would_be_learned(tmp_path: Path, name: str) -> None:
    config = configure(tmp_path, lr_scheduler=name, steps=20, schedule_steps=8)
    if name in ("linear", "cosine", "cosine_with_restarts", "polynomial"):
        with pytest.raises(ValueRangeError, match=f"after step 8, where {name} ends, rates are 0"):
            make_rate_factor(config)
    else:
        factor = make_rate_factor(config)
        assert factor(8) == factor(19) > 0
