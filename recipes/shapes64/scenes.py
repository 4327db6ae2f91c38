"""Scenes of the recipe: what is in a picture, how it is drawn and how it is described.

A scene has a background and one or two objects; an object has a size, a colour, a form and a place. Objects of the
same size have the same area whatever their form, so that form is never given away by area.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.float32]  # (64, 64, 3), RGB in 0..1
Mask = NDArray[np.float32]  # coverage of each pixel in 0..1

SIDE: Final = 64  # pixels
COLOURS: Final[dict[str, tuple[int, int, int]]] = {
    "red": (215, 40, 40),
    "green": (40, 165, 60),
    "blue": (50, 100, 235),
    "yellow": (245, 215, 40),
    "purple": (140, 50, 175),
    "orange": (245, 130, 25),
    "cyan": (60, 210, 225),
    "pink": (250, 140, 190),
}
BACKGROUNDS: Final[dict[str, tuple[int, int, int]]] = {
    "white": (240, 240, 240),
    "gray": (128, 128, 128),
    "black": (14, 14, 14),
    "beige": (212, 194, 160),
    "navy": (18, 24, 82),
}
FORMS: Final = ("circle", "square", "triangle", "cross")
RADII: Final[dict[str, tuple[float, float]]] = {  # of the circle of equal area, pixels
    "small": (7.5, 8.3),
    "large": (11.4, 12.2),
}
PLACES: Final[dict[str, tuple[float, float]]] = {  # middle of the object's bounding box (x, y), pixels
    "left": (16.0, 32.0),
    "right": (48.0, 32.0),
    "top": (32.0, 16.0),
    "bottom": (32.0, 48.0),
    "center": (32.0, 32.0),
}
PHRASES: Final[dict[str, str]] = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "center": "in the center",
}
PAIRS: Final = (("left", "right"), ("top", "bottom"))
SINGLE_SHARE: Final = 0.35  # of the scenes have one object
REVERSED_SHARE: Final = 0.25  # of the captions name the right or bottom object first
HELD_OUT_PERCENT: Final = 5
COLOUR_JITTER: Final = 8.0  # levels of 255
GRADIENT: Final = 0.1  # the background changes by this share of itself from the middle to an edge

_SQUARE: Final = math.sqrt(math.pi) / 2  # half side
_TRIANGLE: Final = math.sqrt(2 * math.pi)  # base and height
_CROSS_ARM: Final = math.sqrt(math.pi / 2.56)  # half length; 8 L w - 4 w^2 = pi r^2 with w = 0.4 L
_CROSS_WIDTH: Final = 0.4  # half thickness as a share of the half length


@dataclass(frozen=True)
class Thing:
    """One object of a scene."""

    size: str
    colour: str
    form: str
    place: str


@dataclass(frozen=True)
class Scene:
    """A background and one or two things, left before right and top before bottom."""

    background: str
    things: tuple[Thing, ...]

    @property
    def is_held_out(self) -> bool:
        """Whether the scene is kept for evaluation, by a stable hash: no wording of it is trained on."""
        digest = hashlib.sha256(caption(self).encode()).digest()
        return int.from_bytes(digest[:4], "big") % 100 < HELD_OUT_PERCENT


def caption(scene: Scene, *, wording: int = 0, reverse: bool = False) -> str:
    """Describe a scene in the recipe's grammar.

    Args:
        scene: what to describe.
        wording: 0 for "..., gray background", 1 for "... on a gray background".
        reverse: name the second thing first.
    """
    things = scene.things[::-1] if reverse else scene.things
    parts = [f"a {thing.size} {thing.colour} {thing.form} {PHRASES[thing.place]}" for thing in things]
    tail = f" on a {scene.background} background" if wording else f", {scene.background} background"
    return " and ".join(parts) + tail


def parse(text: str) -> Scene:
    """Read a caption of the grammar back into a scene.

    Raises:
        ValueError: if the text is not of the grammar.
    """
    words = text.lower().replace(",", " on a").split()
    if len(words) < 4 or words[-4:-2] != ["on", "a"] or words[-1] != "background" or words[-2] not in BACKGROUNDS:
        raise ValueError(f"[shapes64] caption has no background, got {text!r}, want '..., gray background'")
    places = {phrase: place for place, phrase in PHRASES.items()}
    things = []
    for part in " ".join(words[:-4]).split(" and "):
        match part.split():
            case ["a", size, colour, form, *rest] if " ".join(rest) in places:
                things.append(Thing(size, colour, form, places[" ".join(rest)]))
            case _:
                raise ValueError(f"[shapes64] cannot read the object {part!r}, want 'a small red circle on the left'")
    order = list(PLACES)
    return Scene(words[-2], tuple(sorted(things, key=lambda thing: order.index(thing.place))))


def draw_scene(rng: np.random.Generator, *, held_out: bool | None = None) -> Scene:
    """Draw a random scene; `held_out` asks for one that is (not) kept for evaluation."""
    while True:
        places = (_pick(rng, list(PLACES)),) if rng.random() < SINGLE_SHARE else PAIRS[int(rng.integers(2))]
        colours = rng.permutation(list(COLOURS))[: len(places)]
        things = tuple(
            Thing(_pick(rng, list(RADII)), str(colour), _pick(rng, FORMS), place)
            for colour, place in zip(colours, places, strict=True)
        )
        scene = Scene(_pick(rng, list(BACKGROUNDS)), things)
        if held_out is None or scene.is_held_out == held_out:
            return scene


def draw_caption(rng: np.random.Generator, scene: Scene) -> str:
    """Describe a scene with a random wording and order."""
    return caption(scene, wording=int(rng.integers(2)), reverse=bool(rng.random() < REVERSED_SHARE))


def cover(form: str, x: float, y: float, radius: float, side: int = SIDE) -> Mask:
    """Render one form, anti-aliased, as the coverage of each pixel.

    Args:
        form: one of FORMS.
        x: middle of the bounding box, pixels from the left.
        y: the same from the top.
        radius: of the circle of equal area, pixels.
        side: height and width of the result, pixels.

    Returns:
        coverage (side, side) in 0..1.
    """
    axis = np.arange(side, dtype=np.float32) + 0.5
    dx, dy = np.abs(axis - x)[None, :], (axis - y)[:, None]
    if form == "circle":
        distance = np.hypot(dx, dy) - radius
    elif form == "square":
        distance = np.maximum(dx, np.abs(dy)) - _SQUARE * radius
    elif form == "triangle":
        half = _TRIANGLE * radius / 2
        flank = (2 * dx - (dy + half)) / math.sqrt(5)  # from (0, -half) to (half, half): slope 2
        distance = np.maximum(flank, dy - half)
    elif form == "cross":
        long, short = _CROSS_ARM * radius, _CROSS_ARM * _CROSS_WIDTH * radius
        tall = np.maximum(dx - short, np.abs(dy) - long)
        wide = np.maximum(dx - long, np.abs(dy) - short)
        distance = np.minimum(tall, wide)
    else:
        raise ValueError(f"[shapes64] unknown form, got {form!r}, want one of {FORMS}")
    coverage: Mask = np.clip(0.5 - distance, 0, 1).astype(np.float32)
    return coverage


def half_extent(form: str, radius: float) -> float:
    """Half the larger side of a form's bounding box, pixels."""
    factor = {"circle": 1.0, "square": _SQUARE, "triangle": _TRIANGLE / 2, "cross": _CROSS_ARM}[form]
    return factor * radius


def render(scene: Scene, rng: np.random.Generator) -> Picture:
    """Draw a scene: exact sizes, positions, colours and the background's gradient are random within their class."""
    picture = _draw_background(scene.background, rng)
    for thing in scene.things:
        radius = float(rng.uniform(*RADII[thing.size]))
        extent = half_extent(thing.form, radius)
        x, y = (_jitter(rng, middle, extent) for middle in PLACES[thing.place])
        mask = cover(thing.form, x, y, radius)[..., None]
        colour = (np.array(COLOURS[thing.colour]) + rng.uniform(-COLOUR_JITTER, COLOUR_JITTER, 3)) / 255
        picture = (picture * (1 - mask) + mask * colour).astype(np.float32)
    return np.clip(picture, 0, 1).astype(np.float32)


def _pick(rng: np.random.Generator, names: tuple[str, ...] | list[str]) -> str:
    return names[int(rng.integers(len(names)))]


def _jitter(rng: np.random.Generator, middle: float, extent: float) -> float:
    """Move a coordinate by up to 3 pixels, as far as the object stays in its half (or near the middle)."""
    room = 16.0 - extent if middle != 32.0 else 3.0
    return middle + float(rng.uniform(-1, 1)) * min(3.0, max(0.0, room))


def _draw_background(name: str, rng: np.random.Generator) -> Picture:
    colour = (np.array(BACKGROUNDS[name]) + rng.uniform(-COLOUR_JITTER, COLOUR_JITTER, 3)) / 255
    axis = (np.arange(SIDE) + 0.5) / (SIDE / 2) - 1
    angle, strength = rng.uniform(0, 2 * math.pi), rng.uniform(0, GRADIENT)
    slope = strength * (math.cos(angle) * axis[None, :] + math.sin(angle) * axis[:, None])
    return np.clip(colour * (1 + slope[..., None]), 0, 1).astype(np.float32)
