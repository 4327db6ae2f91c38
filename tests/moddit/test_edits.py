"""Edits: sizes near an image's shape, masks that lose nothing on their way down, and a drawn part that fits in."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moddit import edits
from moddit.bins import Size
from moddit.bounds import SIDE
from moddit.edits import Mask, Pixels, fill
from moddit.errors import ValueRangeError

SIDES = st.integers(1, 40)
SEEDS = st.integers(0, 2**32 - 1)


def noise(height: int, width: int, seed: int = 0, low: int = 0, high: int = 256) -> Pixels:
    return np.random.default_rng(seed).integers(low, high, (height, width, 3)).astype(np.uint8)


def boxed(size: Size, top: int, left: int, height: int, width: int) -> Mask:
    mask = np.zeros(size, bool)
    mask[top : top + height, left : left + width] = True
    return mask


def scattered(height: int, width: int, seed: int) -> Mask:
    chance = np.random.default_rng(seed)
    return chance.random((height, width)) < chance.random()


def test_digests_are_of_size_and_pixels() -> None:
    image = noise(2, 3)
    assert edits.image_digest(image) == hashlib.sha256(b"2x3\n" + image.tobytes()).hexdigest()
    assert edits.image_digest(image.reshape(3, 2, 3)) != edits.image_digest(image)
    assert edits.image_digest(image[:, ::-1]) != edits.image_digest(image)
    mask = boxed((2, 3), 0, 0, 1, 2)
    assert edits.mask_digest(mask) == hashlib.sha256(b"2x3\n\1\1\0\0\0\0").hexdigest()
    assert edits.mask_digest(mask.T.copy().T) == edits.mask_digest(mask)  # however it lies in memory


@pytest.mark.parametrize(
    ("image", "side", "unit", "wanted"),
    [
        ((64, 64), 64, 16, (64, 64)),
        ((1, 1), 1024, 16, (1024, 1024)),
        ((3000, 4000), 512, 16, (448, 592)),  # 443.4 x 591.2
        ((1080, 1920), 1024, 16, (768, 1360)),  # 768 x 1365.3
        ((1920, 1080), 1024, 16, (1360, 768)),
        ((1, 10_000), 64, 16, (16, 256)),
        ((10_000, 1), 1024, 16, (SIDE, 64)),
    ],
)
def test_the_working_size_has_the_image_s_shape_and_the_model_s_area(
    image: Size, side: int, unit: int, wanted: Size
) -> None:
    assert edits.working_size(image, side, unit) == wanted


@given(st.integers(1, SIDE), st.integers(1, SIDE), st.integers(1, 128), st.sampled_from([8, 16, 32]))
def test_working_sizes_are_made_of_whole_patches(height: int, width: int, patches: int, unit: int) -> None:
    side = patches * unit
    rows, columns = edits.working_size((height, width), side, unit)
    assert 0 < rows <= SIDE
    assert 0 < columns <= SIDE
    assert rows % unit == columns % unit == 0
    ratio = np.sqrt(height / width)
    if unit <= side * min(ratio, 1 / ratio) and side * max(ratio, 1 / ratio) <= SIDE:
        assert max(abs(rows - side * ratio), abs(columns - side / ratio)) <= unit / 2 + 1e-6


@pytest.mark.parametrize("covers", [False, True])
def test_thin_strokes_survive_scaling(covers: bool) -> None:
    for row in range(96):
        scaled = edits.scale_mask(boxed((96, 96), row, 0, 1, 96), (8, 8), covers=covers)
        assert scaled.all(axis=1).tolist() == [row // 12 == index for index in range(8)]
    assert edits.scale_mask(boxed((1, 9), 0, 4, 1, 1), (8, 3), covers=False).tolist() == 8 * [[False, True, False]]


@given(SIDES, SIDES, SIDES, SIDES, SEEDS)
def test_a_pixel_that_covers_any_is_masked(height: int, width: int, rows: int, columns: int, seed: int) -> None:
    mask = scattered(height, width, seed)
    mask[seed % height, seed % width] = True
    scaled = edits.scale_mask(mask, (rows, columns), covers=False)
    repeated = mask.repeat(rows, axis=0).repeat(columns, axis=1)  # a block of it is one pixel of the scaled one
    wanted = repeated.reshape(rows, height, columns, width).any(axis=(1, 3))
    assert (scaled == wanted).all()


def test_a_mask_is_cropped_as_its_image() -> None:
    mask = boxed((20, 60), 0, 20, 20, 20)
    assert edits.scale_mask(mask, (10, 10), covers=True).all()
    assert edits.scale_mask(boxed((20, 60), 0, 39, 20, 21), (10, 10), covers=True).sum() == 10  # the last column
    with pytest.raises(ValueRangeError, match=r"\[mask\] all that it marks is cropped away at height 10 and width 10"):
        edits.scale_mask(boxed((20, 60), 0, 40, 20, 20), (10, 10), covers=True)


def test_every_latent_pixel_that_is_touched_is_drawn_anew() -> None:
    found = edits.latent_mask(boxed((16, 24), 7, 8, 2, 1), 8)
    assert found.dtype == np.float32
    assert found.tolist() == [[0, 1, 0], [0, 1, 0]]


def test_what_is_masked_is_filled_with_the_mean_of_what_is_not() -> None:
    image = np.zeros((2, 2, 3), np.uint8)
    image[0], image[1, 0], image[1, 1] = (10, 0, 255), (11, 1, 255), 77
    mask = np.array([[False, False], [False, True]])
    filled = fill(image, mask)
    assert filled[1, 1].tolist() == [10, 0, 255]
    assert fill(image, np.array([[True, False], [False, True]]))[0, 0].tolist() == [11, 1, 255]  # halves go up
    assert np.array_equal(filled[~mask], image[~mask])
    assert image[1, 1].tolist() == [77] * 3
    assert (fill(image, np.ones((2, 2), bool)) == 128).all()


def test_pixels_are_normalized_as_a_vae_takes_them() -> None:
    found = edits.normalize(np.array([[[0, 51, 255]]], np.uint8))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[[-1, -0.6, 1]]], atol=1e-7)


@given(SIDES, SIDES, SEEDS)
def test_pixels_outside_the_mask_are_the_image_s(height: int, width: int, seed: int) -> None:
    image, drawn, mask = noise(height, width, seed), noise(height, width, seed + 1), scattered(height, width, seed)
    before = image.copy()
    found = edits.finish(image, drawn, mask)
    assert found.dtype == np.uint8
    assert (found[~mask] == image[~mask]).all()
    assert (image == before).all()


@given(st.integers(-38, 38), st.booleans(), SEEDS)
def test_another_tone_is_matched(offset: int, is_inside: bool, seed: int) -> None:
    """What is drawn as the image was, but for a constant, leaves nothing to be seen."""
    image = noise(24, 20, seed, 40, 200)
    mask = boxed((24, 20), 6, 5, 11, 9) if is_inside else boxed((24, 20), 0, 0, 11, 20)
    assert (edits.finish(image, (image.astype(int) + offset).astype(np.uint8), mask) == image).all()


def test_what_is_another_thing_is_not_taken_for_another_tone() -> None:
    image, mask = np.full((30, 30, 3), 100, np.uint8), boxed((30, 30), 10, 10, 10, 10)
    found = edits.finish(image, np.full_like(image, 139), mask)
    assert (found[15, 15] == 139).all()
    drawn = np.full_like(image, 110)
    drawn[:14] = 250  # most of the ring, but for each channel what differs little decides
    assert (edits.finish(image, drawn, mask)[17, 15] == 100).all()
    drawn[:] = [98, 107, 200]
    assert edits.finish(image, drawn, mask)[15, 15].tolist() == [100, 100, 200]


def test_the_tone_is_that_of_a_ring_of_four_pixels() -> None:
    image, mask = np.full((40, 40, 3), 100, np.uint8), boxed((40, 40), 15, 15, 10, 10)
    near, ring = edits.dilate(mask, 2), edits.dilate(mask, 4)
    drawn = np.where((ring & ~near)[..., None], image, 90).astype(np.uint8)  # 128 of the 224 pixels of the ring
    assert (edits.finish(image, drawn, mask)[20, 20] == 90).all()
    drawn[ring] = 90
    assert (edits.finish(image, drawn, mask)[20, 20] == 100).all()


def test_levels_are_rounded_to_the_nearest_and_halves_up() -> None:
    image, mask = np.full((40, 40, 3), 100, np.uint8), boxed((40, 40), 15, 15, 10, 10)
    drawn = image.copy()
    drawn[:, :15] = drawn[:15, :20] = drawn[25:, :20] = 99  # half of the ring: a tone of .5
    assert edits.finish(image, drawn, mask)[20, 15:20, 0].tolist() == [100, 100, 101, 101, 101]
    drawn[:] = [200, 201, 202]
    assert edits.finish(image, drawn, mask)[20, 15].tolist() == [133, 134, 134]


def test_the_edge_is_feathered_inside() -> None:
    """Between two things, which have no common tone: in thirds, from the mask's edges, not from the picture's."""
    black, white = np.zeros((9, 30, 3), np.uint8), np.full((9, 30, 3), 255, np.uint8)
    line = [*4 * [0], 85, 170, *18 * [255], 170, 85, *4 * [0]]
    found = edits.finish(black, white, boxed((9, 30), 0, 4, 9, 22))
    assert (found == np.array(line)[None, :, None]).all()
    assert (edits.finish(white, black, boxed((9, 30), 0, 4, 9, 22)) == 255 - found).all()
    touching = edits.finish(black, white, boxed((9, 30), 0, 0, 9, 6))
    assert touching[4, :8, 0].tolist() == [255, 255, 255, 255, 170, 85, 0, 0]


def test_the_drawn_part_grows_inwards() -> None:
    black, white = np.zeros((40, 40, 3), np.uint8), np.full((40, 40, 3), 255, np.uint8)
    rows, columns = np.ogrid[:40, :40]
    for radius in (4, 6, 9, 15):
        mask = (rows - 20) ** 2 + (columns - 20) ** 2 <= radius**2
        found = edits.finish(black, white, mask)[:, :, 0]
        assert (found[20, :21] <= found[20, 1:22]).all()
        assert (found[mask & edits.dilate(~mask, 1)] == 85).all()
        assert found[20, 20] == 255


@pytest.mark.parametrize("thickness", [1, 2, 3, 4])
def test_a_scratch_is_removed_to_its_edges(thickness: int) -> None:
    mask = boxed((20, 40), 8, 0, thickness, 40)
    drawn = np.full((20, 40, 3), 90, np.uint8)
    image = np.where(mask[..., None], np.uint8(255), drawn)
    assert (edits.finish(image, drawn, mask) == drawn).all()


def test_a_mask_of_everything_takes_everything() -> None:
    image, drawn = noise(5, 7, 1), noise(5, 7, 2)
    assert (edits.finish(image, drawn, np.ones((5, 7), bool)) == drawn).all()
    assert (edits.finish(image, drawn, np.zeros((5, 7), bool)) == image).all()


@given(SIDES, SIDES, st.integers(0, 9), SEEDS)
def test_dilation_reaches_so_far_and_no_further(height: int, width: int, reach: int, seed: int) -> None:
    row, column = seed % height, seed % width
    found = edits.dilate(boxed((height, width), row, column, 1, 1), reach)
    rows, columns = np.ogrid[:height, :width]
    assert (found == ((abs(rows - row) <= reach) & (abs(columns - column) <= reach))).all()


@pytest.mark.parametrize(
    ("box", "padding", "wanted"),
    [
        ((10, 14, 20, 28), 0, (8, 16, 20, 28)),
        ((10, 14, 20, 28), 3, (5, 19, 17, 31)),
        ((0, 4, 0, 8), 2, (0, 12, 0, 12)),
        ((28, 30, 38, 40), 4, (20, 30, 30, 40)),
        ((0, 30, 5, 6), 1, (0, 30, 0, 32)),
        ((3, 4, 3, 4), 500, (0, 30, 0, 40)),
    ],
    ids=str,
)
def test_a_crop_is_a_square_around_the_mask_inside_the_image(
    box: tuple[int, ...], padding: int, wanted: tuple[int, ...]
) -> None:
    mask = np.zeros((30, 40), dtype=bool)
    mask[box[0] : box[1], box[2] : box[3]] = True
    rows, columns = edits.crop_window(mask, padding)
    assert (rows.start, rows.stop, columns.start, columns.stop) == wanted
    assert mask[rows, columns].sum() == mask.sum()
