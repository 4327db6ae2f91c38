"""What a picture shows and how it is described: one glyph on a background of one colour."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image

from recipes.emoji64.glyphs import HEIGHT, WIDTH, Glyph
from recipes.pipeline import SIDE
from recipes.vae import Pixels

BACKGROUNDS: Final[dict[str, tuple[int, int, int]]] = {
    "white": (255, 255, 255),  # is not named in captions
    "yellow": (255, 221, 87),
    "blue": (92, 164, 242),
    "green": (128, 200, 110),
    "pink": (250, 170, 200),
    "black": (28, 28, 30),
}
HELD_OUT_PERCENT: Final = 8  # of the pairs of a glyph and a background that is named
SCALES: Final = (0.39, 0.43)  # of the font's bitmaps: 50 to 55 pixels high
SHIFT: Final = 2.0  # pixels from the middle, at most
MIDDLE_SCALE: Final = sum(SCALES) / 2


@dataclass(frozen=True)
class Scene:
    """A glyph by its name, on a background by its name."""

    glyph: str
    background: str

    @property
    def is_held_out(self) -> bool:
        """Whether the pair is kept for evaluation, by a stable hash; every glyph is trained on white at least."""
        if self.background == "white":
            return False
        digest = hashlib.sha256(caption(self).encode()).digest()
        return int.from_bytes(digest[:4], "big") % 100 < HELD_OUT_PERCENT


def caption(scene: Scene, *, article: bool = True) -> str:
    """Describe a scene: "a steaming bowl", "a steaming bowl on a yellow background"; or without the first article."""
    tail = "" if scene.background == "white" else f" on a {scene.background} background"
    return f"{_article(scene.glyph) if article else ''}{scene.glyph}{tail}"


def list_scenes(names: Sequence[str], *, held_out: bool) -> list[Scene]:
    """List all scenes that are, or are not, kept for evaluation."""
    scenes = [Scene(name, background) for name in names for background in BACKGROUNDS]
    return [scene for scene in scenes if scene.is_held_out == held_out]


def render(glyph: Glyph, background: str, rng: np.random.Generator | None = None) -> Image.Image:
    """Draw a glyph on a background, 64 x 64: in the middle, or a little to a side and larger or smaller by chance."""
    scale = MIDDLE_SCALE if rng is None else float(rng.uniform(*SCALES))
    x, y = (0.0, 0.0) if rng is None else (float(shift) for shift in rng.uniform(-SHIFT, SHIFT, 2))
    size = (round(WIDTH * scale), round(HEIGHT * scale))
    small = glyph.picture.resize(size, Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (SIDE, SIDE), BACKGROUNDS[background])
    canvas.paste(small, (round((SIDE - size[0]) / 2 + x), round((SIDE - size[1]) / 2 + y)), small)
    return canvas


def draw_pictures(glyphs: Sequence[Glyph], rng: np.random.Generator, count: int) -> Pixels:
    """Draw pictures of scenes that are not kept for evaluation."""
    pictures: list[Pixels] = []
    while len(pictures) < count:
        glyph = glyphs[int(rng.integers(len(glyphs)))]
        scene = Scene(glyph.name, list(BACKGROUNDS)[int(rng.integers(len(BACKGROUNDS)))])
        if not scene.is_held_out:
            pictures.append(to_floats(render(glyph, scene.background, rng)))
    return np.stack(pictures)


def to_floats(picture: Image.Image) -> Pixels:
    """Turn a picture into numbers (H, W, 3) in 0..1."""
    return np.asarray(picture, dtype=np.float32) / np.float32(255)


def _article(name: str) -> str:
    last = name.split()[-1]
    if last.endswith("s") and not last.endswith(("ss", "us")):  # grapes, fireworks; but a glass, a cactus
        return ""
    return "an " if name[0] in "aeio" else "a "
