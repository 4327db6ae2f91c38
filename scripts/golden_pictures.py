"""Pictures and what becomes of them, for the golden files of the Swift package."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from moddit.bins import Size

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


def make_resized() -> list[dict[str, Any]]:
    """Scale pictures with Pillow's LANCZOS."""
    found = []
    for source, (height, width), box in RESIZED:
        scaled = Image.fromarray(pattern(*source)).resize((width, height), Image.Resampling.LANCZOS, box)
        size = {"height": source[0], "width": source[1], "box": [] if box is None else list(box)}
        found.append({**size, "wanted": [height, width], "pixels": np.asarray(scaled).reshape(-1).tolist()})
    return found


def pattern(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Make a picture that is no picture of anything, of whole numbers alone. Shapes: -> (H, W, 3)."""
    rows, columns, channels = np.ogrid[:height, :width, :3]
    values = 37 * columns + 101 * rows + 53 * channels + 11 * rows * columns + 71 * seed
    return (values % 256).astype(np.uint8)
