"""A bundle for Core ML that tests of its verification change at will."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.convert.coreml.bundles import copy_bundle, to_coreml


@pytest.fixture(scope="session")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "bundle"
    assert to_coreml(source, out) == 0
    return out


@pytest.fixture
def bundle(whole: Path, tmp_path: Path) -> Path:
    """A bundle to be changed at will."""
    return copy_bundle(whole, tmp_path / "bundle")
