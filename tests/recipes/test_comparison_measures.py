"""Measures against values known beforehand."""

from __future__ import annotations

import numpy as np
import pytest

from recipes.comparison.measures import frechet_distance, psnr


def test_psnr_of_a_known_error() -> None:
    pictures = np.zeros((2, 4, 4, 3), np.float32)
    assert psnr(pictures + 0.1, pictures) == pytest.approx(20)


def test_frechet_distance_of_normal_distributions() -> None:
    """Between N(0, I) and N(m, s^2 I) in d dimensions it is |m|^2 + d (1 - s)^2, whatever the axes."""
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    first, second = rng.normal(size=(2, 40_000, 4))
    moved = (2 * second + np.array([1, 0, 0, 2])) @ rotation
    assert frechet_distance(first @ rotation, moved) == pytest.approx(5 + 4, rel=0.03)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_fewer_pictures_than_features() -> None:
    features = np.random.default_rng(1).normal(size=(5, 12))
    assert frechet_distance(features, features) == pytest.approx(0, abs=1e-6)
