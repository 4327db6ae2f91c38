"""Checkpoints that many tests convert to Core ML, each made once."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.convert.coreml.bundles import HEADS, PLAN, WIDE, Sources
from tests.tiny import save_dit_pipeline, save_pipeline


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Sources:
    """Tiny checkpoints by kind, routed or dense; in float16, so that no weight is rounded unless it is compressed."""

    @cache
    def save(kind: str, routed: bool) -> Path:
        folder = tmp_path_factory.mktemp(f"{kind}-{'routed' if routed else 'dense'}")
        changes: dict[str, Any] = {"routed": routed, "dtype": "float16", "keep_tenths": PLAN if routed else None}
        if kind == "dit":
            return save_dit_pipeline(folder, **{**HEADS, **changes})
        return save_pipeline(folder, kind=kind, transformer=WIDE, **changes)

    return lambda kind="sigma", *, routed=True: save(kind, routed)


@pytest.fixture(scope="session")
def source(sources: Sources) -> Path:
    """The routed one of PixArt-Sigma's kind."""
    return sources()
