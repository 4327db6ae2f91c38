"""Tiny bundles, made once as a user makes them: diffusers' folder, then `python -m convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest

from convert.cli import main as convert
from tests.tiny import save_pipeline

PLAN: Final = [[10, 8, 6, 4], [5, 5, 5, 5], [10, 7, 3, 1]]  # [layers][regions] of `routed_bundle`


def make_bundle(folder: Path, dtype: str = "float32", **pipeline: Any) -> Path:
    source = save_pipeline(folder / "source", **pipeline)
    command = ["--from", "hf-checkpoint", "--hf-path", str(source), "--out", str(folder / "bundle")]
    assert convert([*command, "--dtype", dtype]) == 0
    return folder / "bundle"


@pytest.fixture(scope="session")
def routed_bundle(tmp_path_factory: pytest.TempPathFactory, stored_dtype: str) -> Path:
    return make_bundle(tmp_path_factory.mktemp("routed"), stored_dtype, kind="sigma", keep_tenths=PLAN)


@pytest.fixture(scope="session")
def dense_bundle(tmp_path_factory: pytest.TempPathFactory, stored_dtype: str) -> Path:
    return make_bundle(tmp_path_factory.mktemp("dense"), stored_dtype, kind="sigma", routed=False)


@pytest.fixture(scope="session")
def table_bundle(tmp_path_factory: pytest.TempPathFactory, stored_dtype: str) -> Path:
    """A routed model of 256 pixels, with a table of sizes and a VAE that divides sides by 8."""
    channels, blocks = (8, 8, 8, 8), ("DownEncoderBlock2D",) * 4
    vae = {
        "block_out_channels": channels,
        "down_block_types": blocks,
        "up_block_types": ("UpDecoderBlock2D",) * len(blocks),
    }
    changes: dict[str, Any] = {"transformer": {"sample_size": 32}, "vae": vae, "keep_tenths": PLAN}
    return make_bundle(tmp_path_factory.mktemp("table"), stored_dtype, **changes)


@pytest.fixture(scope="session")
def micro_bundle(tmp_path_factory: pytest.TempPathFactory, stored_dtype: str) -> Path:
    return make_bundle(tmp_path_factory.mktemp("micro"), stored_dtype, kind="alpha-micro")
