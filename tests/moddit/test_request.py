from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from moddit.errors import InputError, MissingError, ModditError, ShapeError, UnsupportedError, ValueRangeError
from moddit.record import Keys, Origin, decode
from moddit.request import DEFAULT_VAE_TILE_SIZE, Request, choose_tile
from moddit.spec import ModelSpec
from tests.moddit.specs import LABEL, PIXART, TEXT


@pytest.fixture(scope="module")
def spec() -> ModelSpec:
    """A model of 32 pixels in patches of 4."""
    return replace(TEXT, transformer=replace(PIXART, sample_size=16))


def test_complete_takes_size_and_sampler_from_the_model(spec: ModelSpec) -> None:
    request = Request.complete(spec, "a circle")
    assert (request.height, request.width, request.sampler) == (32, 32, "dpmpp-2m")
    assert (request.steps, request.guidance_scale, request.seed) == (20, 4.5, 0)


@pytest.mark.parametrize(("prompt", "wanted"), [("a circle", 2.0), ("", 1.0), (" ", 1.0)])
def test_a_model_that_inpaints_is_guided_less_and_without_a_caption_not(
    spec: ModelSpec, prompt: str, wanted: float
) -> None:
    inpaints = replace(spec, transformer=replace(spec.transformer, in_channels=9))
    assert Request.complete(inpaints, prompt).guidance_scale == wanted
    assert Request.complete(inpaints, prompt, guidance_scale=3).guidance_scale == 3.0
    assert Request.complete(spec, prompt).guidance_scale == 4.5


@pytest.mark.parametrize(
    ("side", "nearest"), [(30, "want 28 or 32"), (33, "want 32 or 36"), (1, "want 4"), (16381, "want 16380 or 16384")]
)
def test_size_error_names_the_nearest_sides(spec: ModelSpec, side: int, nearest: str) -> None:
    with pytest.raises(ShapeError, match=f"width is not a multiple of 4 pixels, got {side}.*{nearest}"):
        Request.complete(spec, "a circle", width=side)


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
        ({"reuse": 0}, ValueRangeError),
        ({"reuse": 10**9}, ValueRangeError),
        ({"reuse": 20}, ValueRangeError),
        ({"reuse": 3, "steps": 3}, ValueRangeError),
        ({"reuse": 2, "cache": 0.1}, UnsupportedError),
        ({"cache": -0.1}, ValueRangeError),
        ({"cache": 1.1}, ValueRangeError),
        ({"cache": float("nan")}, ValueRangeError),
        ({"keep": 0.05}, ValueRangeError),
        ({"keep": 1.5}, ValueRangeError),
        ({"keep": float("nan")}, ValueRangeError),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(spec: ModelSpec, changes: dict[str, Any], error: type[ModditError]) -> None:
    with pytest.raises(error, match=next(iter(changes))):
        Request.complete(spec, **({"prompt": "a circle"} | changes))


def test_the_largest_picture_has_sixteen_times_the_tokens(spec: ModelSpec) -> None:
    assert Request.complete(spec, "a circle", height=128, width=128).height == 128


def test_texts_are_negative_first_and_alone_without_guidance(spec: ModelSpec) -> None:
    guided = Request.complete(spec, "a circle", negative_prompt="a square")
    assert guided.rows(spec) == ("a square", "a circle")
    assert Request.complete(spec, "a circle", guidance_scale=1).rows(spec) == ("a circle",)


def test_json_round_trip(spec: ModelSpec) -> None:
    request = Request.complete(spec, "ein großer Kreis", seed=2**64 - 1, guidance_scale=3)
    for changes in (
        {},
        {"resolution_binning": True},
        {"vae_tile_size": 16},
        {"reuse": 3},
        {"cache": 0.0},
        {"keep": 0.7},
    ):
        item = replace(request, **changes)
        assert decode(item.to_json(), Request, Origin("request", "here"), Keys.KNOWN) == item


def test_settings_that_came_later_are_left_out_and_filled_in(spec: ModelSpec) -> None:
    request = Request.complete(spec, "a circle")
    assert sorted(request.to_json()) == [
        "guidance_scale",
        "height",
        "negative_prompt",
        "prompt",
        "sampler",
        "seed",
        "steps",
        "width",
    ]
    assert replace(request, resolution_binning=True).to_json() == request.to_json() | {"resolution_binning": True}


def test_reuse_leaves_two_steps_at_least(spec: ModelSpec) -> None:
    request = Request.complete(spec, "a circle", steps=4, reuse=3)
    assert [step.is_reused for step in request.table(spec).steps] == [False, True, True, False]
    with pytest.raises(ValueRangeError, match=r"reuse 4 of 4 steps leaves a single one, want fewer than the steps"):
        replace(request, reuse=4)
    assert not any(step.is_reused for step in replace(request, steps=1, reuse=1).table(spec).steps)


def of_256_pixels(spec: ModelSpec) -> ModelSpec:
    vae = replace(spec.vae, block_out_channels=(8,) * 4)
    return replace(spec, transformer=replace(PIXART, sample_size=32), vae=vae)


def test_binning_takes_any_size_and_generates_at_one_of_the_table(spec: ModelSpec) -> None:
    trained = of_256_pixels(spec)
    request = Request.complete(trained, "a circle", height=333, width=501, resolution_binning=True)
    assert (request.height, request.width) == (333, 501)
    assert request.generated_size(trained) == (208, 304)
    with pytest.raises(UnsupportedError, match="sample_size 16"):
        Request.complete(spec, "a circle", resolution_binning=True)
    with pytest.raises(UnsupportedError, match="sample_size 16"):
        request.check(spec)


def test_tiles_are_made_of_quarters_that_overlap(spec: ModelSpec) -> None:
    # the VAE halves each side, and a quarter of a tile must be made of whole latent pixels
    with pytest.raises(ShapeError, match="vae_tile_size is not a multiple of 8 pixels, got 20, want 16 or 24"):
        Request.complete(spec, "a circle", vae_tile_size=20)


@pytest.mark.parametrize(("height", "width", "kept"), [(32, 32, None), (32, 24, None), (16, 36, 32), (36, 36, 32)])
def test_a_tile_that_holds_the_whole_picture_is_none(
    spec: ModelSpec, height: int, width: int, kept: int | None
) -> None:
    request = Request.complete(spec, "a circle", height=height, width=width, vae_tile_size=32)
    assert request.vae_tile_size == kept


def test_with_binning_the_generated_picture_is_tiled(spec: ModelSpec) -> None:
    trained = of_256_pixels(spec)
    request = Request.complete(trained, "", height=32, width=32, resolution_binning=True, vae_tile_size=128)
    assert request.vae_tile_size == 128  # of 256 pixels


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
    value = Request.complete(spec, "a circle").to_json()
    with pytest.raises(InputError, match="a picture") as raised:
        decode(value | changes, Request, Origin("request", "a picture"), Keys.KNOWN)
    assert next(iter(changes)) in str(raised.value)
    assert str(raised.value).isprintable()


class TestLabel:
    def test_what_is_left_open(self) -> None:
        request = Request.complete(LABEL, label=1)
        assert (request.prompt, request.negative_prompt, request.label) == ("", "", 1)
        assert (request.guidance_scale, request.height, request.width) == (4.0, 16, 16)
        assert request.subject == "class 1"
        assert Request.complete(TEXT, "a circle").subject == "a circle"

    def test_rows_are_no_class_first_and_alone_without_guidance(self) -> None:
        assert Request.complete(LABEL, label=1).rows(LABEL) == (3, 1)
        assert Request.complete(LABEL, label=0, guidance_scale=1).rows(LABEL) == (0,)

    @pytest.mark.parametrize(
        ("given", "error", "message"),
        [
            ({"prompt": "a cat"}, UnsupportedError, r"prompt is 'a cat', but this model draws a class; want a label"),
            ({"prompt": "a", "label": 1}, UnsupportedError, r"prompt is 'a', but this model draws a class"),
            (
                {"negative_prompt": "b", "label": 1},
                UnsupportedError,
                r"negative_prompt is 'b', but this model draws a class; want a label alone",
            ),
            ({}, MissingError, r"no label, though this model draws a class; want its number in 0\.\.2"),
            ({"label": 3}, ValueRangeError, r"label out of range, got 3, want 0\.\.2"),
            ({"label": -1}, ValueRangeError, r"label out of range, got -1, want 0\.\.99999"),
            ({"label": 1, "width": 6}, ShapeError, "width is not a multiple of 4 pixels"),
        ],
        ids=str,
    )
    def test_what_a_model_of_labels_refuses(
        self, given: dict[str, Any], error: type[ModditError], message: str
    ) -> None:
        with pytest.raises(error, match=rf"^\[request\] {message}") as raised:
            Request.complete(LABEL, **given)
        assert "\n" not in str(raised.value)

    @pytest.mark.parametrize("prompt", ["", "a cat"])
    def test_a_model_of_texts_refuses_a_label(self, prompt: str) -> None:
        wanted = r"^\[request\] label is 0, but this model draws a text; want a prompt alone$"
        with pytest.raises(UnsupportedError, match=wanted):
            Request.complete(TEXT, prompt, label=0)

    def test_json_has_the_label(self) -> None:
        request = Request.complete(LABEL, label=2)
        assert request.to_json()["label"] == 2
        assert decode(request.to_json(), Request, Origin("request", "here"), Keys.KNOWN) == request
        with pytest.raises(InputError, match="label is True, want an integer or null"):
            decode(request.to_json() | {"label": True}, Request, Origin("request", "here"), Keys.KNOWN)

    def test_a_class_by_number_or_name(self) -> None:
        assert [LABEL.number(item) for item in (1, "1", "goldfish", "TINCA TINCA")] == [1, 1, 1, 0]
        with pytest.raises(ValueRangeError, match=r"class 3 out of range, want 0\.\.2"):
            LABEL.number(3)
        with pytest.raises(MissingError, match=r"no class is called 'shark'; .*'great white shark'"):
            LABEL.number("shark")
        with pytest.raises(UnsupportedError, match="label is 'goldfish', but this model draws a text; want a prompt"):
            TEXT.number("goldfish")
