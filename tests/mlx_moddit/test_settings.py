from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlx_moddit.settings import DEFAULT_VAE_TILE_SIZE, Settings, choose_tile
from moddit.errors import InputError, ModditError, ShapeError, UnsupportedError, ValueRangeError
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
    ("side", "nearest"), [(30, "want 28 or 32"), (33, "want 32 or 36"), (1, "want 4"), (16381, "want 16380 or 16384")]
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
        ({"height": 10**7}, ValueRangeError),
        ({"width": 16388}, ValueRangeError),
        ({"height": 16384, "width": 16384}, ValueRangeError),
        ({"height": 16384}, ValueRangeError),
        ({"height": 132, "width": 128}, ValueRangeError),
        ({"steps": 10**9}, ValueRangeError),
        ({"guidance_scale": 1e9}, ValueRangeError),
        ({"vae_tile_size": 10**9}, ValueRangeError),
        ({"prompt": "x" * 100_001}, ValueRangeError),
        ({"vae_tile_size": 0}, ValueRangeError),
        ({"vae_tile_size": 12}, ShapeError),
        ({"sampler": "plms"}, UnsupportedError),
        ({"negative_prompt": "\udc80"}, ValueRangeError),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(spec: ModelSpec, changes: dict[str, Any], error: type[ModditError]) -> None:
    with pytest.raises(error, match=next(iter(changes))):
        Settings.complete(spec, **({"prompt": "a circle"} | changes))


def test_the_largest_picture_has_sixteen_times_the_tokens(spec: ModelSpec) -> None:
    assert Settings.complete(spec, "a circle", height=128, width=128).height == 128


def test_texts_are_negative_first_and_alone_without_guidance(spec: ModelSpec) -> None:
    guided = Settings.complete(spec, "a circle", negative_prompt="a square")
    assert guided.texts == ("a square", "a circle")
    assert Settings.complete(spec, "a circle", guidance_scale=1).texts == ("a circle",)


def test_json_round_trip(spec: ModelSpec) -> None:
    settings = Settings.complete(spec, "ein großer Kreis", seed=2**64 - 1, guidance_scale=3)
    for item in (settings, replace(settings, resolution_binning=True), replace(settings, vae_tile_size=16)):
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


def of_256_pixels(spec: ModelSpec) -> ModelSpec:
    vae = replace(spec.vae, block_out_channels=(8,) * 4)
    return replace(spec, transformer=replace(spec.transformer, sample_size=32), vae=vae)


def test_binning_takes_any_size_and_generates_at_one_of_the_table(spec: ModelSpec) -> None:
    trained = of_256_pixels(spec)
    settings = Settings.complete(trained, "a circle", height=333, width=501, resolution_binning=True)
    assert (settings.height, settings.width) == (333, 501)
    assert settings.generated_size(trained) == (208, 304)
    with pytest.raises(UnsupportedError, match="sample_size 16"):
        Settings.complete(spec, "a circle", resolution_binning=True)
    with pytest.raises(UnsupportedError, match="sample_size 16"):
        settings.check(spec)


def test_tiles_are_made_of_quarters_that_overlap(spec: ModelSpec) -> None:
    # the VAE halves each side, and a quarter of a tile must be made of whole latent pixels
    with pytest.raises(ShapeError, match="vae_tile_size is not a multiple of 8 pixels, got 20, want 16 or 24"):
        Settings.complete(spec, "a circle", vae_tile_size=20)


@pytest.mark.parametrize(("height", "width", "kept"), [(32, 32, None), (32, 24, None), (16, 36, 32), (36, 36, 32)])
def test_a_tile_that_holds_the_whole_picture_is_none(
    spec: ModelSpec, height: int, width: int, kept: int | None
) -> None:
    settings = Settings.complete(spec, "a circle", height=height, width=width, vae_tile_size=32)
    assert settings.vae_tile_size == kept


def test_with_binning_the_generated_picture_is_tiled(spec: ModelSpec) -> None:
    trained = of_256_pixels(spec)
    settings = Settings.complete(trained, "", height=32, width=32, resolution_binning=True, vae_tile_size=128)
    assert settings.vae_tile_size == 128  # of 256 pixels


@pytest.mark.parametrize(
    ("tiling", "size", "default", "chosen"),
    [
        (None, None, None, None),
        (None, None, 256, 256),
        (None, 128, None, 128),
        (None, 128, 256, 128),
        (True, None, None, DEFAULT_VAE_TILE_SIZE),
        (True, None, 256, 256),
        (True, 128, 256, 128),
        (False, None, 256, None),
    ],
)
def test_tiling_and_its_size_may_be_left_open(
    tiling: bool | None, size: int | None, default: int | None, chosen: int | None
) -> None:
    assert choose_tile(tiling, size, default) == chosen


def test_a_size_of_tiles_that_are_not_wanted_is_refused() -> None:
    with pytest.raises(ValueRangeError, match="vae_tile_size 128 without effect, since vae_tiling is off"):
        choose_tile(False, 128, None)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": "1"},
        {"steps": 2.5},
        {"steps": True},
        {"prompt": None},
        {"lora": 1},
        {"resolution_binning": 1},
        {"vae_tile_size": "8"},
        {"vae_tile_size": True},
        {"height": 10**7},
        {"height": 32.0},
        {"steps": 0},
        {"steps": 10**12},
        {"seed": 2**70},
        {"guidance_scale": None},
        {"sampler": []},
        {"sampler": "\x1b[2J"},
        {"negative_prompt": "x" * 100_001},
    ],
    ids=str,
)
def test_json_of_another_shape_is_refused(spec: ModelSpec, changes: dict[str, Any]) -> None:
    value = Settings.complete(spec, "a circle").to_json()
    with pytest.raises(InputError, match="a picture") as raised:
        Settings.from_json(value | changes, "a picture")
    assert next(iter(changes)) in str(raised.value)
    assert str(raised.value).isprintable()
