from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_moddit.estimate import Compute
from mlx_moddit.info import describe, write
from mlx_moddit.pipeline import Pipeline
from moddit.errors import ShapeError
from moddit.manifest import read_manifest
from moddit.quantization import Quantization
from tests.mlx_moddit.conftest import PLAN

CPU = Compute(is_gpu=False, dtype="float32")


def test_facts_of_a_routed_bundle(routed_bundle: Path) -> None:
    facts = describe(read_manifest(routed_bundle), CPU, height=32, width=48)
    assert facts["tokens"] == 96
    assert facts["capacities"] == [[-(-tenths * 96 // 10) for tenths in row] for row in zip(*PLAN, strict=True)]
    assert (facts["token_policy"]["policy"], facts["token_policy"]["plan"]["keep_tenths"]) == ("topk", PLAN)
    assert facts["mean_keep_ratio"] == pytest.approx(sum(map(sum, PLAN)) / 120)
    assert 0 < facts["kept_flops_share"] < 1
    assert facts["components"]["transformer"]["parameters"] > 0
    text = write(facts)
    assert "96 (48x32)" in text
    assert "750-999" in text


def test_facts_of_a_dense_bundle(dense_bundle: Path) -> None:
    facts = describe(read_manifest(dense_bundle), CPU, height=32, width=32)
    assert facts["token_policy"]["policy"] == "dense"
    assert (facts["capacities"], facts["mean_keep_ratio"], facts["kept_flops_share"]) == ([[64] * 3], 1.0, 1.0)
    assert "Dense: every layer processes all 64 tokens" in write(facts)


def test_what_a_model_draws_is_told(dense_bundle: Path) -> None:
    manifest = read_manifest(dense_bundle)
    transformer = replace(manifest.spec.transformer, in_channels=9)
    for spec, said in (
        (manifest.spec, "draws a text of up to"),
        (replace(manifest.spec, transformer=transformer), "inpaints a text of up to"),
    ):
        assert said in write(describe(replace(manifest, spec=spec), CPU, height=32, width=32))


def test_quantised_components_say_so(dense_bundle: Path, stored_dtype: str) -> None:
    manifest = read_manifest(dense_bundle)
    mixed = (
        Quantization(8, 64, "affine", ("a",)),
        Quantization(4, 64, "affine", ("b",)),
        Quantization(4, 32, "mxfp4", ("c",)),
    )
    part = replace(manifest.components["transformer"], quantization=mixed)
    manifest = replace(manifest, components={**manifest.components, "transformer": part})
    facts = describe(manifest, CPU, height=32, width=32)
    said = f"8-bit in groups of 64, 4-bit in groups of 64, mxfp4 in groups of 32, rest {stored_dtype}"
    assert facts["components"]["transformer"]["stored_as"] == said


def test_sizes_that_the_model_cannot_make_are_refused(dense_bundle: Path) -> None:
    with pytest.raises(ShapeError):
        describe(read_manifest(dense_bundle), CPU, height=30, width=32)


@pytest.mark.parametrize("side", [64, 128])
def test_memory_estimate_is_within_a_factor_of_two_on_a_cpu(dense_bundle: Path, side: int) -> None:
    facts = describe(read_manifest(dense_bundle), CPU, height=side, width=side)
    with mx.stream(mx.cpu):
        pipeline = Pipeline.load(dense_bundle, dtype=CPU.dtype, low_ram=True)
        result = pipeline.generate("a circle", height=side, width=side, steps=2)
    measured = {cost.name: cost.peak_bytes for cost in result.costs}
    for stage in ("denoise", "decode"):
        assert 0.5 < facts["memory_estimate_bytes"][stage] / measured[stage] < 2, stage


def test_dtype_decides_what_weights_need(dense_bundle: Path) -> None:
    manifest = read_manifest(dense_bundle)
    full, half, stored = (
        describe(manifest, Compute(is_gpu=True, dtype=dtype), height=32, width=32)["memory_estimate_bytes"]["encode"]
        for dtype in ("float32", "float16", None)
    )
    assert half < full <= 2 * half  # the embedding stays in float32
    assert stored in (half, full)


def test_the_decoder_needs_half_in_bfloat16_and_widens_float16(dense_bundle: Path) -> None:
    manifest = read_manifest(dense_bundle)
    full, half, narrow = (
        describe(manifest, Compute(is_gpu=True, dtype=dtype), height=64, width=64)["memory_estimate_bytes"]["decode"]
        for dtype in ("float32", "float16", "bfloat16")
    )
    weights = manifest.components["vae"].parameters
    assert weights is not None
    assert full == 2 * narrow
    assert full - half == 2 * weights  # bytes: of the weights alone


def test_text_of_the_manifest_is_shown_and_not_obeyed(dense_bundle: Path) -> None:
    manifest = read_manifest(dense_bundle)
    manifest = replace(manifest, provenance=replace(manifest.provenance, source="a\x1b[2J\nMade from b"))
    facts = describe(manifest, CPU, height=32, width=32)
    assert facts["provenance"]["source"] == "a\x1b[2J\nMade from b"  # for machines, whose JSON escapes it
    lines = write(facts).split("\n")
    assert lines[-1].startswith(r"Made from a\x1b[2J\nMade from b at ")
