"""What all tests share: offline, two threads, a fast BLAS under MLX, MLX graphs compiled only where a test asks."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator

import pytest
from hypothesis import settings

from scripts import fast_blas

# Before any test imports torch, MLX or a Hugging Face library.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MLX_DISABLE_COMPILE"] = "1"  # on CPUs every graph would start a C++ compiler for seconds
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
BLAS = fast_blas.load()

settings.register_profile("moddit", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("moddit")


def pytest_report_header() -> str:
    return f"MLX runs on {'Metal and ' if platform.system() == 'Darwin' else ''}{BLAS}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if platform.system() == "Darwin":
        return
    for item in items:
        if item.get_closest_marker("mac"):
            item.add_marker(pytest.mark.skip(reason="needs a Mac"))


@pytest.fixture
def mlx_compile() -> Iterator[None]:
    """Compile MLX graphs in this test."""
    import mlx.core as mx

    mx.enable_compile()
    yield
    mx.disable_compile()
