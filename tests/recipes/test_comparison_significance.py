"""Exact tests: hand-computed probabilities, and claims that hold for every training and all together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recipes.comparison.significance import Comparison, are_separated, compare, sign_test, weakest


@pytest.mark.parametrize(("better", "worse", "p"), [(0, 0, 1.0), (5, 0, 2 / 32), (1, 7, 18 / 256), (4, 4, 1.0)])
def test_sign_test_is_the_binomial_one(better: int, worse: int, p: float) -> None:
    assert sign_test(better, worse) == sign_test(worse, better) == pytest.approx(p)


def test_a_prompt_counts_once_whatever_the_seeds() -> None:
    ours = np.array([[1, 1, 0, 0], [1, 0, 1, 0]], dtype=bool)
    theirs = np.array([[0, 1, 0, 0], [0, 1, 1, 1]], dtype=bool)
    assert compare(ours, theirs) == Comparison(better=1, worse=2, p=1.0)


def test_trainings_that_disagree_claim_nothing() -> None:
    strong, weak, other = Comparison(30, 2, 1e-6), Comparison(20, 8, 0.04), Comparison(2, 30, 1e-6)
    assert weakest([strong, weak]) == weak
    assert weakest([strong, other]).p == 1.0
    assert weakest([strong]) == strong


def test_claims_hold_together() -> None:
    assert are_separated([0.04, 0.01, 0.03]) == [False, True, False]  # .03 is above .05 / 2
    assert are_separated([0.04, 0.01, 0.02]) == [True, True, True]


@given(st.lists(st.floats(0, 1), max_size=8))
def test_no_more_is_claimed_together_than_alone(probabilities: list[float]) -> None:
    held = are_separated(probabilities)
    assert all(p <= 0.05 for p, is_held in zip(probabilities, held, strict=True) if is_held)
