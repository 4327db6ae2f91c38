"""Pictures of files as a model sees them: upright, in red, green and blue of 8 bits, cut to a size; and masks of them.

As PixArt's own feature extraction, a picture is scaled to cover its size and cropped. Colours are taken as they are
stored: colour profiles are not applied, as there, but an edit's result has that of its image. This is the core's only
module that needs Pillow, which the packages that use it bring; nothing else in the core imports it.
"""

from __future__ import annotations

import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from moddit.bins import Size
from moddit.bounds import PIXELS, SIDE
from moddit.edits import (
    Edit,
    Mask,
    Pixels,
    cover,
    crop_window,
    finish,
    image_digest,
    mask_digest,
    scale_mask,
    working_size,
)
from moddit.errors import FormatError, ShapeError, UnsupportedError, ValueRangeError
from moddit.paths import expand
from moddit.record import Origin, absent_file, escape, open_regular
from moddit.spec import ModelSpec

SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp")
_FORMATS: Final = ("PNG", "JPEG", "WEBP")  # Pillow would go by the content, and run other programs for some
_SIDEWAYS: Final = (5, 6, 7, 8)  # EXIF orientations that exchange height and width
_HIGHEST: Final = 257  # 65535 / 255
_HALF: Final = 127  # of 255; what is above is marked
_BOX: Final = "box:"
_BOX_NUMBERS: Final = re.compile(_BOX + ",".join(2 * ["([0-9]{1,5})"] + 2 * ["([1-9][0-9]{0,4})"]))
_ADVICE: Final = f"export it as PNG, JPEG or WebP of at most {PIXELS} pixels"
# Of Pillow's readers, which check little.
_ERRORS: Final = (
    *(OSError, SyntaxError, ValueError, TypeError, EOFError, LookupError, OverflowError, struct.error, zlib.error),
    Image.DecompressionBombError,
)

ImageLike = str | Path | Image.Image | NDArray[Any]  # a file, or pixels
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


def read_image(path: Path) -> Pixels:
    """Read the picture that an edit starts from, as `read_picture`; of an animation the first frame.

    Shapes:
        -> (H, W, 3)

    Raises:
        MissingError: there is no such file.
        FormatError: it is no picture, damaged or unreadable.
        ValueRangeError: it is too large, which is found before its pixels are decoded.
    """
    return np.asarray(_read_rgb(path))


def read_mask(text: str, image_size: Size) -> Mask:
    """Read what of an image is drawn anew, from a file or as a box.

    A file is a picture of the image's size. What is transparent in it is drawn anew, as editors of images export it; if
    nothing is, what is white, and of greys what is above half.

    Shapes:
        -> (H, W) of `image_size`

    Args:
        text: the file's path, or "box:X,Y,WIDTH,HEIGHT", whole pixels of the image, from its left and its top.
        image_size: height and width of the image, pixels.

    Raises:
        MissingError: there is no such file.
        FormatError: it is no picture, damaged or unreadable; or the box is none.
        ShapeError: the file has another size than the image, or the box reaches outside.
        ValueRangeError: the file is too large or has no contrast; nothing of the image is marked, or all of it.
    """
    origin = Origin("mask", text, _ADVICE)
    mask = _parse_box(text, image_size, origin) if text.startswith(_BOX) else _read_mask_file(text, image_size, origin)
    _check_marks(mask, origin)
    return mask


def prepare(image: Pixels, size: Size, *, covers: bool) -> Pixels:
    """Scale an image to the size to draw at: until it covers it, and crop equally on both sides, or stretch it.

    As in diffusers' image processor with Lanczos' filter. Shapes: (H, W, 3) -> (height, width, 3) of `size`.
    """
    picture = Image.fromarray(image)
    scaled = fit(picture, *size) if covers else picture.resize(size[::-1], Image.Resampling.LANCZOS)
    return np.asarray(scaled)


def scale_back(drawn: Pixels, size: Size) -> Pixels:
    """Scale what was drawn to the size of the image that it is pasted into. Shapes: as `prepare`."""
    return prepare(drawn, size, covers=False)


def _parse_box(text: str, image_size: Size, origin: Origin) -> Mask:
    found = _BOX_NUMBERS.fullmatch(text)
    if found is None:
        raise FormatError(
            f"{origin}: is no box, want box:X,Y,WIDTH,HEIGHT in whole pixels from the image's left and top, WIDTH and "
            f"HEIGHT at least 1, such as box:16,8,32,24; a file of this name is written ./{escape(text)}"
        )
    left, top, width, height = map(int, found.groups())
    if left + width > image_size[1] or top + height > image_size[0]:
        raise ShapeError(
            f"{origin}: reaches {left + width} pixels to the right and {top + height} down, want a box inside the "
            f"image, of width {image_size[1]} and height {image_size[0]}"
        )
    mask = np.zeros(image_size, np.bool_)
    mask[top : top + height, left : left + width] = True
    return mask


def _read_mask_file(text: str, image_size: Size, origin: Origin) -> Mask:
    with _bounded(expand(text), origin) as picture:
        size = (picture.height, picture.width)
        if size != image_size:
            raise ShapeError(
                f"{origin}: has height {size[0]} and width {size[1]}, want those of the image, {image_size[0]} and "
                f"{image_size[1]}"
            )
        levels = _to_levels(picture)
    low, high = int(levels.min()), int(levels.max())
    if 0 < low == high < 255:
        raise ValueRangeError(f"{origin}: has no contrast, all its pixels are {high} of 255; want white on black")
    if high <= _HALF:
        raise ValueRangeError(
            f"{origin}: marks nothing, the most that a pixel is white or transparent is {high} of 255, want more than "
            f"{_HALF} where the image is drawn anew"
        )
    return levels > _HALF


def _to_levels(picture: Image.Image) -> NDArray[np.uint8]:
    """Say how much each pixel is marked. Shapes: -> (H, W), 0..255."""
    if picture.has_transparency_data:
        opaque = np.asarray(picture.convert("RGBA").getchannel("A"))
        if opaque.min() < 255:
            return 255 - opaque
    return np.asarray(picture.convert("L"))


def _read_rgb(path: Path) -> Image.Image:
    with _bounded(path, Origin("image", str(path), _ADVICE)) as picture:
        return _to_rgb(picture)


@contextmanager
def _bounded(path: Path, origin: Origin) -> Iterator[Image.Image]:
    """Open a file of bounded size, and turn it upright."""
    with _opened(partial(_open_file, path, origin), origin) as found:
        if found.width * found.height > PIXELS or max(found.size) > SIDE:
            raise ValueRangeError(
                f"{origin}: has height {found.height} and width {found.width}, want at most {PIXELS} pixels, and "
                f"{SIDE} a side; make it smaller"
            )
        yield _upright(found)


def _open_file(path: Path, origin: Origin) -> IO[bytes]:
    try:
        return open(path, "rb", opener=open_regular)
    except (FileNotFoundError, NotADirectoryError):
        raise absent_file(path, origin, "want a picture") from None


@contextmanager
def _opened(opener: Opener, origin: Origin) -> Iterator[Image.Image]:
    try:
        with opener() as file, _open_known(file) as picture:
            yield picture
    except _ERRORS as error:
        raise FormatError(f"{origin}: cannot read the picture ({_explain(error)}){origin.end}") from None


def _explain(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "neither PNG nor JPEG nor WebP"
    return escape(getattr(error, "strerror", None) or str(error))


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
    """Turn a picture into red, green and blue, with its colour profile if that was of these already."""
    profile = picture.info.get("icc_profile") if picture.mode in ("RGB", "RGBA", "P") else None
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    picture = picture.convert("RGB")
    picture.info["icc_profile"] = profile
    return picture


def open_edit(
    spec: ModelSpec,
    image: ImageLike | None,
    mask: ImageLike | None = None,
    *,
    height: int | None = None,
    width: int | None = None,
    padding_mask_crop: int | None = None,
) -> Edit | None:
    """Open the image that an edit starts from, and the mask of what is drawn anew; None if there is neither.

    Without height and width the image is drawn in `working_size`, to which it is stretched by less than a patch, and
    what is drawn by a mask is pasted into the image as it is. Of another size it is scaled to cover it, and cropped.

    Args:
        spec: of the model.
        image: a file; or pixels, (H, W, 3) uint8 or Pillow's.
        mask: a file or box as `read_mask` takes it; or pixels, (H, W) bool or Pillow's.
        height: of what is drawn, pixels; of one side the other follows.
        width: likewise.
        padding_mask_crop: draw nothing but a square around what the mask marks, with so many pixels around it: small
            things in large images get all of the model's pixels. None draws the whole image.

    Raises:
        UnsupportedError: a mask without an image, a crop without a mask, or with another size than its own.
        ValueRangeError: height and width that no request can have.
        InputError: as `read_image`, `read_mask` and `scale_mask`.
    """
    if mask is None and padding_mask_crop is not None:
        raise UnsupportedError("[request] padding_mask_crop without a mask, around which it crops; give one")
    if image is None:
        if mask is not None:
            raise UnsupportedError("[request] mask without an image, of which it marks what to draw anew; give one")
        return None
    whole, profile = _take_image(image)
    marked = None if mask is None else _take_mask(mask, _size(whole))
    digests = image_digest(whole), None if marked is None else mask_digest(marked)
    window = np.s_[:, :] if padding_mask_crop is None or marked is None else crop_window(marked, padding_mask_crop)
    natural = working_size(_size(whole[window]), spec.default_side, spec.pixels_per_patch)
    size = _complete_size(natural, spec.pixels_per_patch, height, width)
    if size != natural and padding_mask_crop is not None:
        raise UnsupportedError(
            f"[request] height {size[0]} and width {size[1]} with padding_mask_crop, whose square is drawn at "
            f"{natural[0]}x{natural[1]}; leave one of them out"
        )
    if size != natural:
        whole = prepare(whole, size, covers=True)
        marked = None if marked is None else scale_mask(marked, size, covers=True)
    start = prepare(whole[window], size, covers=False)
    start_mask = None if marked is None else scale_mask(marked[window], size, covers=False)
    return Edit(whole, marked, *digests, window, padding_mask_crop, start, start_mask, profile)


def finish_edit(edit: Edit, drawn: Pixels) -> Pixels:
    """Give the result of an edit: what was drawn, or where there is a mask the image with what was drawn in it.

    Shapes: drawn (*edit.size, 3) -> (H, W, 3)
    """
    if edit.mask is None:
        return drawn
    old, result = edit.image[edit.window], edit.image.copy()
    result[edit.window] = finish(old, scale_back(drawn, _size(old)), edit.mask[edit.window])
    return result


def _take_image(image: ImageLike) -> tuple[Pixels, bytes | None]:
    """Give pixels and colour profile."""
    if isinstance(image, str | Path):
        image = _read_rgb(expand(str(image)))
    elif isinstance(image, Image.Image):
        image = _to_rgb(_upright(image))
    if isinstance(image, Image.Image):
        return np.asarray(image), image.info["icc_profile"]
    image = np.asarray(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ShapeError(f"[image] an array of {image.dtype} {image.shape}, want uint8 (height, width, 3)")
    return image, None


def _take_mask(mask: ImageLike, image_size: Size) -> Mask:
    if isinstance(mask, str | Path):
        return read_mask(str(mask), image_size)
    marked = _to_levels(_upright(mask)) > _HALF if isinstance(mask, Image.Image) else np.asarray(mask)
    if marked.dtype != np.bool_ or marked.shape != image_size:
        raise ShapeError(f"[mask] an array of {marked.dtype} {marked.shape}, want bool {image_size} as the image")
    _check_marks(marked, Origin("mask", "the array"))
    return marked


def _check_marks(mask: Mask, origin: Origin) -> None:
    if not mask.any():
        raise ValueRangeError(f"{origin}: marks nothing, want true where the image is drawn anew")
    if mask.all():
        raise ValueRangeError(
            f"{origin}: marks all of the image; leave the mask out to draw all of it from the image, or the image too"
        )


def _complete_size(natural: Size, unit: int, height: int | None, width: int | None) -> Size:
    """Find the sides that are not given from those that are, in the shape of the image.

    Raises ValueRangeError for what no request can have, before memory is taken for it.
    """
    if height is None and width is None:
        return natural
    if height is None:
        height = max(1, round((width or 0) * natural[0] / natural[1] / unit)) * unit
    if width is None:
        width = max(1, round(height * natural[1] / natural[0] / unit)) * unit
    if not (1 <= height <= SIDE and 1 <= width <= SIDE and height * width <= PIXELS):
        raise ValueRangeError(
            f"[request] height {height} and width {width} of an edit are out of range, want 1..{SIDE} and at most "
            f"{PIXELS} pixels"
        )
    return height, width


def _size(pixels: Pixels) -> Size:
    height, width, _ = pixels.shape
    return height, width
