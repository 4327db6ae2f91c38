from __future__ import annotations

from typing import Any, Final

import numpy as np
import pytest
import torch
from diffusers.image_processor import PixArtImageProcessor
from diffusers.pipelines.pixart_alpha import pipeline_pixart_sigma as sigma
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from moddit.bins import BINS, Size, bin_size, resize_and_crop
from moddit.errors import UnsupportedError

TABLES: Final[dict[int, dict[str, Any]]] = {
    32: sigma.ASPECT_RATIO_256_BIN,
    64: sigma.ASPECT_RATIO_512_BIN,
    128: sigma.ASPECT_RATIO_1024_BIN,
    256: sigma.ASPECT_RATIO_2048_BIN,
}
SIDES: Final = st.integers(1, 5000)
ROUNDING: Final = 1e-5  # of values in 0..1; torch adds the four products in another order


@pytest.mark.parametrize("sample_size", TABLES)
def test_tables_are_those_of_diffusers_in_their_order(sample_size: int) -> None:
    wanted = [(float(ratio), (int(size[0]), int(size[1]))) for ratio, size in TABLES[sample_size].items()]
    assert list(BINS[sample_size].items()) == wanted


@given(st.sampled_from(sorted(TABLES)), SIDES, SIDES)
def test_the_bin_is_the_one_that_diffusers_chooses(sample_size: int, height: int, width: int) -> None:
    wanted = PixArtImageProcessor.classify_height_width_bin(height, width, TABLES[sample_size])
    assert bin_size(sample_size, 8 * sample_size, height, width) == wanted


@pytest.mark.parametrize("sample_size", [8, 16, 127])
def test_models_without_a_table_are_refused(sample_size: int) -> None:
    with pytest.raises(UnsupportedError, match=f"sample_size {sample_size}, want one of 32, 64, 128, 256"):
        bin_size(sample_size, 8 * sample_size, 64, 64)


def test_models_of_another_size_than_their_table_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="sample_size 32 that was trained on pictures of 64 pixels, want 256"):
        bin_size(32, 64, 64, 64)


def apply(picture: NDArray[np.float32], wanted: Size) -> NDArray[np.float32]:
    """Shapes: picture (H, W) -> wanted."""
    rows, columns = resize_and_crop((picture.shape[0], picture.shape[1]), wanted)
    weight = rows.weight[:, None]
    picture = picture[rows.lower] * (1 - weight) + picture[rows.upper] * weight
    return picture[:, columns.lower] * (1 - columns.weight) + picture[:, columns.upper] * columns.weight


@given(
    st.sampled_from([(9, 28), (16, 16), (32, 8), (1, 1)]), st.tuples(st.integers(1, 90), st.integers(1, 90)), st.data()
)
def test_resizing_equals_diffusers(source: Size, wanted: Size, data: st.DataObject) -> None:
    picture = np.random.default_rng(data.draw(st.integers(0, 99))).random(source, dtype=np.float32)
    resized = PixArtImageProcessor.resize_and_crop_tensor(torch.tensor(picture)[None, None], wanted[1], wanted[0])
    found = apply(picture, wanted)
    assert found.shape == wanted
    if resized.shape[2:] == wanted:  # see the next test
        np.testing.assert_allclose(found, resized[0, 0].numpy(), atol=ROUNDING)


def test_a_side_that_diffusers_loses_to_rounding_is_whole() -> None:
    source, wanted = (704, 1344), (512, 984)
    picture = np.random.default_rng(0).random(source, dtype=np.float32)
    broken = PixArtImageProcessor.resize_and_crop_tensor(torch.tensor(picture)[None, None], wanted[1], wanted[0])
    assert broken.shape[2:] == (512, 1)  # the fault is still theirs
    assert apply(picture, wanted).shape == wanted


def test_a_picture_of_the_wanted_size_stays_as_it_is() -> None:
    picture = np.random.default_rng(0).random((33, 20), dtype=np.float32)
    assert np.array_equal(apply(picture, (33, 20)), picture)


def test_what_is_cropped_away_costs_nothing() -> None:
    rows, columns = resize_and_crop((1024, 256), (1, 10**6))  # a million by four million pixels before the crop
    assert (len(rows.lower), len(columns.lower)) == (1, 10**6)
