"""Checkpoints as people publish and keep them, tiny and random: what diffusers and transformers load, by their rules.

Each case changes a folder that the libraries saved into one of the kinds that exist, says what a user would type for
it, and loads the reference with diffusers alone.
"""

from tests.parity.published import adapters, configurations, original, places, schedulers, tokenizers, weights
from tests.parity.published.base import CASES, Published

__all__ = [
    "CASES",
    "Published",
    "adapters",
    "configurations",
    "original",
    "places",
    "schedulers",
    "tokenizers",
    "weights",
]
