"""Exact tests of whether one method satisfies more prompts than another; what they cannot separate is not claimed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

LEVEL: Final = 0.05  # of all claims of a table together (Holm)


@dataclass(frozen=True)
class Comparison:
    """On how many prompts one method is right more often than another, and how likely chance alone does as much."""

    better: int  # prompts
    worse: int
    p: float  # two-sided


def sign_test(better: int, worse: int) -> float:
    """Probability that a fair coin falls as unevenly as this, or more so (two-sided)."""
    count, fewer = better + worse, min(better, worse)
    tail = sum(math.comb(count, hits) for hits in range(fewer + 1))
    return min(1.0, 2 * tail / 2**count)


def compare(ours: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> Comparison:
    """Compare outcomes of the same prompts and noise, (seeds, prompts) each.

    A prompt is one observation, whatever the number of seeds: its pictures are not independent of each other. With one
    seed this is McNemar's exact test.
    """
    difference = ours.sum(axis=0, dtype=np.int64) - theirs.sum(axis=0, dtype=np.int64)
    better, worse = int((difference > 0).sum()), int((difference < 0).sum())
    return Comparison(better, worse, sign_test(better, worse))


def weakest(comparisons: Sequence[Comparison]) -> Comparison:
    """Of the comparisons of several trainings give the one that claims least: a claim has to hold for each of them.

    Trainings that disagree about the direction claim nothing.
    """
    signs = {np.sign(item.better - item.worse) for item in comparisons}
    least = max(comparisons, key=lambda item: item.p)
    return least if len(signs) == 1 else Comparison(least.better, least.worse, 1.0)


def are_separated(probabilities: Sequence[float], level: float = LEVEL) -> list[bool]:
    """Say which of several claims hold together at a level (Holm's step-down)."""
    held = [False] * len(probabilities)
    for done, index in enumerate(sorted(range(len(probabilities)), key=probabilities.__getitem__)):
        if probabilities[index] > level / (len(probabilities) - done):
            break
        held[index] = True
    return held
