"""Predictions: what they follow from, and how they are fitted to records."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import mlx.core as mx
import numpy as np
import pytest
from click.testing import CliRunner, Result

from mlx_moddit.benchmark.random_weights import make_bundle
from mlx_moddit.cli import main
from mlx_moddit.estimate import Compute, estimate_memory
from mlx_moddit.planner.calibration import calibrate, cross_validate, fit, samples_of
from mlx_moddit.planner.chips import CHIPS, find_chip, gpu_bytes
from mlx_moddit.planner.latency import CPU_RATES, UNITS, Drawing, chip_rates, count_work
from mlx_moddit.planner.plan import AlignedPlan, choose, imagine, variants
from moddit.benchmark.record import Arm, BenchmarkRecord, Conditions, Stage, Subject, Trial
from moddit.conditioning import Text
from moddit.configurations import find_configuration
from moddit.cost import step_flops
from moddit.errors import MissingError, UnsupportedError
from moddit.manifest import read_manifest
from moddit.operations import combine, matmul
from moddit.routing import RoutingPlan
from moddit.tokens import TokenPolicy
from tests.moddit.benchmark.records import ARM, record

SPEC: Final = find_configuration("pixart-sigma-xl")
DENSE: Final = TokenPolicy.dense(28, 1000)
# of a machine that is four times as fast as the one whose rates are known, but for this in each unit
TRUE: Final = {unit: CPU_RATES[unit] / 4 * (0.5, 0.8, 1.25, 2.0)[index % 4] for index, unit in enumerate(UNITS)}


def drawing(**changes: Any) -> Drawing:
    values: dict[str, Any] = {
        "spec": SPEC,
        "policy": DENSE,
        "height": 512,
        "width": 512,
        "steps": 20,
        "batch": 2,
        "text_tokens": 60,
        "weight_bytes": 2,
    }
    return Drawing(**(values | changes))


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["plan", *arguments])


def test_work_is_what_the_operations_add_up_to() -> None:
    found = count_work([matmul(10, 4, 6), combine(100)], 2, 0.5)
    assert found == {"matmul": 2 * 480, "elementwise": 600, "scores": 0, "weight_bytes": 12.0, "operations": 2}
    step = drawing().work()["step"]
    flops = sum(step[unit] for unit in ("matmul", "attention"))
    assert flops == 2 * step_flops(SPEC.transformer, DENSE, 0, 1024, 60)


def test_keeping_fewer_tokens_takes_less() -> None:
    rates = chip_rates(find_chip("M3 Pro"), 2)
    half = TokenPolicy.topk(RoutingPlan.uniform(28, 1, 5))
    dense, routed = (drawing(policy=policy).seconds(rates) for policy in (DENSE, half))
    assert 0.4 < routed["step"].value / dense["step"].value < 0.6
    assert routed["decode"] == dense["decode"]
    for taken in (*dense.values(), *routed.values()):
        assert taken.low < taken.value < taken.high


def test_steps_that_are_reused_take_nothing() -> None:
    rates = chip_rates(find_chip("M3 Pro"), 2)
    whole, reused = (drawing(steps=21, reuse=reuse).seconds(rates) for reuse in (1, 4))
    assert reused["step"] == whole["step"]
    saved = whole["picture"].value - reused["picture"].value
    assert saved == pytest.approx(15 * whole["step"].value)
    result = call("--config", "dit-xl-2", "--chip", "M2", "--reuse", "2")
    assert "20 steps with reuse 2" in result.output


def test_what_a_cache_keeps_counts_in_memory_and_not_in_seconds() -> None:
    options = ("--config", "pixart-sigma-xl", "--size", "512x512", "--chip", "M2", "--json")
    plain, cached, none = (
        json.loads(call(*options, *more).stdout) for more in ((), ("--cache", "0.1"), ("--cache", "0"))
    )
    assert plain == none
    more = cached["memory_bytes"]["denoise"] - plain["memory_bytes"]["denoise"]
    assert more == 3 * (2 * 1024 * 1152 * 2)  # arrays of all tokens, of two rows, in float16
    assert cached["memory_bytes"]["decode"] == plain["memory_bytes"]["decode"]
    assert cached["chips"][0]["seconds"] == plain["chips"][0]["seconds"]
    result = call(*options[:-1], "--cache", "0.1")
    assert "20 steps with a cache, as if all were full" in result.output
    assert "reuse 2 and cache 0.1 at once" in call(*options, "--cache", "0.1", "--reuse", "2").output


def test_what_is_published_lies_within_the_prediction() -> None:
    """FLUX.2 klein-4B takes 6.8 s a step of 1024 pixels on an M1 Max: about 4.3e13 FLOPs of matrices and attention."""
    work = {"matmul": 3.7e13, "attention": 6.5e12}
    taken = chip_rates(find_chip("M1 Max"), 2).seconds(work)
    assert taken.low < 6.8 < taken.high


@pytest.mark.parametrize("name", ["M3 Pro", "m3 pro", "Apple  M3 Pro"])
def test_chips_by_name(name: str) -> None:
    assert find_chip(name).name == "M3 Pro"


def test_no_such_chip() -> None:
    with pytest.raises(MissingError, match=r"no chip 'M3 Por', want one such as M3 Pro"):
        find_chip("M3 Por")
    assert gpu_bytes(32) / 2**30 == pytest.approx(0.67 * 32)
    assert gpu_bytes(64) / 2**30 == pytest.approx(0.75 * 64)


def asked(**changes: Any) -> Any:
    settings: dict[str, Any] = {"keep": None, "dtype": "float16", "bits": None, "steps": 20, "batch": 2}
    return imagine("sigma", SPEC, (1024, 1024), **(settings | changes))


def test_the_first_way_that_fits_is_chosen() -> None:
    found = list(variants(asked(), has_bfloat16=True))
    assert found[0].words == "float16"
    for limit in (gpu_bytes(gb) for gb in (8, 18, 36)):
        chosen = choose(asked(), limit, has_bfloat16=True)
        assert chosen is not None
        before = found[: found.index(chosen)]
        assert chosen.peak <= limit < min((item.peak for item in before), default=limit + 1)
    assert choose(asked(), 10**8, has_bfloat16=True) is None
    assert next(variants(asked(bits=4), has_bfloat16=True)).words == "4-bit"


def test_decoding_needs_less_on_chips_that_compute_in_bfloat16() -> None:
    old, new = (asked().memory(has_bfloat16=find_chip(name).has_bfloat16) for name in ("M2 Max", "M3"))
    assert new["decode_strips"] < old["decode_strips"]
    assert new["denoise"] == old["denoise"]


def test_a_step_needs_less_where_every_layer_keeps_fewer_tokens() -> None:
    dense, routed = (asked(keep=keep).memory(has_bfloat16=True)["denoise"] for keep in (None, 0.5))
    assert routed < dense


def test_capacities_are_rounded_only_where_that_is_asked_for() -> None:
    plan = AlignedPlan(((5, 10, 1),), multiple=32)
    assert plan.capacities(0, 1000) == (512,)
    assert [plan.capacities(region, 1000)[0] for region in range(3)] == [512, 1000, 96]
    assert plan.capacities(2, 20) == (20,)
    assert plan.changes(1000) == [(100, 96), (500, 512)]
    options = ("--config", "pixart-sigma-xl", "--size", "752x752", "--keep", "0.5", "--chip", "M2", "--json")
    plain, rounded = (json.loads(call(*options, *more).stdout) for more in ((), ("--align", "32")))
    assert plain["aligned"] is None
    assert rounded["aligned"] == {"multiple": 32, "tokens": 2209, "capacities": [[1105, 1120]]}
    assert rounded["memory_bytes"]["denoise"] > plain["memory_bytes"]["denoise"]
    assert rounded["chips"][0]["seconds"]["step"] > plain["chips"][0]["seconds"]["step"]


def test_what_alignment_changes_is_told(routed_bundle: Path) -> None:
    result = call("--config", "dit-xl-2", "--size", "752x752", "--keep", "0.5", "--align", "32")
    assert "--align 32: layers keep 1120 tokens in place of 1105 of 2209." in result.output
    assert "--align 32: changes nothing." in call("--config", "dit-xl-2", "--align", "32").output
    assert "--align 3: layers keep" in call("--model", str(routed_bundle), "--align", "3").output


def test_a_bundle_can_be_planned_otherwise_than_it_is(routed_bundle: Path) -> None:
    options = ("--model", str(routed_bundle), "--chip", "M2", "--json")
    stored, other = (json.loads(call(*options, *more).stdout) for more in ((), ("--keep", "1", "--dtype", "bfloat16")))
    assert (other["dtype"], other["mean_keep_ratio"]) == ("bfloat16", 1.0)
    assert stored["mean_keep_ratio"] < 1
    assert stored["download"]["size"] == other["download"]["size"] == 0


def test_a_routed_bundle_keeps_what_it_would_where_it_draws(routed_bundle: Path) -> None:
    found = json.loads(call("--model", str(routed_bundle), "--keep", "0.73", "--json").stdout)
    tokens = read_manifest(routed_bundle).tokens
    assert found["mean_keep_ratio"] == tokens.keeping(0.73).plan.mean_keep_ratio
    fewer = json.loads(call("--model", str(routed_bundle), "--keep", "0.3", "--json").stdout)
    assert fewer["mean_keep_ratio"] == 0.3


def measured(config: str, layers: int, sides: tuple[int, ...], noise: float = 0.0) -> BenchmarkRecord:
    """Make a record of a machine whose rates are TRUE."""
    spec = find_configuration(config, layers)
    arms: list[Arm] = []
    trials: list[Trial] = []
    rng = np.random.default_rng(len(config) + layers)
    idle = Conditions("mains", False, "nominal", 0.0)
    for side in sides:
        for name, keep in (("dense", None), ("routed", 0.5)):
            arm: Arm = replace(
                ARM, name=name, device="cpu", height=side, width=side, dtype="float32", keep=keep, batch=1
            )
            policy = TokenPolicy.dense(layers, 1000)
            if keep is not None:
                policy = TokenPolicy.topk(RoutingPlan.uniform(layers, 1, 5))
            work = Drawing(spec, policy, side, side, arm.steps, 1, arm.text_tokens or 0, 4).work()
            stages = tuple(
                Stage(stage, (predicted(work[stage]) * (1 + noise * rng.uniform(-1, 1)),), None, None, None)
                for stage in work
            )
            trials.append(Trial(len(arms), idle, idle, stages, {}))
            arms.append(arm)
    made = record({"dense": [[1.0]]})
    return replace(made, subject=Subject(config, None, "pixart", layers), arms=tuple(arms), trials=tuple(trials))


def predicted(work: Any) -> float:
    return sum(TRUE[unit] * amount for unit, amount in work.items())


RECORDS: Final = [
    measured("pixart-sigma-xl", 2, (256, 512)),
    measured("dit-s-2", 4, (256, 512)),
    measured("dit-b-2", 3, (256, 512)),
]


def test_rates_that_explain_the_times_are_found() -> None:
    samples = [sample for made in RECORDS for sample in samples_of(made)]
    rates = fit(samples)
    for sample in samples:
        taken = sum(rates[unit] * amount for unit, amount in sample.work.items())
        assert taken == pytest.approx(sample.seconds, rel=0.15)
    assert min(rates.values()) >= 0


def test_one_size_is_predicted_by_what_units_take_elsewhere_on_a_machine_of_this_speed() -> None:
    (one, *_) = [sample for sample in samples_of(RECORDS[1]) if sample.name == "step"]
    rates = fit([one])
    assert sum(rates[unit] * amount for unit, amount in one.work.items()) == pytest.approx(one.seconds, rel=0.01)
    others = [sample for made in RECORDS for sample in samples_of(made) if sample.name == "step"]
    for sample in others:
        taken = sum(rates[unit] * amount for unit, amount in sample.work.items())
        assert 0.4 < taken / sample.seconds < 2.5


def test_records_of_two_machines_are_not_mixed() -> None:
    other = replace(RECORDS[0], machine=replace(RECORDS[0].machine, chip="Apple M4"))
    with pytest.raises(UnsupportedError, match="Apple M3 Pro cpu, Apple M4 cpu; want those of one machine and device"):
        calibrate([*RECORDS, other])


def test_sizes_that_were_left_out_are_predicted() -> None:
    noisy = [measured("pixart-sigma-xl", 2, (256, 512), 0.05), *RECORDS[1:]]
    samples = [sample for made in noisy for sample in samples_of(made)]
    errors = cross_validate(samples)
    assert {error.sample.size for error in errors} == {sample.size for sample in samples}
    assert max(abs(error.share) for error in errors) < 0.25
    rates = calibrate(noisy)
    for sample in samples:
        taken = rates.seconds(sample.work)
        assert taken.low * 0.9 < sample.seconds < taken.high * 1.1


def test_records_of_bundles_and_too_few_say_nothing() -> None:
    bundle = replace(RECORDS[0], subject=replace(RECORDS[0].subject, fingerprint="0" * 64))
    assert not list(samples_of(bundle))
    with pytest.raises(MissingError, match="have 0 sizes of named configurations, want two or more"):
        calibrate([bundle])


def test_the_command_lists_all_chips() -> None:
    result = call("--config", "pixart-sigma-xl", "--size", "512x512", "--json")
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    assert [item["chip"] for item in facts["chips"]] == [chip.name for chip in CHIPS]
    assert facts["bundle_bytes"]["text_encoder"] > 9e9


def test_the_command_tells_what_fits(tmp_path: Path) -> None:
    result = call("--config", "pixart-sigma-xl", "--chip", "M1", "--ram", "8", "--keep", "0.5")
    assert result.exit_code == 0, result.output
    assert "| float16, --low-ram" in result.output
    assert "fits in 5.8 GB" in result.output
    for index, made in enumerate(RECORDS):
        (tmp_path / f"{index}.json").write_text(made.write())
    files = [word for index in range(3) for word in ("--record", str(tmp_path / f"{index}.json"))]
    result = call("--config", "dit-xl-2", *files)
    assert result.exit_code == 0, result.output
    assert "| picture" in result.output


def test_a_text_encoder_that_is_read_block_by_block_needs_what_is_estimated() -> None:
    """Its embedding and one block, whatever their number: within 10 % of what MLX reports."""
    text = SPEC.conditioning
    assert isinstance(text, Text)
    encoder = replace(text.encoder, d_model=512, d_ff=2048, num_layers=4, num_heads=8, vocab_size=4000)
    model: Any = SPEC.transformer
    transformer = replace(model, caption_channels=512, num_layers=1)
    spec = replace(SPEC, transformer=transformer, conditioning=replace(text, encoder=encoder))
    bundle = make_bundle(spec, TokenPolicy.dense(1, 1000), "float32", None, encoder=True)
    before = mx.get_active_memory()
    mx.clear_cache()
    mx.reset_peak_memory()
    mx.eval(bundle.text_encoder()(mx.ones((2, 8), mx.int32), release=True))
    estimate = estimate_memory(bundle.manifest, Compute(is_gpu=False, dtype=None), (64, 64), 512)["encode"]
    assert mx.get_peak_memory() - before == pytest.approx(estimate, rel=0.1)


def test_a_bundle_is_planned_for(routed_bundle: Path) -> None:
    result = call("--model", str(routed_bundle), "--chip", "M2")
    assert result.exit_code == 0, result.output
    assert "all_in_memory" in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "want one of --model and --config"),
        (("--config", "dit-xl-2", "--chip", "M9"), "no chip 'M9'"),
        (("--config", "dit-xl-2", "--size", "x"), "is not a size"),
        (("--config", "dit-xl-2", "--steps", "3", "--reuse", "3"), "reuse 3 of 3 steps leaves a single one"),
        (("--config", "dit-xl-2", "--size", "250x256"), "height is not a multiple of 16 pixels, got 250"),
        (("--config", "dit-xl-2", "--size", "999984x999984"), "want 1..16384"),
        (("--config", "dit-xl-2", "--record", "/absent"), "/absent"),
        (("--model", "/absent"), "/absent"),
    ],
)
def test_what_cannot_be_planned(arguments: tuple[str, ...], message: str) -> None:
    result = call(*arguments)
    assert result.exit_code == 1
    assert message in result.output
