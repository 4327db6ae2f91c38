"""The first-block cache against one written out, over numpy arrays."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from moddit.cache import FirstBlockCache

Tokens = NDArray[np.float64]


def change(new: Tokens, old: Tokens) -> float:
    with np.errstate(invalid="ignore"):
        return float(np.abs(new - old).mean() / np.abs(old).mean())


class Blocks:
    """Blocks of which the first adds a given number to every token, and the others ten times as much."""

    def __init__(self, threshold: float):
        self.cache: FirstBlockCache[Tokens] = FirstBlockCache(threshold, change)
        self.ran: list[float] = []  # what the first one added in full steps

    def step(self, added: float, before: Tokens) -> Tokens:
        def rest(tokens: Tokens) -> Tokens:
            self.ran.append(added)
            return tokens + 10 * added

        count = len(self.ran)
        found = self.cache.run(before, before + added, rest)
        assert self.cache.is_hit is (len(self.ran) == count)
        return found


def test_blocks_run_again_once_the_first_has_moved_from_where_it_was_in_the_last_full_step() -> None:
    blocks = Blocks(0.1)
    for step, added in enumerate((1.0, 1.05, 1.09, 1.15, 1.2, 1.25, 1.3)):
        before = np.random.default_rng(step).normal(size=(2, 5, 3))
        found = blocks.step(added, before)
        np.testing.assert_allclose(found, before + added + 10 * blocks.ran[-1])
    assert blocks.ran == [1.0, 1.15, 1.3]  # compared with 1.0 and 1.15, not with the step before


def test_rows_of_a_batch_are_decided_together() -> None:
    blocks = Blocks(0.1)
    before = np.zeros((2, 5, 3))
    blocks.step(1.0, before)
    moved = before + np.array([1.15, 1.0])[:, None, None]  # by 15 % in one row, 7.5 % in the mean
    assert np.array_equal(blocks.cache.run(before, moved, lambda _: before), moved + 10)


@pytest.mark.parametrize("added", [0.0, np.nan])
def test_what_cannot_be_compared_runs_in_full(added: float) -> None:
    blocks = Blocks(1.0)
    for _ in range(3):
        blocks.step(added, np.zeros((1, 2, 3)))
    assert len(blocks.ran) == 3


def test_a_threshold_of_zero_runs_what_has_changed_at_all() -> None:
    blocks = Blocks(0.0)
    for added in (1.0, 1.0, 1.0000001):
        blocks.step(added, np.zeros((1, 2, 3)))
    assert blocks.ran == [1.0, 1.0000001]
