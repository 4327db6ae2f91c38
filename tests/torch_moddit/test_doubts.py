"""What is poor about a run is said, in one line each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moddit.routing import RoutingPlan
from tests.torch_moddit.training import configure, train
from torch_moddit.doubts import doubts_of_plan, doubts_of_run
from torch_moddit.settings import Mode


@pytest.mark.parametrize(
    ("changes", "doubt"),
    [
        ({}, None),
        ({"steps": 50}, None),
        ({"steps": 30}, "18 steps, in which keep ratios are learned, are too few: ratios"),
        ({"steps": 30, "mode": Mode.UNIFORM}, None),
        ({"steps": 30, "target": 1.0}, None),
        ({"ratio_rate": 1e-4}, "600 steps, in which keep ratios are learned, are too few for ratio_rate 0.0001"),
        ({"steps": 40, "ratio_rate": 0.1}, None),
        ({"warmup": 1000}, None),
        ({"warmup": 1001}, "the warm-up of 1001 steps outlasts the run of 1000"),
    ],
)
def test_doubts_of_a_configuration(changes: dict[str, Any], doubt: str | None) -> None:
    doubts = doubts_of_run(configure(Path("out"), **{"steps": 1000, "ratio_rate": None, **changes}))
    assert len(doubts) == (doubt is not None)
    assert not doubts or doubts[0].startswith(str(doubt))


@pytest.mark.parametrize(
    ("target", "table", "is_alike"),
    [
        (0.5, ((5, 5), (5, 5)), True),
        (0.55, ((5, 6), (6, 5)), True),
        (0.5, ((5, 4), (5, 6)), False),
        (1.0, ((10, 10), (10, 10)), False),
        ((0.9, 0.5), ((9, 5), (9, 5)), True),  # regions differ as they were told to, layers do not
        ((0.9, 0.5), ((9, 7), (9, 3)), False),
    ],
)
def test_a_plan_that_came_out_uniform(target: Any, table: tuple[tuple[int, ...], ...], is_alike: bool) -> None:
    doubts = doubts_of_plan(configure(Path("out"), target=target, regions=2), RoutingPlan(table))
    assert len(doubts) == is_alike
    assert not doubts or "the keep ratios came out alike" in doubts[0]


@pytest.mark.parametrize(("target", "wanted"), [(0.51, 0), (0.6, 1), ((0.7, 0.3), 0), ((0.7, 0.35), 1)])
def test_a_mean_beside_the_target(target: Any, wanted: int) -> None:
    config = configure(Path("out"), target=target, regions=2, ratio_loss=0.3)
    doubts = doubts_of_plan(config, RoutingPlan(((9, 5), (5, 1))))
    assert len(doubts) == wanted
    assert all("train longer, or raise ratio_loss" in doubt for doubt in doubts)


@pytest.mark.parametrize("freeze_share", [0.6, 1.0])
def test_doubts_are_told_once_each(tmp_path: Path, caplog: pytest.LogCaptureFixture, freeze_share: float) -> None:
    train(configure(tmp_path, ratio_rate=0.0, freeze_share=freeze_share))
    assert [record.getMessage().split(":")[0] for record in caplog.records] == ["warning", "warning"]
    assert "are too few for ratio_rate 0.0" in caplog.text
    assert "[finetune] the keep ratios came out alike, 5 to 5 tenths" in caplog.text
