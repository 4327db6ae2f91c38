"""Pictures are read as people see them, whatever kind of file they are in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moddit.errors import FormatError
from moddit.pictures import fit, read_picture, read_size
from moddit.record import Origin


def save_upright(path: Path, orientation: int) -> None:
    picture = Image.new("RGB", (30, 20), "blue")
    picture.paste("red", (0, 0, 30, 10))  # above, before it is turned
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
