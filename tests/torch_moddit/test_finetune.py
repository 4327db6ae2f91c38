"""Fine-tuning: reaches the target, resumes exactly, trains every mode, runs from the shell."""

from __future__ import annotations

import copy
import json
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import DistributedType
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset

from moddit.errors import (
    FormatError,
    InputError,
    MissingError,
    OutputExistsError,
    StorageError,
    UnsupportedError,
    ValueRangeError,
)
from moddit.files import exclusive
from moddit.routing import RoutingPlan
from moddit.samplers import NoiseSchedule
from tests import tiny
from torch_moddit import cli
from torch_moddit.data import Item
from torch_moddit.finetune import (
    FinetuneConfig,
    FinetuneResult,
    Mode,
    draw_stratified,
    finetune,
)
from torch_moddit.loading import load_checkpoint, read_keep_ratios
from torch_moddit.model import RoutedPixArt
from torch_moddit.pipeline import ReferencePipeline, read_schedule
from torch_moddit.runfiles import list_checkpoints
from torch_moddit.runstate import read_state, write_state
from torch_moddit.settings import rate_factor
from torch_moddit.trainee import make_trainee

# Repeated training on CPU threads may add in another order; a run that lost its place differs by 1e-3 and more.
REPEATED = 1e-6
NULL: Item = {"text": torch.zeros(16, 32), "mask": torch.ones(16, dtype=torch.int64)}


class Latents(Dataset[Item]):
    """Random latents; `breaks_at` makes one read fail, as a killed process would."""

    def __init__(self, breaks_at: int | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        self.latents = torch.randn(24, 4, 8, 8, generator=generator)
        self.text = torch.randn(24, 16, 32, generator=generator)
        self.reads = 0
        self.breaks_at = breaks_at

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Item:
        if self.reads == self.breaks_at:
            raise KeyboardInterrupt
        self.reads += 1
        return {"latents": self.latents[index], "text": self.text[index], "mask": torch.ones(16, dtype=torch.int64)}


def configure(output: Path, **changes: Any) -> FinetuneConfig:
    config = FinetuneConfig(
        output=output,
        steps=8,
        batch_size=4,
        learning_rate=1e-3,
        warmup=2,
        ratio_rate=0.02,
        distill_weight=1.0,
        log_every=2,
        save_every=3,
        progress=False,
    )
    return replace(config, **changes)


def schedule(**changes: Any) -> NoiseSchedule:
    return read_schedule(tiny.make_scheduler(**changes))


def train(config: FinetuneConfig, dataset: Dataset[Item] | None = None, **arguments: Any) -> FinetuneResult:
    return finetune(config, tiny.make_transformer(), dataset or Latents(), schedule(), null=NULL, **arguments)


def difference(first: FinetuneResult, second: FinetuneResult) -> float:
    left, right = first.model.state_dict(), second.model.state_dict()
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


def read_log(result: FinetuneResult) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.log.read_text().splitlines()]


@pytest.mark.parametrize("target", [0.3, 0.5, 0.75])
def test_reaches_the_target_and_not_a_point_above(tmp_path: Path, target: float) -> None:
    result = train(configure(tmp_path, target=target))
    plan = result.model.plan
    assert plan is not None
    assert target - 0.1 / 12 < plan.mean_keep_ratio <= target + 1e-9
    assert result.is_finished
    log = read_log(result)
    assert [row["step"] for row in log] == [2, 4, 6, 8]
    assert log[0]["keep_ratio"] > log[1]["keep_ratio"]
    assert log[-1]["keep_ratio"] == pytest.approx(plan.mean_keep_ratio)
    assert len(log[-1]["keep_ratio_by_region"]) == len(log[-1]["diffusion_loss_by_region"]) == 4


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("mode", [Mode.LEARNED, Mode.RANDOM])
def test_killed_and_resumed_reaches_the_same_weights(tmp_path: Path, mode: Mode, accumulation: int) -> None:
    config = configure(tmp_path / "whole", mode=mode, accumulation=accumulation)
    whole = train(config)
    config = replace(config, output=tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        train(config, Latents(breaks_at=4 * 5 * accumulation + 2))  # within step 6, two steps after the last checkpoint
    assert [path.name for path in list_checkpoints(config.output)] == ["00000003"]
    resumed = train(config)
    assert difference(resumed, whole) <= REPEATED
    assert resumed.model.plan == whole.model.plan
    if whole.keep_ratio is not None:
        assert resumed.keep_ratio is not None
        torch.testing.assert_close(resumed.keep_ratio, whole.keep_ratio, rtol=0, atol=REPEATED)
    strip = [{key: value for key, value in row.items() if key == "step"} for row in read_log(resumed)]
    assert strip == [{"step": step} for step in (2, 4, 6, 8)]


def test_stops_where_told_and_goes_on(tmp_path: Path) -> None:
    whole = train(configure(tmp_path / "whole"))
    config = configure(tmp_path / "parts")
    first = train(config, stop_after=5)
    assert (first.step, first.is_finished) == (5, False)
    second = train(config, stop_after=5)
    assert (second.step, second.is_finished) == (8, True)
    assert difference(second, whole) <= REPEATED
    third = train(config)  # nothing is left to do
    assert difference(third, whole) <= REPEATED


def test_resuming_refuses_another_configuration(tmp_path: Path) -> None:
    config = configure(tmp_path)
    train(config, stop_after=1)
    with pytest.raises(ValueRangeError, match=r"another learning_rate \(was 0.001, is 0.002\), target"):
        train(replace(config, learning_rate=2e-3, target=0.4))
    train(replace(config, log_every=1), stop_after=1)
    progress = list_checkpoints(tmp_path)[-1] / "progress.json"
    progress.write_text("{")
    with pytest.raises(FormatError, match="not JSON"):
        train(config)


class Bomb:
    """What a pickle does when it is read: here it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_resuming_runs_no_pickle(tmp_path: Path) -> None:
    config = configure(tmp_path / "run")
    train(config, stop_after=3)
    folder = list_checkpoints(config.output)[-1]
    assert sorted(path.name for path in folder.iterdir()) == ["progress.json", "state.json", "state.safetensors"]
    mark = tmp_path / "mark"
    # the files that Accelerate stores a state in, and reads it from
    names = ["custom_checkpoint_0.pkl", "optimizer.bin", "scheduler.bin", "random_states_0.pkl", "scaler.pt"]
    names += ["pytorch_model.bin", "model.pkl", "state.pt", "sampler.bin", "dl_state_dict.bin"]
    for name in names:
        torch.save(Bomb(mark), folder / name)
    resumed = train(config)
    assert not mark.exists()
    assert difference(resumed, train(configure(tmp_path / "whole"))) <= REPEATED
    for name in ("state.safetensors", "state.json", "progress.json"):
        torch.save(Bomb(mark), list_checkpoints(config.output)[-1] / name)
        with pytest.raises(FormatError, match=rf"/{name}: not (JSON|the state of a run)"):
            train(config)
        assert not mark.exists()


def test_a_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    shared = torch.arange(6.0).view(2, 3)
    state = {
        "a": [shared, shared.T, shared[0]],
        "b": {0: (0.1, 1e-300, -0.0, math.inf), 7: None, "x": True},
        "c": {"dict": "list", "n": 2**60},
        "d": [torch.tensor(3.0), torch.zeros(0), torch.ones(2, dtype=torch.bfloat16), torch.tensor([True])],
    }
    write_state(tmp_path, state)
    found = read_state(tmp_path)
    assert str(found) == str(state)
    assert found["b"] == state["b"]
    with pytest.raises(TypeError, match="holds a PosixPath"):
        write_state(tmp_path, {"a": tmp_path})


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("state.json", b"{"),
        ("state.json", b"[]"),
        ("state.json", b"{}"),
        ("state.json", b'{"object": []}'),
        ("state.json", b'{"tensor": "99"}'),
        ("state.json", b'{"dict": [["trainee", {"tensor": "0"}]]}'),
        ("state.json", b'{"dict": [[{"list": []}, 1]]}'),
        ("state.json", b"[" * 100_000),
        ("state.safetensors", b""),
        ("state.safetensors", b"\xff" * 100),
        ("progress.json", b"[]"),
        ("progress.json", b'{"version": 2, "config": {}}'),
        ("progress.json", b'{"version": 2, "step": -1, "config": {}}'),
        ("progress.json", b'{"step": 3, "config": {}}'),
    ],
)
def test_a_damaged_checkpoint_is_one_error(tmp_path: Path, file: str, content: bytes) -> None:
    config = configure(tmp_path)
    train(config, stop_after=1)
    (list_checkpoints(tmp_path)[-1] / file).write_bytes(content)
    wanted = "(delete this checkpoint|.* another output folder)"
    with pytest.raises(InputError, match=rf"^\[finetune\] .*/{file}: .*; {wanted}"):
        train(config)


def turn(tensors: dict[str, Tensor]) -> None:
    """Turn a matrix, so that it has as many numbers in another shape."""
    name = next(name for name, value in tensors.items() if value.dim() == 2 and value.shape[0] != value.shape[1])
    tensors[name] = tensors[name].t().contiguous()


def drop_average(state: dict[str, Any]) -> None:
    state["average"]["shadow_params"].pop()


def turn_moments(state: dict[str, Any]) -> None:
    moments = (values["exp_avg"] for values in state["optimizer_0"]["state"].values())
    matrix = next(value for value in moments if value.dim() == 2 and value.shape[0] != value.shape[1])
    matrix.set_(matrix.t().contiguous())


@pytest.mark.parametrize("change", [lambda state: turn(state["trainee"]), drop_average, turn_moments])
def test_a_state_of_other_shapes_is_refused(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Before a step is taken: where the libraries use it, it is too late for an error that names the file."""
    config = configure(tmp_path)
    train(config, stop_after=1)
    folder = list_checkpoints(tmp_path)[-1]
    state = read_state(folder)
    change(state)
    write_state(folder, state)
    with pytest.raises(FormatError, match=r"state\.json: (trainee|average|optimizer_0) does not fit .*; delete this"):
        train(config)


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    config = configure(tmp_path)
    train(config, stop_after=1)
    with pytest.raises(FormatError, match="trainee does not fit"):
        finetune(config, tiny.make_transformer(num_layers=2), Latents(), schedule(), null=NULL)


def test_resuming_needs_the_same_data_and_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure(tmp_path)
    train(config, stop_after=1)

    class Fewer(Latents):
        def __len__(self) -> int:
            return 12

    with pytest.raises(ValueRangeError, match=r"another samples \(was 24, is 12\)"):
        train(config, Fewer())
    with pytest.raises(ValueRangeError, match=r"another schedule.beta_end \(was 0.02, is 0.03\)"):
        finetune(config, tiny.make_transformer(), Latents(), schedule(beta_end=0.03), null=NULL)
    monkeypatch.setattr("accelerate.Accelerator.num_processes", 2)
    with pytest.raises(ValueRangeError, match=r"another processes \(was 1, is 2\); repeat it as it was"):
        train(config)


@pytest.mark.parametrize("log_every", [1, 100])
def test_a_run_that_diverges_stops_and_keeps_the_last_checkpoint(tmp_path: Path, log_every: int) -> None:
    config = configure(tmp_path, save_every=2, log_every=log_every)
    train(config, stop_after=2)

    class Spoiled(Latents):
        def __getitem__(self, index: int) -> Item:
            return {**super().__getitem__(index), "latents": torch.full((4, 8, 8), torch.nan)}

    with pytest.raises(ValueRangeError, match=r"not finite at step \d; choose another output folder and lower"):
        train(config, Spoiled())
    assert [path.name for path in list_checkpoints(tmp_path)] == ["00000002"]
    log = tmp_path / "log.jsonl"
    assert log.exists() == (log_every == 1)
    assert "NaN" not in (log.read_text() if log.exists() else "")


def test_the_log_tells_each_step_once(tmp_path: Path) -> None:
    config = configure(tmp_path, log_every=1)
    with pytest.raises(KeyboardInterrupt):  # before the first checkpoint
        train(config, Latents(breaks_at=4 * 2 + 1))
    assert not list_checkpoints(tmp_path)
    with pytest.raises(KeyboardInterrupt):  # two steps after it
        train(config, Latents(breaks_at=4 * 5 + 1))
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 6, "sam')  # cut while it was written
    result = train(config)
    assert [row["step"] for row in read_log(result)] == list(range(1, 9))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "log.jsonl"]


def test_a_model_that_is_split_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.Accelerator.distributed_type", DistributedType.FSDP)
    with pytest.raises(UnsupportedError, match="FSDP splits the model"):
        train(configure(tmp_path))


def test_a_checkpoint_that_fails_leaves_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure(tmp_path)
    train(config, stop_after=2)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("torch_moddit.finetune.write_state", full)
        with pytest.raises(StorageError, match="disk is full"):
            train(config)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["00000002"]
    assert train(config).is_finished


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    config = configure(tmp_path, save_every=1, steps=4)
    train(config, stop_after=2)
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(checkpoints / "00000001", checkpoints / "00000000")  # the oldest, not dropped yet
    for name in (".00000000.01234567.trash", ".00000003.01234567.partial", ".00000009.01234567.partial"):
        (checkpoints / name).mkdir()
    train(config, stop_after=0)
    assert sorted(path.name for path in checkpoints.iterdir()) == ["00000001", "00000002"]


def test_two_runs_do_not_write_into_one_folder(tmp_path: Path) -> None:
    with (
        exclusive(tmp_path / "checkpoints"),
        pytest.raises(StorageError, match="checkpoints: another program is writing into it"),
    ):
        train(configure(tmp_path))


def test_starts_at_the_dense_model(tmp_path: Path) -> None:
    config = configure(tmp_path, steps=100, learning_rate=0.0, router_rate=0.0, ratio_rate=0.0, log_every=1)
    result = train(config, stop_after=1)
    assert read_log(result)[0]["distill_loss"] < 1e-10


def test_the_loss_falls(tmp_path: Path) -> None:
    result = train(configure(tmp_path, steps=40, batch_size=8, log_every=10, save_every=40))
    log = read_log(result)
    assert log[-1]["diffusion_loss"] < log[0]["diffusion_loss"]


@pytest.mark.parametrize("mode", [Mode.UNIFORM, Mode.RANDOM, Mode.DENSE])
def test_controls(tmp_path: Path, mode: Mode) -> None:
    result = train(configure(tmp_path, mode=mode))
    routers = [name for name in result.model.state_dict() if "router" in name]
    assert len(routers) == (3 if mode is Mode.UNIFORM else 0)
    assert result.model.plan == (None if mode is Mode.DENSE else RoutingPlan.uniform(3, 4, 5))
    assert result.keep_ratio is None
    assert read_log(result)[-1]["keep_ratio"] == (1.0 if mode is Mode.DENSE else 0.5)
    if mode is Mode.UNIFORM:
        weights = [parameter for parameter in result.model.router_parameters() if bool((parameter != 0).any())]
        assert len(weights) == 3


def test_a_routed_model_trains_on_under_its_plan(tmp_path: Path) -> None:
    plan = RoutingPlan(((10, 5), (3, 2), (7, 7)))
    model = RoutedPixArt.from_dense(tiny.make_transformer(), plan)
    before = copy.deepcopy(model.state_dict())
    config = configure(tmp_path, mode=Mode.FIXED, regions=2)
    result = finetune(config, model, Latents(), schedule(), null=NULL)
    assert result.model.plan == plan
    assert any(not torch.equal(value, before[name]) for name, value in result.model.state_dict().items())
    with pytest.raises(ValueRangeError, match="mode learned got a RoutedPixArt"):
        finetune(configure(tmp_path / "x"), model, Latents(), schedule(), null=NULL)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_loss_is_the_distance_to_what_the_schedule_predicts(tmp_path: Path, prediction_type: str) -> None:
    timestep = 400

    class One(Latents):
        def __len__(self) -> int:
            return 1

    config = configure(
        tmp_path, mode=Mode.DENSE, steps=1, batch_size=1, distill_weight=0.0, caption_dropout=0.0, log_every=1
    )
    transformer = tiny.make_transformer()
    reference = copy.deepcopy(transformer)
    draws: list[Tensor] = []

    def draw(count: int, generator: torch.Generator) -> Tensor:
        draws.append(torch.randn(1, 4, 8, 8, generator=generator.clone_state()))  # the noise is drawn next
        return torch.full((count,), timestep)

    result = finetune(
        config, transformer, One(), schedule(prediction_type=prediction_type), draw_timesteps=draw, null=NULL
    )
    item = One()[0]
    scheduler = tiny.make_scheduler("ddim", prediction_type=prediction_type)
    times = torch.tensor([timestep])
    clean, noise = item["latents"][None], draws[0]
    with torch.no_grad():
        output = reference(
            scheduler.add_noise(clean, noise, times),
            encoder_hidden_states=item["text"][None],
            timestep=times,
            encoder_attention_mask=item["mask"][None],
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        ).sample[:, :4]
    wanted = noise if prediction_type == "epsilon" else scheduler.get_velocity(clean, noise, times)
    assert read_log(result)[0]["diffusion_loss"] == pytest.approx(float((output - wanted).square().mean()), rel=1e-4)


def test_drawn_timesteps_cover_the_range() -> None:
    drawn = draw_stratified(10, torch.Generator().manual_seed(0), num_train_timesteps=1000)
    assert sorted((drawn // 100).tolist()) == list(range(10))


@pytest.mark.parametrize("mode", Mode)
def test_gradient_checkpointing_is_for_every_mode(tmp_path: Path, mode: Mode) -> None:
    model = RoutedPixArt.from_dense(tiny.make_transformer(), RoutingPlan.uniform(3, 4, 5))
    start = model if mode is Mode.FIXED else tiny.make_transformer()
    config = configure(tmp_path, mode=mode, gradient_checkpointing=True)
    assert make_trainee(config, start, 1000).model.gradient_checkpointing


def test_rates_rise_stay_and_fall(tmp_path: Path) -> None:
    config = configure(tmp_path, steps=100, warmup=10, flat_share=0.5, floor=0.1)
    assert [rate_factor(step, config) for step in (0, 9, 30)] == pytest.approx([0.1, 1.0, 1.0])
    assert rate_factor(75, config) == pytest.approx(0.55)
    assert rate_factor(99, config) == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": 0.05}, "target"),
        ({"steps": 0}, "steps"),
        ({"caption_dropout": 1.5}, "caption_dropout"),
        ({"accumulation": 100_001}, r"accumulation out of range, got 100001, want 1\.\.4096"),
        ({"workers": 10**6}, "workers"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"seed": 2**64}, "seed"),
        ({"mode": Mode.UNIFORM, "target": 0.45}, "whole tenths"),
    ],
)
def test_refuses_configurations_that_cannot_be(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueRangeError, match=message):
        configure(tmp_path, **changes)


def test_the_largest_seed(tmp_path: Path) -> None:
    assert train(configure(tmp_path, steps=2, seed=2**64 - 1)).is_finished


def test_asks_for_what_the_data_needs(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="null"):
        finetune(configure(tmp_path), tiny.make_transformer(), Latents(), schedule())


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_pipeline(tmp_path_factory.mktemp("dense") / "m", kind="alpha", routed=False)


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli.command, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


def test_shell_trains_on_pictures(tmp_path: Path, dense: Path) -> None:
    for index in range(3):
        Image.new("RGB", (20, 24), (80 * index, 0, 99)).save(tmp_path / f"{index}.png")
        (tmp_path / f"{index}.txt").write_text("a small blue square")
    out = tmp_path / "out"
    code, output = run(
        *("--model", dense, "--images", tmp_path, "--out", out, "--steps", 3, "--batch-size", 2, "--warmup", 1),
        *("--distill-weight", 1, "--height", 16, "--width", 24, "--dtype", "float16"),
    )
    assert code == 0, output
    assert output.splitlines()[-1] == str(out / "model")
    model = load_checkpoint(out / "model")
    assert model.plan is not None
    assert model.plan.mean_keep_ratio == pytest.approx(0.5)
    assert read_keep_ratios(out / "model") is not None
    assert ReferencePipeline.load(out / "model").generate("a red circle", steps=2).shape == (32, 32, 3)


def test_shift_of_the_vae_is_not_used_as_in_the_pipelines(tmp_path: Path, dense: Path) -> None:
    """diffusers' pipelines of PixArt decode without it: what is trained on must not have it either."""
    shutil.copytree(dense, tmp_path / "shifted")
    path = tmp_path / "shifted/vae/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shift_factor": 0.4}))
    Image.new("RGB", (16, 16), (80, 0, 99)).save(tmp_path / "0.png")
    (tmp_path / "0.txt").write_text("a small blue square")
    routers = []
    for model in (dense, tmp_path / "shifted"):
        files = ("--model", model, "--images", tmp_path, "--out", tmp_path / f"out-{model.name}")
        code, output = run(*files, "--steps", 1, "--batch-size", 1, "--height", 16, "--width", 16)
        assert code == 0, output
        routers.append(load_checkpoint(tmp_path / f"out-{model.name}" / "model").transformer.state_dict())
    assert all(torch.equal(routers[1][name], value) for name, value in routers[0].items())


def test_two_processes_share_a_run(tmp_path: Path, dense: Path) -> None:
    for index in range(4):
        Image.new("RGB", (16, 16), (60 * index, 0, 99)).save(tmp_path / f"{index}.png")
        (tmp_path / f"{index}.txt").write_text("a small blue square")
    launch = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "torch_moddit.finetune")
    files = ("--model", dense, "--images", tmp_path, "--out", tmp_path / "out", "--height", "16", "--width", "16")
    command = [sys.executable, "-m", *launch, *map(str, files), "--steps", "3", "--batch-size", "2", "--log-every", "1"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [(row["step"], row["samples"]) for row in rows] == [(1, 4), (2, 8), (3, 12)]
    assert done.stdout.splitlines() == [str(tmp_path / "out" / "model")]  # one of them writes it
    assert load_checkpoint(tmp_path / "out" / "model").plan is not None
    # nor does one process go on where two have been
    with pytest.raises(ValueRangeError, match=r"another processes \(was 2, is 1\)"):
        run(*command[8:], "--overwrite")


def test_shell_trains_on_latents(tmp_path: Path, dense: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    save_file(
        {"latents": torch.randn(4, 4, 8, 8), "text": torch.randn(4, 16, 32), "mask": torch.ones(4, 16)},
        data / "0.safetensors",
    )
    code, output = run(
        *("--model", dense, "--latents", data, "--out", tmp_path / "out", "--steps", 2, "--batch-size", 2),
        *("--mode", "uniform", "--target", 0.3, "--caption-dropout", 0),
    )
    assert code == 0, output
    assert load_checkpoint(tmp_path / "out" / "model").plan == RoutingPlan.uniform(3, 4, 3)


def test_shell_starts_from_a_transformer_and_a_base(tmp_path: Path, dense: Path) -> None:
    """As the paper's own model is published, Sigma 512: a transformer, and a pipeline for the rest."""
    tiny.make_transformer("alpha", seed=8).save_pretrained(tmp_path / "one" / "transformer")
    data = tmp_path / "data"
    data.mkdir()
    tensors = {"latents": torch.randn(4, 4, 8, 8), "text": torch.randn(4, 16, 32), "mask": torch.ones(4, 16)}
    save_file(tensors, data / "0.safetensors")
    files = ("--model", tmp_path / "one", "--base", dense, "--latents", data, "--out", tmp_path / "out")
    code, output = run(*files, "--steps", 1, "--batch-size", 2, "--caption-dropout", 0)
    assert code == 0, output
    found = ReferencePipeline.load(tmp_path / "out" / "model")
    assert found.model.plan is not None
    assert found.generate("a red circle", steps=2).shape == (32, 32, 3)
    index = json.loads((tmp_path / "out" / "model" / "model_index.json").read_text())
    assert index["transformer"] == ["torch_moddit", "RoutedPixArtTransformer2DModel"]
    assert index["text_encoder"] == ["transformers", "T5EncoderModel"]


def test_every_path_of_the_shell_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("data", "out/model"):
        (tmp_path / name).mkdir(parents=True)
    for data in ("--images=~/data", "--latents=~/data"):  # --model and --base are find_checkpoint's
        with pytest.raises(OutputExistsError, match=re.escape(f"{tmp_path / 'out' / 'model'}: exists")):
            run("--model=~/model", data, "--out=~/out", "--steps=1")


def test_shell_tells_what_is_wrong(
    tmp_path: Path, dense: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--model", dense, "--out", tmp_path / "o", "--steps", 1)[0] == 2
    arguments = ["--model", dense, "--images", tmp_path, "--out", tmp_path / "o", "--steps", 1]
    monkeypatch.setattr("sys.argv", ["finetune", *map(str, arguments)])
    assert cli.main() == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: [data]")
