"""Every world gives prompts, true pictures and judgements that are always the same."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import pytest

from recipes.comparison.worlds import WORLDS
from recipes.emoji64 import font as fonts
from recipes.world import World

COUNT: Final = 4  # prompts; a few glyphs have no more


def open_world(name: str, work: Path, *, is_smoke: bool) -> World:
    if name == "emoji64" and not fonts.INSTALLED.exists():
        pytest.skip(f"Noto Color Emoji is not installed ({fonts.PACKAGE})")
    return WORLDS[name]()(work, is_smoke=is_smoke)


@pytest.fixture(scope="module", params=WORLDS)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    return open_world(request.param, tmp_path_factory.mktemp("world"), is_smoke=True)


def test_prompts_are_the_first_of_the_same(world: World) -> None:
    assert world.prompts(2) == world.prompts(COUNT)[:2]
    assert len(set(world.prompts(COUNT))) == COUNT


def test_true_pictures_show_what_is_asked_for(world: World) -> None:
    prompts = world.prompts(COUNT)
    pictures = world.show(prompts)
    assert np.array_equal(pictures, world.show(prompts))
    assert pictures.shape == (COUNT, 64, 64, 3)
    outcomes = world.score(pictures, prompts)
    assert world.OUTCOME in outcomes
    assert outcomes["background"].all()
    assert not world.score(pictures, prompts[1:] + prompts[:1])["background"].all()
    features = world.features(pictures)
    assert features.shape[0] == COUNT
    assert np.isfinite(features).all()


def test_the_teacher_of_emoji64_is_the_repositorys_where_none_was_trained(tmp_path: Path) -> None:
    folder = open_world("emoji64", tmp_path, is_smoke=False).teacher()
    assert (folder / "transformer" / "config.json").exists()
    assert (tmp_path / "classifier.pt").exists()
