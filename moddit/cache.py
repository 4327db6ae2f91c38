"""First-block cache: where the first block does to the tokens nearly what it did in the last full step, the others are
taken to do what they did then.

What a run remembers belongs to it, not to the model (`moddit.tokens`).

Source: diffusers/hooks/first_block_cache.py, after ParaAttention. The rows of a batch, the halves of guidance, are
decided together, as there where one context holds both: halves of different ages are guided wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic

from moddit.samplers import Array


class FirstBlockCache(Generic[Array]):
    """What the blocks did to the tokens of a picture in its last full step, and whether they have to run again.

    `threshold` is the largest change of the first block's residual that is taken for none; `change` measures it: the
    mean of |new - old| as a share of the mean of |old|. It has to know the number, so a runtime that computes lazily
    computes the first block of each step at once.
    """

    def __init__(self, threshold: float, change: Callable[[Array, Array], float]):
        self.threshold = threshold
        self.residuals: tuple[Array, ...] = ()  # of the last full step: the first block's, and that of the others
        self.is_hit = False  # the last step was not full
        self._change = change

    def run(self, tokens: Array, first: Array, rest: Callable[[Array], Array]) -> Array:
        """Give the tokens after all blocks; `rest` runs those behind the first, if it has to.

        Shapes:
            tokens before the first block, first after it (B, N, C) -> (B, N, C)
        """
        residual = first - tokens
        self.is_hit = (
            bool(self.residuals) and self._change(residual, self.residuals[0]) <= self.threshold
        )  # false of NaN
        if self.is_hit:
            return first + self.residuals[1]
        last = rest(first)
        self.residuals = (residual, last - first)
        return last
