"""Pictures and masks are read as people see them, whatever kind of file they are in, or refused in one line."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFile

from moddit.bounds import PIXELS, SIDE
from moddit.edits import Mask, scale_mask
from moddit.errors import FormatError, InputError, MissingError, ShapeError, ValueRangeError
from moddit.pictures import fit, open_edit, prepare, read_image, read_mask, read_picture, read_size, scale_back
from moddit.record import Origin
from tests.moddit import specs


def save_upright(path: Path, orientation: int, above: str = "red", below: str = "blue") -> None:
    picture = Image.new("RGB", (30, 20), below)
    picture.paste(above, (0, 0, 30, 10))  # before it is turned
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture.save(path, exif=exif)


def look(path: Path) -> Image.Image:
    opener, origin = lambda: path.open("rb"), Origin("data", str(path))
    picture = read_picture(opener, origin)
    assert read_size(opener, origin) == (picture.height, picture.width)
    assert picture.mode == "RGB"
    return picture


def test_pictures_are_seen_as_people_see_them(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    save_upright(path, 6)  # to be turned by a quarter, clockwise
    turned = look(path)
    assert turned.size == (20, 30)
    assert (turned.getpixel((0, 15)), turned.getpixel((19, 15))) == ((0, 0, 255), (255, 0, 0))
    for values, seen in (
        (np.array([[0, 257, 65535]], np.uint16), (0, 1, 255)),
        (np.array([[0, 7, 255]], np.uint8), (0, 7, 255)),
    ):
        Image.fromarray(values).save(path)
        assert [look(path).getpixel((x, 0)) for x in range(3)] == [(value,) * 3 for value in seen]
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(path)
    assert look(path).getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([9, 9, 9, 250, 0, 0])
    palette.save(path, transparency=1)
    assert look(path).getpixel((0, 0)) == (255, 255, 255)
    palette.save(path)
    assert look(path).getpixel((0, 0)) == (250, 0, 0)
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    red, *others = look(tmp_path / "a.jpg").getpixel((0, 0))  # type: ignore[misc]
    assert red > 250
    assert max(others) < 5
    Image.new("L", (2, 2), 7).save(tmp_path / "a.webp", lossless=True)
    assert look(tmp_path / "a.webp").getpixel((0, 0)) == (7, 7, 7)


@pytest.mark.parametrize("size", [(30, 10), (10, 30), (7, 5), (24, 16)])
def test_pictures_are_covered_and_cropped(size: tuple[int, int]) -> None:
    for place in (0.0, 0.5, 1.0):
        assert fit(Image.new("RGB", size), 16, 24, place).size == (24, 16)
    halves = Image.new("RGB", (48, 16), "red")
    halves.paste("blue", (24, 0, 48, 16))
    assert [fit(halves, 16, 24, place).getpixel((5, 5)) for place in (0, 1)] == [(255, 0, 0), (0, 0, 255)]


@pytest.mark.parametrize("size", [(30_000, 1), (1, 30_000)])
def test_what_is_cropped_takes_no_memory(size: tuple[int, int]) -> None:
    """Scaled as a whole it had 8 thousand million pixels."""
    assert fit(Image.new("RGB", size, "red"), 512, 512).getpixel((256, 256)) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["EPS", "PPM"])
def test_what_is_no_picture_of_these_kinds_is_not_looked_into(kind: str, tmp_path: Path) -> None:
    """Pillow goes by the content, and runs Ghostscript for one of them."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png", kind)
    with pytest.raises(FormatError, match="neither PNG nor JPEG nor WebP"):
        look(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("JPEG", {"quality": 100, "subsampling": 0}),
        ("WEBP", {"lossless": True}),
        ("PNG", {"save_all": True}),
        ("WEBP", {"save_all": True, "lossless": True}),
        ("MPO", {"save_all": True, "quality": 100, "subsampling": 0}),  # JPEG with a second picture, of a phone
    ],
)
def test_an_image_is_the_first_picture_of_its_file(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    red, blue = (Image.new("RGB", (6, 4), colour) for colour in ("red", "blue"))
    more = {"append_images": [blue]} if "save_all" in options else {}
    red.save(tmp_path / "a", kind, **options, **more)
    image = read_image(tmp_path / "a")
    assert image.dtype == np.uint8
    assert image.shape == (4, 6, 3)
    assert abs(image.astype(int) - [255, 0, 0]).max() <= 2


def test_an_image_is_upright_and_lies_on_white(tmp_path: Path) -> None:
    save_upright(tmp_path / "a.jpg", 6)
    image = read_image(tmp_path / "a.jpg")
    assert image.shape == (30, 20, 3)
    assert image[15, 18].argmax() == 0
    Image.new("RGBA", (1, 1), (0, 0, 0, 51)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").tolist() == [[[204, 204, 204]]]


def test_a_mask_of_python_is_read_as_a_file_is(tmp_path: Path) -> None:
    levels = np.array([[0, 200, 32767, 65535]], np.uint16)  # Pillow would cut 16 bits at 255
    Image.fromarray(levels).save(tmp_path / "mask.png")
    image = np.zeros((1, 4, 3), np.uint8)
    for mask in (tmp_path / "mask.png", Image.open(tmp_path / "mask.png")):
        edit = open_edit(specs.TEXT, image, mask)
        assert edit is not None
        assert edit.mask is not None
        assert edit.mask.tolist() == [[False, False, False, True]]


@pytest.mark.parametrize("shape", [(0, 8, 3), (8, 8), (8, 8, 4), (8, 8, 3, 1)])
@pytest.mark.parametrize("kind", [np.uint8, np.float32, list], ids=str)
def test_an_array_that_is_no_image_is_refused(shape: tuple[int, ...], kind: Any) -> None:
    zeros = np.zeros(shape, np.uint8)
    with pytest.raises(ShapeError, match=r"\[image\] an array of .*, want uint8 \(height, width, 3\)"):
        open_edit(specs.TEXT, zeros.tolist() if kind is list else zeros.astype(kind))


def png_header(height: int, width: int) -> bytes:
    """A PNG that ends where its pixels would begin."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(b"")
    chunks = (struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in (header, data))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


READERS = {"image": read_image, "mask": lambda path: read_mask(str(path), (4, 6))}


@pytest.mark.parametrize("component", READERS)
@pytest.mark.parametrize(
    ("height", "width", "message"),
    [
        (60_000, 60_000, r"3600000000 pixels.* export it as PNG, JPEG or WebP of at most"),
        (10_000, 10_000, rf"has height 10000 and width 10000, want at most {PIXELS} pixels"),  # Pillow would warn
        (8192, 8193, "has height 8192 and width 8193"),
        (1, SIDE + 1, rf"has height 1 and width {SIDE + 1}, want .* {SIDE} a side; make it smaller"),
    ],
)
def test_what_is_too_large_is_refused_before_it_is_decoded(
    component: str, height: int, width: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(png_header(height, width))
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda _: pytest.fail("pixels are decoded"))
    with pytest.raises(InputError, match=message):
        READERS[component](tmp_path / "a.png")


@pytest.mark.parametrize("component", READERS)
@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda path: None, MissingError, "no such file; want a picture"),
        (lambda path: path.symlink_to("lost"), MissingError, "a link to a file that is not there"),
        (lambda path: path.mkdir(), FormatError, r"\(a folder\)"),
        (os.mkfifo, FormatError, r"\(not a regular file\)"),
        (lambda path: path.write_bytes(b""), FormatError, "neither PNG nor JPEG nor WebP.*; export it as PNG"),
        (lambda path: path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(99)), FormatError, "neither PNG.*; export it as"),
        (lambda path: path.write_bytes(png_header(4, 6)), FormatError, "cannot read the picture"),
    ],
    ids=["absent", "link", "folder", "pipe", "empty", "heic", "cut"],
)
def test_what_is_no_picture_is_refused_by_name(
    component: str, spoil: Callable[[Path], object], error: type[InputError], message: str, tmp_path: Path
) -> None:
    spoil(tmp_path / "a\n.png")
    with pytest.raises(error, match=rf"^\[{component}\] {tmp_path}/a\\n\.png: .*{message}"):
        READERS[component](tmp_path / "a\n.png")


def white_box() -> Image.Image:
    picture = Image.new("L", (6, 4))
    ImageDraw.Draw(picture).rectangle((1, 2, 3, 3), fill=255)
    return picture


def hole() -> Image.Image:
    """White everywhere, and transparent where it is drawn anew."""
    picture = Image.new("RGBA", (6, 4), "white")
    picture.putalpha(white_box().point(lambda level: 255 - level))
    return picture


@pytest.mark.parametrize(
    "picture",
    [
        white_box(),
        white_box().convert("RGB"),
        white_box().convert("1"),
        white_box().convert("P"),
        white_box().convert("RGBA"),  # opaque
        white_box().convert("I;16").point(lambda level: level * 257),
        white_box().point(lambda level: 128 if level else 127),
        hole(),
        hole().quantize(),
    ],
    ids=["grey", "rgb", "bits", "palette", "opaque", "16 bits", "greys", "transparent", "transparent palette"],
)
def test_masks_mark_what_is_white_or_transparent(picture: Image.Image, tmp_path: Path) -> None:
    wanted = read_mask("box:1,2,3,2", (4, 6))
    assert wanted.dtype == np.bool_
    assert wanted.astype(int).tolist() == 2 * [[0] * 6] + 2 * [[0, 1, 1, 1, 0, 0]]
    for name in ("a.png", "box"):
        picture.save(tmp_path / name, "PNG")
        assert (read_mask(str(tmp_path / name), (4, 6)) == wanted).all()


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_a_mask_is_turned_as_its_image(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_upright(tmp_path / name, 6, "white", "black")
    monkeypatch.setenv("HOME", str(tmp_path))
    mask = read_mask(f"~/{name}", (30, 20))
    assert mask[:, 10:].all()
    assert not mask[:, :10].any()
    with pytest.raises(ShapeError, match="has height 30 and width 20, want those of the image, 20 and 30"):
        read_mask(f"~/{name}", (20, 30))


@pytest.mark.parametrize(
    ("level", "message"),
    [
        (0, "marks nothing, the most that a pixel is white or transparent is 0 of 255, want more than 127"),
        (128, "has no contrast, all its pixels are 128 of 255"),
        (255, "marks all of the image; leave the mask out to draw all of it from the image, or the image too"),
    ],
)
@pytest.mark.parametrize("is_alpha", [False, True])
def test_masks_that_mark_nothing_or_all_are_refused(level: int, message: str, is_alpha: bool, tmp_path: Path) -> None:
    grey = Image.new("L", (6, 4), level)
    if is_alpha:
        grey = Image.merge("LA", (Image.new("L", (6, 4)), grey.point(lambda level: 255 - level)))
    grey.save(tmp_path / "a.png")
    with pytest.raises(ValueRangeError, match=rf"^\[mask\] {tmp_path}/a\.png: {message}"):
        read_mask(str(tmp_path / "a.png"), (4, 6))


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("box:", FormatError, r"box:: is no box, want box:X,Y,WIDTH,HEIGHT .* a file of this name is written \./box:$"),
        ("box:1,2,3", FormatError, "is no box"),
        ("box:1,2,3,4,5", FormatError, "is no box"),
        ("box:-1,0,3,3", FormatError, "is no box"),
        ("box:1.5,0,3,3", FormatError, "is no box"),
        ("box:0,0,0,3", FormatError, "is no box"),
        ("box:0,0,3,0\n", FormatError, r"box:0,0,3,0\\n: is no box"),
        ("box:0,0,1,123456", FormatError, "is no box"),
        ("box:4,0,3,3", ShapeError, "reaches 7 pixels to the right and 3 down, want .* of width 6 and height 4"),
        ("box:0,2,3,3", ShapeError, "reaches 3 pixels to the right and 5 down"),
        ("box:0,0,6,4", ValueRangeError, "marks all of the image"),
    ],
)
def test_boxes_that_cannot_be_are_refused(text: str, error: type[InputError], message: str) -> None:
    with pytest.raises(error, match=rf"^\[mask\] .*{message}"):
        read_mask(text, (4, 6))


@pytest.mark.parametrize("covers", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (3, 2000), (100, 40), (512, 512)])
def test_images_of_any_shape_are_scaled_to_a_size(size: tuple[int, int], covers: bool) -> None:
    grey = np.full((*size, 3), 90, np.uint8)
    assert (prepare(grey, (48, 64), covers=covers) == np.full((48, 64, 3), 90)).all()
    assert (scale_back(np.full((48, 64, 3), 90, np.uint8), size) == grey).all()


def test_an_image_is_stretched_or_cropped_as_its_mask() -> None:
    mask: Mask = np.zeros((40, 120), bool)
    mask[10:20, 30:70] = True
    image = np.where(mask[..., None], np.array([255, 0, 0], np.uint8), np.array([0, 0, 255], np.uint8))
    for covers in (False, True):
        seen = prepare(image, (20, 20), covers=covers)[:, :, 0] > 127
        assert (seen == scale_mask(mask, (20, 20), covers=covers)).mean() >= 0.9
    assert (prepare(image, (40, 120), covers=True) == image).all()
    assert (prepare(image, (40, 120), covers=False) == image).all()
