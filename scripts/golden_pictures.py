"""Pictures and what becomes of them, for the golden files of the Swift package."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps

from moddit import edits
from moddit.bins import Size
from moddit.pictures import fit

# Height and width of a picture, those it is scaled to, and the part of it that is taken: left, top, right, bottom.
RESIZED: Final[tuple[tuple[Size, Size, tuple[float, float, float, float] | None], ...]] = (
    ((9, 7), (9, 7), None),
    ((9, 7), (4, 3), None),
    ((5, 6), (13, 16), None),
    ((1, 1), (3, 2), None),
    ((40, 3), (2, 7), None),
    ((12, 12), (5, 12), None),
    ((12, 17), (12, 8), (0, 0, 17, 12)),
    ((12, 17), (6, 6), (2.5, 0, 14.5, 12)),
    ((21, 10), (8, 8), (0, 5.1, 10, 15.6)),
)
# Height and width of a picture, and of what is drawn.
COVERED: Final[tuple[tuple[Size, Size], ...]] = (
    ((9, 14), (8, 8)),
    ((14, 9), (8, 8)),
    ((5, 7), (12, 16)),
    ((30, 8), (4, 8)),
)
SCALED_MASKS: Final = ((8, 8), (12, 16), (4, 12))  # height and width, multiples of DOWNSCALE
DOWNSCALE: Final = 4
BRIGHTER: Final = 9  # levels


def make_resized() -> list[dict[str, Any]]:
    """Scale pictures with Pillow's LANCZOS; of the results the digests, as below."""
    found = []
    for source, (height, width), box in RESIZED:
        scaled = Image.fromarray(pattern(*source)).resize((width, height), Image.Resampling.LANCZOS, box)
        size = {"height": source[0], "width": source[1], "box": [] if box is None else list(box)}
        found.append({**size, "wanted": [height, width], "digest": edits.image_digest(np.asarray(scaled))})
    return found


def pattern(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Make a picture that is no picture of anything, of whole numbers alone. Shapes: -> (H, W, 3)."""
    rows, columns, channels = np.ogrid[:height, :width, :3]
    values = 37 * columns + 101 * rows + 53 * channels + 11 * rows * columns + 71 * seed
    return (values % 256).astype(np.uint8)


def make_covered() -> list[dict[str, Any]]:
    """Scale pictures until they cover a size, and crop them."""
    found = []
    for source, wanted in COVERED:
        scaled = np.asarray(fit(Image.fromarray(pattern(*source)), *wanted))
        found.append({"source": list(source), "wanted": list(wanted), "digest": edits.image_digest(scaled)})
    return found


def make_on_white() -> str:
    """Lay every grey of every opacity on white, rows of one grey; of the result the digest."""
    pixels = np.empty((256, 256, 4), np.uint8)
    pixels[..., :3] = np.arange(256)[:, None, None]
    pixels[..., 3] = np.arange(256)
    white = Image.new("RGBA", (256, 256), "white")
    return edits.image_digest(np.asarray(Image.alpha_composite(white, Image.fromarray(pixels)).convert("RGB")))


def make_upright() -> list[str]:
    """Turn a picture as each of EXIF's orientations says; of the results the digests."""
    found = []
    for orientation in range(1, 9):
        picture = Image.fromarray(pattern(3, 5))
        picture.getexif()[ExifTags.Base.Orientation] = orientation
        found.append(edits.image_digest(np.asarray(ImageOps.exif_transpose(picture))))
    return found


def make_edits() -> list[dict[str, Any]]:
    """Scale masks, and paste two drawn pictures where they mark: one a little brighter, and another one."""
    found = []
    for mask in make_masks():
        height, width = mask.shape
        image, other = pattern(height, width), pattern(height, width, seed=1)
        brighter = np.minimum(image, 255 - BRIGHTER) + np.uint8(BRIGHTER)
        finished = [edits.image_digest(edits.finish(image, drawn, mask)) for drawn in (brighter, other)]
        scaled = [_scale(mask, size, covers) for size in SCALED_MASKS for covers in (False, True)]
        digests = [edits.image_digest(image), edits.mask_digest(mask)]
        size = {"height": height, "width": width, "mask": _digits(mask)}
        found.append({**size, "digests": digests, "scaled": scaled, "finished": finished})
    return found


def make_masks() -> list[NDArray[np.bool_]]:
    """Mark a box inside, one at a corner, a line, scattered pixels, and a thick cross."""
    rows, columns = np.ogrid[:17, :20]
    boxes = [(abs(rows - 8) < 5) & (abs(columns - 9) < 6), (rows < 7) & (columns > 13)]
    line, scattered = (rows == 9) & (columns > 2), (rows * rows + 3 * columns) % 7 == 0
    return [*boxes, line, scattered, (abs(rows - 8) < 3) | (abs(columns - 9) < 4), (rows == 8) & (columns == 10)]


def _scale(mask: NDArray[np.bool_], size: Size, covers: bool) -> list[Any]:
    scaled = edits.scale_mask(mask, size, covers=covers)
    return [*size, covers, _digits(scaled), _digits(edits.latent_mask(scaled, DOWNSCALE))]


def _digits(mask: NDArray[Any]) -> str:
    return "".join("1" if value else "0" for value in mask.reshape(-1))
