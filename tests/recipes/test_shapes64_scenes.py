"""Scenes and the scorer: captions say what the pictures show, and the scorer reads it back."""

from __future__ import annotations

import numpy as np
import pytest

from recipes.shapes64.scenes import FORMS, Scene, Thing, caption, cover, draw_caption, draw_scene, parse, render
from recipes.shapes64.score import ATTRIBUTES, read, score

MIN_CEILING = 0.99  # share of true renders that the scorer must find fully right

SCENE = Scene("gray", (Thing("large", "red", "circle", "left"), Thing("small", "blue", "cross", "right")))


def test_caption_has_the_grammar() -> None:
    assert caption(SCENE) == "a large red circle on the left and a small blue cross on the right, gray background"
    assert caption(SCENE, wording=1, reverse=True) == (
        "a small blue cross on the right and a large red circle on the left on a gray background"
    )


def test_captions_round_trip() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        scene = draw_scene(rng)
        assert parse(draw_caption(rng, scene)) == scene


@pytest.mark.parametrize("text", ["", "a red circle", "a large red circle on the moon, gray background"])
def test_parse_refuses_other_text(text: str) -> None:
    with pytest.raises(ValueError, match="shapes64"):
        parse(text)


def test_held_out_scenes_are_few_and_stable() -> None:
    rng = np.random.default_rng(1)
    share = np.mean([draw_scene(rng).is_held_out for _ in range(3000)])
    assert 0.03 < share < 0.07
    assert all(draw_scene(rng, held_out=True).is_held_out for _ in range(20))
    assert not any(draw_scene(rng, held_out=False).is_held_out for _ in range(100))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("radius", [7.5, 12.2])
def test_forms_of_one_size_have_one_area(form: str, radius: float) -> None:
    assert cover(form, 32, 32, radius).sum() == pytest.approx(np.pi * radius**2, rel=0.01)


def test_scorer_reads_true_renders() -> None:
    rng = np.random.default_rng(2)
    scenes = [draw_scene(rng) for _ in range(150)]
    rows = [score(render(scene, rng), scene) for scene in scenes]
    for name in ATTRIBUTES:
        assert np.mean([row[name] for row in rows]) >= MIN_CEILING


def test_scorer_tells_the_small_square_from_the_small_circle() -> None:
    rng = np.random.default_rng(3)
    for form in ("square", "circle"):
        scene = Scene("white", (Thing("small", "green", form, "center"),))
        assert all(read(render(scene, rng)).found[0].form == form for _ in range(10))


@pytest.mark.parametrize(
    ("wrong", "spoiled"),
    [
        (Thing("small", "red", "circle", "left"), "size"),
        (Thing("large", "pink", "circle", "left"), "colour"),
        (Thing("large", "red", "square", "left"), "form"),
    ],
)
def test_scorer_names_what_is_wrong(wrong: Thing, spoiled: str) -> None:
    picture = render(Scene("gray", (wrong, SCENE.things[1])), np.random.default_rng(4))
    result = score(picture, SCENE)
    assert not result[spoiled]
    assert not result["all"]
    assert result["background"]


def test_scorer_refuses_an_extra_object() -> None:
    picture = render(SCENE, np.random.default_rng(5))
    result = score(picture, Scene("gray", SCENE.things[:1]))
    assert result["form"]
    assert not result["all"]


def test_scorer_survives_noise() -> None:
    picture = np.random.default_rng(6).random((64, 64, 3), dtype=np.float32)
    assert not score(picture, SCENE)["all"]
