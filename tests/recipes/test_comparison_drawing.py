"""Pictures of a batch are those that the reference draws one by one, at the FLOPs of the steps and blocks that ran."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from recipes.comparison.drawing import PROMPT_SEEDS, draw
from recipes.comparison.evaluation import open_entry
from recipes.comparison.methods import METHODS, Entry, Method
from tests import tiny

PROMPTS: Final = ("a red circle", "a blue square on the left", "a large green circle")
STEPS: Final = 4


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Mapping[bool, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    return {routed: tiny.save_pipeline(folder / str(routed), kind="sigma", routed=routed) for routed in (False, True)}


@pytest.mark.parametrize("routed", [False, True])
@pytest.mark.parametrize(("options", "least", "most"), [({}, 4, 4), ({"reuse": 2}, 2, 2), ({"cache": 0.3}, 2, 3.9)])
def test_a_batch_is_what_is_drawn_one_by_one(
    options: Mapping[str, Any],
    least: float,
    most: float,
    routed: bool,
    checkpoints: Mapping[bool, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(METHODS, "here", Method("here", options=options))
    entry = Entry("here", 10, None)
    pipeline = open_entry(checkpoints[routed], entry)
    drawn = draw(pipeline, entry, PROMPTS, seed=2, steps=STEPS)
    for number, prompt in enumerate(PROMPTS):
        alone = pipeline.generate(prompt, seed=2 * PROMPT_SEEDS + number, steps=STEPS, **options)
        np.testing.assert_allclose(drawn.pictures[number], alone, atol=1e-4)
    if routed:
        assert drawn.cost < most
    else:
        assert least <= drawn.cost <= most
