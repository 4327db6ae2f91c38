"""Pictures of files as a model sees them: upright, in red, green and blue of 8 bits, cut to a size.

As PixArt's own feature extraction, a picture is scaled to cover its size and cropped. Colours are taken as they are
stored: colour profiles are not applied, as there. This is the core's only module that needs Pillow, which the packages
that use it bring; nothing else in the core imports it.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import IO, Final

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from moddit.bins import Size
from moddit.edits import cover
from moddit.errors import FormatError
from moddit.record import Origin, escape

SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp")
_FORMATS: Final = ("PNG", "JPEG", "WEBP")  # Pillow would go by the content, and run other programs for some
_SIDEWAYS: Final = (5, 6, 7, 8)  # EXIF orientations that exchange height and width
_HIGHEST: Final = 257  # 65535 / 255
# Of Pillow's readers, which check little.
_ERRORS: Final = (
    *(OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError, OverflowError, struct.error, zlib.error),
    Image.DecompressionBombError,
)

Opener = Callable[[], AbstractContextManager[IO[bytes]]]


def read_size(opener: Opener, origin: Origin) -> Size:
    """Read height and width of a picture as it is seen; its pixels are left alone. Raises as `read_picture`."""
    with _opened(opener, origin) as picture:
        return _seen_size(picture)


def read_picture(opener: Opener, origin: Origin) -> Image.Image:
    """Read a picture: turned as its EXIF says, 16 bits rounded to 8, what is transparent on white.

    Raises FormatError, which names `origin`, if it is none, damaged, too large or unreadable.
    """
    with _opened(opener, origin) as found:
        return _to_rgb(_upright(found))


def fit(picture: Image.Image, height: int, width: int, place: float = 0.5) -> Image.Image:
    """Scale a picture to cover height x width, and crop what stands out: equally on both sides at place 0.5, all of it
    at one of them at 0 or 1. What is cropped takes no memory, whatever the picture's shape.
    """
    scaled = cover((picture.height, picture.width), (height, width))
    top, left = int((scaled[0] - height) * place), int((scaled[1] - width) * place)
    down, right = picture.height / scaled[0], picture.width / scaled[1]  # pixels of the picture for one of the result
    box = (left * right, top * down, (left + width) * right, (top + height) * down)
    return picture.resize((width, height), Image.Resampling.LANCZOS, box)


@contextmanager
def _opened(opener: Opener, origin: Origin) -> Iterator[Image.Image]:
    try:
        with opener() as file, _open_known(file) as picture:
            yield picture
    except _ERRORS as error:
        reason = "neither PNG nor JPEG nor WebP" if isinstance(error, UnidentifiedImageError) else escape(str(error))
        raise FormatError(f"{origin}: cannot read the picture ({reason}){origin.end}") from None


def _open_known(file: IO[bytes]) -> Image.Image:
    with warnings.catch_warnings():  # of what is large, but not yet refused
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(file, formats=_FORMATS)


def _seen_size(picture: Image.Image) -> Size:
    is_told = picture.format != "PNG" or "exif" in picture.info  # for which Pillow would decode all of a PNG
    is_sideways = is_told and picture.getexif().get(ExifTags.Base.Orientation) in _SIDEWAYS
    return (picture.width, picture.height) if is_sideways else (picture.height, picture.width)


def _upright(found: Image.Image) -> Image.Image:
    picture = ImageOps.exif_transpose(found)
    if not picture.mode.startswith("I"):
        return picture
    # 16 bits, which Pillow would cut at 255
    values = (np.asarray(picture).astype(np.int64) + _HIGHEST // 2) // _HIGHEST
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")
