"""Read a picture analytically and compare it with the scene that was asked for.

The reader knows the palette and the forms, nothing else: it finds the background from the border, objects as regions of
one palette colour, and an object's form by fitting the renderer's own anti-aliased templates to its soft coverage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from recipes.shapes64.scenes import BACKGROUNDS, COLOURS, FORMS, PLACES, RADII, SIDE, Mask, Picture, Scene, cover

ATTRIBUTES: Final = ("colour", "size", "place", "form", "background", "all")
MIN_CORE: Final = 30  # pixels of one colour, edges not counted, that make an object; the smallest object drawn has 100
MIN_OVERLAP: Final = 0.75  # soft intersection over union below which an object has no form
SIZE_LIMIT: Final = (RADII["small"][1] + RADII["large"][0]) / 2  # pixels
MAX_DISTANCE: Final = 9.0  # pixels between an object and the middle of the place it is said to be at

_NAMES: Final = (*COLOURS, *BACKGROUNDS)
_PALETTE: Final = np.array([*COLOURS.values(), *BACKGROUNDS.values()], dtype=np.float32) / 255


@dataclass(frozen=True)
class Found:
    """One object read from a picture."""

    colour: str
    form: str
    x: float  # middle of the bounding box, pixels
    y: float
    radius: float  # of the circle of equal area, pixels
    overlap: float  # with the best template, 0..1

    @property
    def size(self) -> str:
        return "small" if self.radius < SIZE_LIMIT else "large"

    def distance(self, place: str) -> float:
        """Pixels from the middle of a place."""
        x, y = PLACES[place]
        return float(np.hypot(self.x - x, self.y - y))


@dataclass(frozen=True)
class Reading:
    """Everything read from a picture."""

    background: str
    found: tuple[Found, ...]


def read(picture: Picture) -> Reading:
    """Read the background and the objects of a picture (64, 64, 3) in 0..1."""
    labels = _label(picture)
    background = _read_background(labels)
    backdrop = _fit_backdrop(picture, labels, background)
    found = []
    for index, colour in enumerate(COLOURS):
        core = _erode(labels == index)
        if core.sum() >= MIN_CORE:
            found.append(_fit_object(picture, backdrop, core, colour))
    return Reading(background, tuple(found))


def score(picture: Picture, scene: Scene) -> dict[str, bool]:
    """Say for each of ATTRIBUTES whether the picture satisfies the scene; extra objects spoil "all"."""
    reading = read(picture)
    by_colour = {found.colour: found for found in reading.found}
    pairs = [(thing, by_colour.get(thing.colour)) for thing in scene.things]
    result = {
        "colour": all(found is not None for _, found in pairs),
        "size": all(found is not None and found.size == thing.size for thing, found in pairs),
        "place": all(found is not None and found.distance(thing.place) <= MAX_DISTANCE for thing, found in pairs),
        "form": all(
            found is not None and found.form == thing.form and found.overlap >= MIN_OVERLAP for thing, found in pairs
        ),
        "background": reading.background == scene.background,
    }
    result["all"] = all(result.values()) and len(reading.found) == len(scene.things)
    return result


def _label(picture: Picture) -> NDArray[np.intp]:
    distance = ((picture[:, :, None, :] - _PALETTE) ** 2).sum(-1)
    nearest: NDArray[np.intp] = distance.argmin(-1)
    return nearest


def _read_background(labels: NDArray[np.intp]) -> str:
    border = np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]])
    counts = np.bincount(border, minlength=len(_NAMES))
    return _NAMES[len(COLOURS) + int(counts[len(COLOURS) :].argmax())]


def _erode(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Keep the pixels whose four neighbours are in the mask too: drops the mixed colours along edges."""
    padded = np.pad(mask, 1)
    return mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]


def _fit_backdrop(picture: Picture, labels: NDArray[np.intp], background: str) -> Picture:
    """Fit a plane to each channel of the background's pixels and extend it under the objects."""
    core = _erode(labels == _NAMES.index(background))
    rows, columns = np.mgrid[:SIDE, :SIDE] / SIDE - 0.5
    design = np.stack([np.ones_like(rows), rows, columns], axis=-1)
    if core.sum() < MIN_CORE:
        return np.broadcast_to(np.array(BACKGROUNDS[background], np.float32) / 255, picture.shape)
    plane, *_ = np.linalg.lstsq(design[core], picture[core], rcond=None)
    backdrop: Picture = (design @ plane).astype(np.float32)
    return backdrop


def _fit_object(picture: Picture, backdrop: Picture, core: NDArray[np.bool_], colour: str) -> Found:
    coverage = _measure_coverage(picture, backdrop, core)
    rows, columns = np.nonzero(coverage > 0.5)
    if rows.size == 0:
        rows, columns = np.nonzero(core)
    x, y = (columns.min() + columns.max() + 1) / 2, (rows.min() + rows.max() + 1) / 2
    radius = float(np.sqrt(max(float(coverage.sum()), 1.0) / np.pi))
    fits = [_fit_form(coverage, form, float(x), float(y), radius) for form in FORMS]
    _, form, x, y, radius, overlap = min(fits)
    return Found(colour, form, x, y, radius, overlap)


def _measure_coverage(picture: Picture, backdrop: Picture, core: NDArray[np.bool_]) -> Mask:
    """Share of the object's colour in each pixel near the object: where between backdrop and object colour it lies."""
    span = np.median(picture[core], axis=0) - backdrop
    coverage = ((picture - backdrop) * span).sum(-1) / np.maximum((span**2).sum(-1), 1e-4)
    near = np.zeros_like(core)
    rows, columns = np.nonzero(core)
    near[max(rows.min() - 3, 0) : rows.max() + 4, max(columns.min() - 3, 0) : columns.max() + 4] = True
    return np.where(near, np.clip(coverage, 0, 1), 0).astype(np.float32)


def _fit_form(
    coverage: Mask, form: str, x: float, y: float, radius: float
) -> tuple[float, str, float, float, float, float]:
    """Search the centre and radius of one form with the least squared error, coarse then fine."""
    best = (np.inf, form, x, y, radius, 0.0)
    for step in (1.0, 0.5, 0.25):
        _, _, middle_x, middle_y, middle_radius, _ = best
        for dx in (-step, 0.0, step):
            for dy in (-step, 0.0, step):
                for dr in (-step / 2, 0.0, step / 2):
                    at = (middle_x + dx, middle_y + dy, middle_radius + dr)
                    template = cover(form, *at)
                    error = float(((coverage - template) ** 2).sum())
                    if error < best[0]:
                        overlap = np.minimum(coverage, template).sum() / np.maximum(coverage, template).sum()
                        best = (error, form, *at, float(overlap))
    return best
