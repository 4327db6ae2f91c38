"""Pictures of files as a model sees them: upright, in red, green and blue of 8 bits, cut to a size.

As PixArt's own feature extraction, a picture is scaled to cover its size and cropped. Colours are taken as they are
stored: colour profiles are not applied, as there.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import IO, Final

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from moddit.bins import Size
from moddit.errors import FormatError

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


def read_size(opener: Opener, where: str) -> Size:
    """Read height and width of a picture as it is seen; its pixels are left alone. Raises as `read_picture`."""
    with _opened(opener, where) as picture:
        is_told = picture.format != "PNG" or "exif" in picture.info  # for which Pillow would decode all of a PNG
        is_sideways = is_told and picture.getexif().get(ExifTags.Base.Orientation) in _SIDEWAYS
        return (picture.width, picture.height) if is_sideways else (picture.height, picture.width)


def read_picture(opener: Opener, where: str) -> Image.Image:
    """Read a picture: turned as its EXIF says, 16 bits rounded to 8, what is transparent on white.

    Raises FormatError, which names `where`, if it is none, damaged, too large or unreadable.
    """
    with _opened(opener, where) as found:
        picture = ImageOps.exif_transpose(found)
        if picture.mode.startswith("I"):  # 16 bits, which Pillow would cut at 255
            values = (np.asarray(picture).astype(np.int64) + _HIGHEST // 2) // _HIGHEST
            picture = Image.fromarray(values.clip(0, 255).astype(np.uint8))
        if picture.has_transparency_data:
            picture = picture.convert("RGBA")
            picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
        return picture.convert("RGB")


def fit(picture: Image.Image, height: int, width: int, place: float = 0.5) -> Image.Image:
    """Scale a picture to cover height x width, and crop what stands out: equally on both sides at place 0.5, all of it
    at one of them at 0 or 1.
    """
    scale = max(width / picture.width, height / picture.height)
    size = (max(width, round(picture.width * scale)), max(height, round(picture.height * scale)))
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    left, top = int((size[0] - width) * place), int((size[1] - height) * place)
    return picture.crop((left, top, left + width, top + height))


def to_pixels(picture: Image.Image) -> Tensor:
    """Turn a picture into what a VAE takes. Shapes: -> (3, H, W), -1..1."""
    return torch.from_numpy(np.asarray(picture, dtype=np.float32) / 127.5 - 1.0).permute(2, 0, 1)


@contextmanager
def _opened(opener: Opener, where: str) -> Iterator[Image.Image]:
    try:
        with opener() as file, Image.open(file, formats=_FORMATS) as picture:
            yield picture
    except _ERRORS as error:
        reason = "neither PNG nor JPEG nor WebP" if isinstance(error, UnidentifiedImageError) else error
        raise FormatError(f"[data] {where}: cannot read the picture ({reason}); replace it or take it out") from None
