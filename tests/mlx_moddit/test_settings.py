from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlx_moddit.settings import Settings
from moddit.errors import FormatError, ModditError, ShapeError, UnsupportedError, ValueRangeError
from moddit.manifest import read_manifest
from moddit.spec import ModelSpec


@pytest.fixture(scope="module")
def spec(routed_bundle: Path) -> ModelSpec:
    return read_manifest(routed_bundle).spec


def test_complete_takes_size_and_sampler_from_the_model(spec: ModelSpec) -> None:
    settings = Settings.complete(spec, "a circle")
    assert (settings.height, settings.width, settings.sampler) == (32, 32, "dpmpp-2m")
    assert (settings.steps, settings.guidance_scale, settings.seed) == (20, 4.5, 0)


@pytest.mark.parametrize(
    ("side", "nearest"), [(30, "want 28 or 32"), (33, "want 32 or 36"), (1, "want 4"), (4 * 10**6 + 1, "4000004")]
)
def test_size_error_names_the_nearest_sides(spec: ModelSpec, side: int, nearest: str) -> None:
    with pytest.raises(ShapeError, match=f"width is not a multiple of 4 pixels, got {side}.*{nearest}"):
        Settings.complete(spec, "a circle", width=side)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"steps": 0}, ValueRangeError),
        ({"seed": 2**64}, ValueRangeError),
        ({"seed": -(2**63) - 1}, ValueRangeError),
        ({"guidance_scale": float("nan")}, ValueRangeError),
        ({"guidance_scale": -1.0}, ValueRangeError),
        ({"height": 0}, ValueRangeError),
        ({"sampler": "plms"}, UnsupportedError),
        ({"negative_prompt": "\udc80"}, ValueRangeError),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(spec: ModelSpec, changes: dict[str, Any], error: type[ModditError]) -> None:
    with pytest.raises(error, match=next(iter(changes))):
        Settings.complete(spec, "a circle", **changes)


def test_texts_are_negative_first_and_alone_without_guidance(spec: ModelSpec) -> None:
    guided = Settings.complete(spec, "a circle", negative_prompt="a square")
    assert guided.texts == ("a square", "a circle")
    assert Settings.complete(spec, "a circle", guidance_scale=1).texts == ("a circle",)


def test_json_round_trip(spec: ModelSpec) -> None:
    settings = Settings.complete(spec, "ein großer Kreis", seed=2**64 - 1, guidance_scale=3)
    for item in (settings, replace(settings, resolution_binning=True)):
        assert Settings.from_json(item.to_json(), "here") == item


def test_settings_that_came_later_are_left_out_and_filled_in(spec: ModelSpec) -> None:
    settings = Settings.complete(spec, "a circle")
    assert sorted(settings.to_json()) == [
        "guidance_scale",
        "height",
        "negative_prompt",
        "prompt",
        "sampler",
        "seed",
        "steps",
        "width",
    ]
    assert replace(settings, resolution_binning=True).to_json() == settings.to_json() | {"resolution_binning": True}


def test_binning_takes_any_size_and_generates_at_one_of_the_table(spec: ModelSpec) -> None:
    trained = replace(spec, transformer=replace(spec.transformer, sample_size=32))
    settings = Settings.complete(trained, "a circle", height=333, width=501, resolution_binning=True)
    assert (settings.height, settings.width) == (333, 501)
    assert settings.generated_size(trained) == (208, 304)
    with pytest.raises(UnsupportedError, match="sample_size 16"):
        Settings.complete(spec, "a circle", resolution_binning=True)
    with pytest.raises(UnsupportedError, match="sample_size 16"):
        settings.check_size(spec)


@pytest.mark.parametrize(
    "changes",
    [{"seed": "1"}, {"steps": 2.5}, {"steps": True}, {"prompt": None}, {"lora": 1}, {"resolution_binning": 1}],
    ids=str,
)
def test_json_of_another_shape_is_refused(spec: ModelSpec, changes: dict[str, Any]) -> None:
    value = Settings.complete(spec, "a circle").to_json()
    with pytest.raises(FormatError, match="a picture"):
        Settings.from_json(value | changes, "a picture")
