"""`mlx_moddit benchmark`: what it measures, not how long that takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import mlx.core as mx
import numpy as np
import pytest
from click.testing import CliRunner, Result

from mlx_moddit.benchmark.trial import Job, open_job, run
from mlx_moddit.cli import main
from mlx_moddit.load import load_bundle
from mlx_moddit.pipeline import Pipeline
from moddit.benchmark.record import STAGES, read_record
from moddit.errors import UnsupportedError
from moddit.routing import RoutingPlan
from tests.mlx_moddit.conftest import PLAN

JOB: Final = Job(prompt="a red circle", steps=2)
SMALL: Final = replace(JOB, config="pixart-sigma-xl", layers=1, height=64, width=64)


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["benchmark", *arguments])


def test_a_record_has_every_arm_and_stage(tmp_path: Path, routed_bundle: Path) -> None:
    file = tmp_path / "new" / "record.json"
    result = call("--model", str(routed_bundle), "--trials", "2", "--steps", "3", "--json", str(file))
    assert result.exit_code == 0, result.output
    found = read_record(file)
    assert [arm.name for arm in found.arms] == ["dense", "oracle", "routed"]
    assert [trial.arm for trial in found.trials] == [0, 1, 2, 2, 1, 0]  # forwards and backwards
    for trial in found.trials:
        names = [stage.name for stage in trial.stages]
        assert names == [name for name in STAGES if name in names]
        samples = {stage.name: len(stage.seconds) for stage in trial.stages}
        assert samples == {"load": 1, "encode": 1, "prepare": 1, "first_step": 1, "step": 2, "decode": 1}
        assert all(stage.runtime_peak_bytes for stage in trial.stages)
    tokens = {arm.name: arm.kept_tokens or 0 for arm in found.arms}
    flops = {arm.name: arm.step_flops or 0 for arm in found.arms}
    assert found.arms[0].tokens == tokens["dense"] > tokens["routed"] == tokens["oracle"] > 0
    assert flops["dense"] > flops["routed"] > flops["oracle"] > 0  # routers are all that is between them
    assert "efficiency" in result.output


def test_a_dense_bundle_has_one_arm(dense_bundle: Path) -> None:
    result = call("--model", str(dense_bundle), "--trials", "1", "--steps", "2")
    assert result.exit_code == 0, result.output
    assert "| routed" not in result.output
    with pytest.raises(UnsupportedError, match="the model is dense, it has no arm 'routed'"):
        open_job(replace(JOB, model=str(dense_bundle), arm="routed"))


def test_the_dense_arm_of_a_routed_bundle_draws_as_if_it_had_no_routers(routed_bundle: Path) -> None:
    pictures = {}
    for arm in ("dense", "routed", "oracle"):
        pipeline = Pipeline(open_job(replace(JOB, model=str(routed_bundle), arm=arm)))
        pictures[arm] = pipeline.generate("a red circle", steps=2).images[0]
    assert not np.array_equal(pictures["dense"], pictures["routed"])
    assert not np.array_equal(pictures["oracle"], pictures["routed"])


@pytest.mark.parametrize(("keep", "is_raised"), [(0.8, True), (0.1, False)])
def test_keep_means_what_it_means_where_pictures_are_drawn(routed_bundle: Path, keep: float, is_raised: bool) -> None:
    trained = load_bundle(routed_bundle).policy
    for arm in ("routed", "oracle"):
        plan = open_job(replace(JOB, model=str(routed_bundle), arm=arm, keep=keep)).policy.plan
        assert plan == (trained.keeping(keep).plan if is_raised else RoutingPlan.uniform(len(PLAN), 1, 1))
    assert open_job(replace(JOB, model=str(routed_bundle), keep=keep)).policy.is_dense


def test_first_tokens_are_those_that_come_first(routed_bundle: Path) -> None:
    """The oracle processes as many tokens as routing keeps; the others stay as they are."""
    bundle = open_job(replace(JOB, model=str(routed_bundle), arm="oracle"))
    model = bundle.transformer()
    states = [mx.zeros((3, bundle.text.encoder.d_model))]
    conditions = model.prepare(states, [999.0], 16, 16)
    x = mx.random.normal((1, 64, model.spec.hidden_size)).astype(model.dtype)
    kept = bundle.policy.plan.capacities(bundle.policy.plan.region(999.0), 64)[2]
    assert kept == 64 * PLAN[2][-1] // 10 or kept > 0
    done = model.run_block(x, 2, 0, conditions, conditions.start())
    same = mx.all(done == x, axis=-1)[0].tolist()
    assert same == [False] * kept + [True] * (64 - kept)


def test_random_weights_of_a_published_model() -> None:
    found = run(replace(SMALL, arm="routed", keep=0.5))
    assert found["subject"] == {"name": "pixart-sigma-xl", "fingerprint": None, "architecture": "pixart", "layers": 1}
    assert [stage["name"] for stage in found["stages"]] == ["prepare", "first_step", "step", "decode"]
    assert (found["arm"]["tokens"], found["arm"]["kept_tokens"], found["arm"]["batch"]) == (16, 8, 2)


def test_a_trial_may_end_before_the_picture() -> None:
    found = run(replace(SMALL, decodes=False))
    assert [stage["name"] for stage in found["stages"]] == ["prepare", "first_step", "step"]


def test_quantised_random_weights() -> None:
    bundle = open_job(replace(SMALL, bits=4))
    weight = bundle.transformer().transformer_blocks[0].attn1.to_qkv.weight
    assert weight.dtype == mx.uint32
    found = run(replace(SMALL, bits=4))
    assert found["arm"]["bits"] == 4


def test_a_model_of_classes() -> None:
    found = run(replace(SMALL, config="dit-xl-2", keep=0.5, arm="routed", guidance_scale=1.0))
    assert [stage["name"] for stage in found["stages"]] == ["prepare", "first_step", "step", "decode"]
    assert found["arm"]["batch"] == 1


@pytest.mark.parametrize(
    ("saving", "name", "counts"),
    [
        ({"reuse": 2}, "routed with reuse 2", {"first_step": [1], "step": [5]}),
        ({"cache": 0.4}, "routed with cache 0.4", {"first_step": [1], "step": range(11), "cached_step": range(1, 12)}),
        ({"cache": 0.0}, "routed", {"first_step": [1], "step": [11]}),
    ],
)
def test_steps_that_are_not_full_are_apart(
    routed_bundle: Path, saving: dict[str, Any], name: str, counts: dict[str, Sequence[int]]
) -> None:
    found = run(replace(JOB, model=str(routed_bundle), arm="routed", decodes=False, **saving, steps=12))
    assert found["arm"]["name"] == name
    samples = {item["name"]: len(item["seconds"]) for item in found["stages"] if item["name"].endswith("step")}
    assert samples.keys() <= counts.keys()
    assert all(samples.get(stage, 0) in count for stage, count in counts.items())
    assert sum(samples.values()) == (6 if "reuse" in saving else 12)
    whole = run(replace(JOB, model=str(routed_bundle), arm="routed", decodes=False, steps=12))
    assert "cache" not in saving or found["arm"]["step_flops"] == whole["arm"]["step_flops"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--reuse", "2", "--cache", "0.1"), "reuse 2 and cache 0.1 at once"),
        (("--config", "dit-xl-2", "--model", "x"), "got --model and --config, want one of them"),
        (("--bits", "4"), "--bits is only for --config"),
        (("--encoder",), "--encoder is only for --config"),
        (("--size", "64"), "'64' is not a size, want HEIGHTxWIDTH"),
        (("--size", "62x64"), "height is not a multiple of"),
        (("--config", "dit-xl-2", "--arm", "routed"), "the model is dense, it has no arm 'routed'"),
        (("--model", "/absent"), "/absent"),
    ],
)
def test_what_cannot_be_measured(tmp_path: Path, routed_bundle: Path, arguments: tuple[str, ...], message: str) -> None:
    file = tmp_path / "record.json"
    given = () if "--config" in arguments or "--model" in arguments else ("--model", str(routed_bundle))
    result = call(*given, *arguments, "--trials", "1", "--json", str(file))
    assert result.exit_code == 1
    assert message in result.output
    assert not file.exists()


def test_a_record_is_not_replaced_unasked(tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    file.write_text("mine")
    result = call("--json", str(file))
    assert result.exit_code == 1
    assert "exists; choose another name or allow it with --overwrite" in result.output
    assert file.read_text() == "mine"
