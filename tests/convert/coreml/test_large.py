"""Models of true size: a transformer of PixArt-Sigma-XL-2 with four rows of capacities, and two layers of T5-XXL."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import pytest

from benchmarks.conversion import run_metered
from convert.coreml.package import WEIGHT_FILE
from moddit.manifest import read_manifest, verify_files
from tests.convert.checkpoints import save_large
from tests.convert.test_large import MEMORY_LIMIT

# Weights in float16, with tables of positions, and some per cent for what is added to a matrix of 1152 columns.
WEIGHT_LIMIT: Final = 1.03


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["none", "int4"])
def test_memory_of_a_large_text_encoder(tmp_path: Path, scheme: str) -> None:
    source = save_large(tmp_path / "source", true="text_encoder", layers=2)  # of 24
    out = tmp_path / "bundle"
    peak = convert(source, out, "--compress", scheme)
    assert peak < MEMORY_LIMIT
    assert read_manifest(out).components["text_encoder"].parameters > 380_000_000


@pytest.mark.nightly
def test_memory_and_size_of_a_large_conversion(tmp_path: Path) -> None:
    """Without running it, which `python -m benchmarks.coreml_conversion` can do."""
    source = save_large(tmp_path / "source", true="transformer", layers=28)
    out = tmp_path / "bundle"
    peak = convert(source, out, "--size", "512x512")
    manifest = read_manifest(out)
    verify_files(out, manifest)
    weights = (out / "Transformer.mlpackage" / WEIGHT_FILE).stat().st_size
    assert peak < MEMORY_LIMIT
    parameters = manifest.components["transformer"].parameters
    assert parameters > 610_000_000
    assert weights < WEIGHT_LIMIT * 2 * parameters
    assert manifest.graphs is not None
    assert [item.capacities[0] for item in manifest.graphs.step_functions] == [1024, 717, 512, 308]


def convert(source: Path, out: Path, *options: str) -> int:
    """Convert without running the packages; return the largest resident set, bytes."""
    command = (sys.executable, "-m", "convert", "coreml", "--hf-path", str(source), "--no-verify", "--out", str(out))
    seconds, peak = run_metered([*command, *options])
    print(f"peak {peak / 1e6:.0f} MB, {seconds:.0f} s")
    return peak
