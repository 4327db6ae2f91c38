"""`mlx_moddit generate --image` and `--mask`: the files that a user has, what comes out, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import numpy as np
import pytest
from PIL import Image

from mlx_moddit.images import read_metadata
from mlx_moddit.pipeline import Pipeline
from moddit.edits import image_digest, mask_digest
from tests import tiny
from tests.mlx_moddit.test_cli import FAST, run, succeed, work_folder
from tests.parity.roads import to_bundle
from tests.torch_moddit.test_edits import make_image

__all__ = ["work_folder"]  # a fixture

BOX: Final = ("--mask", "box:4,8,10,16")
CROP: Final = ("--padding-mask-crop", "2")


@pytest.fixture
def photo(work_folder: Path) -> Path:
    path = work_folder / "photo.png"
    Image.fromarray(make_image()).save(path)
    return path


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_an_image_is_drawn_over(routed_bundle: Path, photo: Path) -> None:
    result = succeed(routed_bundle, *FAST, "--image", str(photo), "-o", "out.png", "--json")
    report = json.loads(result.stdout)
    assert [stage["name"] for stage in report["stages"]] == [
        *("load", "encode", "encode_image", "prepare", "denoise", "decode")
    ]
    settings = report["pictures"][0]["settings"]
    assert settings["image"] == image_digest(make_image())
    assert settings["strength"] == 0.8
    assert "mask" not in settings
    assert "photo" not in result.stdout
    assert str(photo) not in read_metadata(Path("out.png")).describe()
    assert pixels("out.png").shape == (settings["height"], settings["width"], 3)


def test_pixels_outside_the_mask_are_the_images(routed_bundle: Path, photo: Path) -> None:
    result = succeed(
        routed_bundle, *FAST, "--image", str(photo), *BOX, "-o", "out.png", "--save-edit", "e.png", "--json"
    )
    assert json.loads(result.stdout)["pictures"][0]["edit"] == "e.png"
    assert pixels("e.png").shape[1] > 3 * 24
    mask = np.zeros((40, 24), dtype=bool)
    mask[8:24, 4:14] = True
    found = pixels("out.png")
    assert np.array_equal(found[~mask], make_image()[~mask])
    assert not np.array_equal(found[mask], make_image()[mask])
    settings = read_metadata(Path("out.png")).settings
    assert (settings.mask, settings.strength) == (mask_digest(mask), 1.0)
    Image.fromarray(mask).save("mask.png")
    succeed(routed_bundle, *FAST, "--image", str(photo), "--mask", "mask.png", "-o", "same.png")
    assert Path("same.png").read_bytes() == Path("out.png").read_bytes()


def test_an_edit_has_the_colour_profile_of_its_image(routed_bundle: Path, photo: Path) -> None:
    # a profile of greys is none of colours
    for mode, wanted in (("RGB", b"of a phone"), ("RGBA", b"of a phone"), ("L", None)):
        Image.fromarray(make_image()).convert(mode).save("tagged.png", icc_profile=b"of a phone")
        succeed(
            routed_bundle, *FAST, "--image", "tagged.png", *BOX, "-o", "out.png", "--save-edit", "e.png", "--overwrite"
        )
        for name in ("out.png", "e.png"):
            with Image.open(name) as image:
                assert image.info.get("icc_profile") == wanted
    given = Image.open("tagged.png").convert("RGB")
    given.info["icc_profile"] = b"of Python"
    result = Pipeline.load(routed_bundle).generate("a circle", steps=2, image=given)
    assert result.pictures[0].image.info["icc_profile"] == b"of Python"


def test_routes_are_shown_of_what_is_drawn(routed_bundle: Path, photo: Path) -> None:
    arguments = (*FAST, "--image", str(photo), "--mask", "box:4,8,4,4", "--overwrite", "-o", "out.png")
    heights = []
    for more in ((), ("--padding-mask-crop", "2")):
        succeed(routed_bundle, *arguments, *more, "--save-routes", "routes.png")
        heights.append(pixels("routes.png").shape[0])
    assert heights[0] - heights[1] == 40 * 11 - 8 * 32  # the photo, and the square of 8 pixels, enlarged


def test_tiles_are_those_of_the_size_that_is_drawn(routed_bundle: Path, photo: Path) -> None:
    arguments = ("--image", str(photo), "--vae-tile-size", "32", "-o", "out.png")
    succeed(routed_bundle, *FAST, *arguments)  # of 40 x 24 pixels, where the model's own are 32 x 32
    settings = read_metadata(Path("out.png")).settings
    assert (settings.height, settings.width, settings.vae_tile_size) == (40, 24, 32)
    succeed(routed_bundle, *FAST, *arguments, "--height", "32", "--width", "24", "--overwrite")
    assert read_metadata(Path("out.png")).settings.vae_tile_size is None


@pytest.mark.parametrize(
    "edit", [BOX, (), (*BOX, "--height", "32", "--width", "32"), (*BOX, *CROP), ("--strength", "0.5")], ids=str
)
def test_an_edit_is_repeated_byte_for_byte(routed_bundle: Path, photo: Path, edit: tuple[str, ...]) -> None:
    arguments = ("-p", "a circle", "--steps", "4", "--image", str(photo))
    succeed(routed_bundle, *arguments, *edit, "-o", "first.png")
    again = ("generate", "--config-from", "first.png", "--image", str(photo), *(BOX if "--mask" in edit else ()))
    result = run(*again, "-o", "again.png")
    assert result.exit_code == 0, result.output
    assert Path("again.png").read_bytes() == Path("first.png").read_bytes()


def test_repeating_an_edit_needs_what_it_was_made_of(routed_bundle: Path, photo: Path) -> None:
    succeed(routed_bundle, *FAST, "--image", str(photo), *BOX, "-o", "first.png")
    result = run("generate", "--config-from", "first.png", "-o", "again.png")
    assert result.exit_code == 1
    assert f"SHA-256 {image_digest(make_image())[:16]}" in result.output
    assert "--image" in result.output
    result = run("generate", "--config-from", "first.png", "--image", str(photo), "-o", "again.png")
    assert result.exit_code == 1
    assert "give it again with --mask" in result.output
    Image.fromarray(make_image(1)).save("other.png")
    result = run("generate", "--config-from", "first.png", "--image", "other.png", *BOX, "-o", "again.png")
    assert result.exit_code == 0
    assert "note: other.png is not the image that first.png was made from" in result.output
    Image.fromarray(np.repeat(make_image(), 3, axis=1)).save("wide.png")
    result = run("generate", "--config-from", "first.png", "--image", "wide.png", *BOX, "-o", "wide-out.png")
    assert result.exit_code == 0
    assert pixels("wide-out.png").shape == (40, 72, 3)  # not cropped to the size of the other


def test_an_edit_is_repeated_around_another_mask(routed_bundle: Path, photo: Path) -> None:
    succeed(routed_bundle, *FAST, "--image", str(photo), *BOX, "-o", "whole.png")
    again = ("generate", "--image", str(photo), "--padding-mask-crop", "2")
    result = run(*again, "--config-from", "whole.png", "--mask", "box:4,8,4,4", "-o", "square.png")
    assert result.exit_code == 0, result.output
    result = run(*again, "--config-from", "square.png", "--mask", "box:0,0,24,30", "-o", "wide.png")
    assert result.exit_code == 0, result.output
    found = (read_metadata(Path(f"{name}.png")).settings for name in ("whole", "square", "wide"))
    assert [(item.height, item.width) for item in found] == [(40, 24), (32, 32), (40, 28)]


def test_mfluxs_options_mean_the_same(routed_bundle: Path, photo: Path) -> None:
    arguments = ("-p", "a circle", "--steps", "10")
    succeed(routed_bundle, *arguments, "--image", str(photo), "--strength", "0.7", "-o", "ours.png")
    succeed(routed_bundle, *arguments, "--image-path", str(photo), "--image-strength", "0.3", "-o", "theirs.png")
    assert Path("ours.png").read_bytes() == Path("theirs.png").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (BOX, "mask without an image"),
        (("--strength", "0.5"), "strength without an image"),
        (CROP, "padding_mask_crop without a mask"),
        (("--image", "photo.png", *CROP), "padding_mask_crop without a mask"),
        (("--image", "photo.png", *BOX, *CROP, "--height", "64"), "height 64 and width 64 with padding_mask_crop"),
        (("--save-edit", "edit.png"), "--save-edit without an image"),
        (("--image", "photo.png", "--save-edit", "out.png"), "--save-edit and --output name the same file"),
        (("--image", "none.png"), "none.png"),
        (("--image", "photo.png", "--mask", "box:0,0,25,1"), "box"),
        (("--image", "photo.png", "--mask", "box:1,2,3"), "box"),
        (("--image", "photo.png", "--strength", "0.1"), "leaves none to take"),
        (("--image", "photo.png", "--height", "33"), "height is not a multiple"),
        (("--image", "photo.png", "--width", "8192"), "height 13652 and width 8192 of an edit are out of range"),
        (("--image", "photo.png", "--width", "1000000000"), "of an edit are out of range"),
        (("--image", "photo.png", "--resolution-binning"), "resolution_binning"),
        (("--image", "notes.txt"), "notes.txt"),
        (("--image", "photo.png", "--mask", "notes.txt"), "notes.txt"),
    ],
    ids=str,
)
def test_what_cannot_be_edited_is_refused_in_a_line(
    routed_bundle: Path, photo: Path, arguments: tuple[str, ...], message: str
) -> None:
    Path("notes.txt").write_text("no picture")
    before = sorted(Path().iterdir())
    result = run("generate", "--model", str(routed_bundle), *FAST, *arguments, "-o", "out.png")
    assert result.exit_code == 1
    assert result.output.startswith("error: ")
    assert len(result.output.splitlines()) == 1
    assert message in result.output
    assert sorted(Path().iterdir()) == before


def test_strength_is_said_once(routed_bundle: Path, photo: Path) -> None:
    result = run(
        *("generate", "--model", str(routed_bundle), *FAST, "--image", str(photo)),
        *("--strength", "0.5", "--image-strength", "0.5"),
    )
    assert result.exit_code == 2
    assert "one of --strength and --image-strength" in result.output


def test_a_model_that_inpaints_draws_under_a_mask_and_nothing_else(photo: Path) -> None:
    source = tiny.save_pipeline(Path("source"), routed=False, transformer=tiny.INPAINTING)
    bundle = to_bundle(source, Path("bundle"))
    before = sorted(Path().iterdir())
    for arguments, missing in (((), "image"), (("--image", str(photo)), "mask")):
        result = run("generate", "--model", str(bundle), *FAST, *arguments, "-o", "out.png")
        assert result.exit_code == 1
        (line,) = result.output.splitlines()
        assert line.startswith(f"error: [request] no {missing}, though this model inpaints")
        assert sorted(Path().iterdir()) == before
    succeed(bundle, *FAST, "--image", str(photo), *BOX, "-o", "out.png")
    settings = read_metadata(Path("out.png")).settings
    assert (settings.guidance_scale, settings.strength) == (2.0, 1.0)
    result = run(
        "generate", "--config-from", "out.png", "--model", str(bundle), "--image", str(photo), *BOX, "-o", "b.png"
    )
    assert result.exit_code == 0, result.output
    assert Path("b.png").read_bytes() == Path("out.png").read_bytes()
