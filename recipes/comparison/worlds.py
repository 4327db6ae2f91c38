"""The worlds that there are, by name; a world's libraries are loaded when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from recipes.world import World


def _shapes64() -> type[World]:
    from recipes.shapes64.world import Shapes64

    return Shapes64


def _emoji64() -> type[World]:
    from recipes.emoji64.world import Emoji64

    return Emoji64


WORLDS: Final[Mapping[str, Callable[[], type[World]]]] = {"shapes64": _shapes64, "emoji64": _emoji64}
