"""A run that is killed or stopped goes on exactly where it was, or says why it does not."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from moddit.errors import (
    FormatError,
    InputError,
    StorageError,
    ValueRangeError,
)
from moddit.files import exclusive
from tests import tiny
from tests.torch_moddit.training import NULL, REPEATED, Latents, configure, difference, read_log, schedule, train
from torch_moddit.data import Item
from torch_moddit.finetune import (
    Mode,
    finetune,
)
from torch_moddit.runfiles import list_checkpoints
from torch_moddit.runstate import read_state, write_state

# Weights after steps whose sums are taken in another order, where AdamW divides gradients by their size, those of
# rounding too (3e-5 measured); one other sample moves them by 1e-3 and more.
DIVIDED = 2e-4
ROUNDED = 1e-5  # of losses; zeros that count change them by a thousandth (measured)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mode": Mode.RANDOM},
        {"target": (0.9, 0.7, 0.6, 0.5)},
        {"ratio_loss": 0.3, "freeze_share": 1.0},
        {"ratio_loss": 0.3, "target": (0.9, 0.5), "regions": 2},
    ],
)
def test_killed_and_resumed_reaches_the_same_weights(
    tmp_path: Path, changes: dict[str, Any], accumulation: int
) -> None:
    config = configure(tmp_path / "whole", accumulation=accumulation, **changes)
    whole = train(config)
    config = replace(config, output=tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        train(config, Latents(breaks_at=4 * 5 * accumulation + 2))  # within step 6, two steps after the last checkpoint
    assert [path.name for path in list_checkpoints(config.output)] == ["00000003"]
    resumed = train(config)
    assert difference(resumed, whole) <= REPEATED
    assert resumed.model.policy.plan == whole.model.policy.plan
    if whole.keep_ratio is not None:
        assert resumed.keep_ratio is not None
        torch.testing.assert_close(resumed.keep_ratio, whole.keep_ratio, rtol=0, atol=REPEATED)
    strip = [{key: value for key, value in row.items() if key == "step"} for row in read_log(resumed)]
    assert strip == [{"step": step} for step in (2, 4, 6, 8)]


class Endless(IterableDataset[Item]):
    """The samples of `Latents` in order, without a length."""

    def __iter__(self) -> Iterator[Item]:
        latents = Latents()
        return (latents[index] for index in range(len(latents)))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataset_without_a_length_resumes_where_it_was(tmp_path: Path, workers: int) -> None:
    whole = train(configure(tmp_path / "whole"), Endless())
    config = configure(tmp_path / "parts", workers=workers)
    assert train(config, Endless(), stop_after=5).step == 5
    assert difference(train(config, Endless()), whole) <= REPEATED
    with pytest.raises(ValueRangeError, match=r"another samples \(was null, is 24\)"):
        train(config)


@pytest.mark.parametrize("length", [3, 40])
def test_the_empty_caption_may_be_shorter_or_longer_than_others(tmp_path: Path, length: int) -> None:
    """Zeros that the mask leaves out change nothing."""
    null = {"text": torch.randn(length, 32), "mask": torch.ones(length, dtype=torch.int64)}
    long = {name: torch.cat([value, value.new_zeros(45 - length, *value.shape[1:])]) for name, value in null.items()}
    first, second = (
        finetune(
            configure(tmp_path / name, steps=2, caption_dropout=0.5, log_every=1),
            *(tiny.make_transformer(), Latents(), schedule()),
            null=item,
        )
        for name, item in (("first", null), ("second", long))
    )
    losses = [[row["loss"] for row in read_log(result)] for result in (first, second)]
    assert losses[0] == pytest.approx(losses[1], rel=ROUNDED)


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


@pytest.mark.parametrize("mode", [Mode.LEARNED, Mode.UNIFORM])
@pytest.mark.parametrize("taken", [5, 8])  # steps, before it is made longer
def test_a_longer_run_keeps_the_schedule_that_it_began_with(tmp_path: Path, mode: Mode, taken: int) -> None:
    whole = train(configure(tmp_path / "whole", mode=mode, steps=14, schedule_steps=8))
    config = configure(tmp_path / "longer", mode=mode, steps=8)
    train(config, stop_after=taken)
    config = replace(config, steps=14)
    assert train(config, stop_after=2).step == taken + 2
    longer = train(config)
    assert longer.is_finished
    assert difference(longer, whole) <= REPEATED
    assert longer.model.policy.plan == whole.model.policy.plan
    rates = {row["step"]: row["learning_rate"] for row in read_log(longer)}
    assert rates[10] == rates[12] == rates[14] == pytest.approx(config.learning_rate * config.floor)
    with pytest.raises(ValueRangeError, match=r"has taken 14 steps, more than steps 8; want at least as many"):
        train(replace(config, steps=8))
    with pytest.raises(ValueRangeError, match=r"another steps \(was 8, is 6\)"):
        train(replace(config, steps=6))


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


def test_a_target_for_each_region_resumes(tmp_path: Path) -> None:
    config = configure(tmp_path, target=(0.9, 0.5), regions=2)
    assert train(config, stop_after=4).step == 4
    assert train(config, stop_after=1).step == 5
    with pytest.raises(ValueRangeError, match=r"another target \(was \[0.9, 0.5\], is \[0.5, 0.9\]\)"):
        train(replace(config, target=(0.5, 0.9)))


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
        ("progress.json", b'{"version": 3, "config": {}}'),
        ("progress.json", b'{"version": 3, "step": -1, "config": {}}'),
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


@pytest.mark.parametrize("mode", [Mode.LEARNED, Mode.UNIFORM])
def test_a_step_is_the_same_however_it_is_divided(tmp_path: Path, mode: Mode) -> None:
    """Also from one step to the next: memory is short, or the machine is another."""
    whole = train(configure(tmp_path / "whole", mode=mode))
    config = configure(tmp_path / "parts", mode=mode)
    train(config, stop_after=3)
    train(replace(config, batch_size=2, accumulation=2), stop_after=2)
    train(replace(config, batch_size=1, accumulation=4, gradient_checkpointing=True), stop_after=1)
    assert difference(train(config), whole) <= DIVIDED


def test_batches_stay_where_they_decide_what_is_in_a_step(tmp_path: Path) -> None:
    class Sizes(Latents):
        buckets = (12, 12)

    for name, data, mode in (("random", Latents, Mode.RANDOM), ("sizes", Sizes, Mode.LEARNED)):
        config = configure(tmp_path / name, mode=mode, batch_size=2, accumulation=2)
        train(config, data(), stop_after=1)
        with pytest.raises(ValueRangeError, match=r"another batch_size \(was 2, is 4\)"):
            train(replace(config, batch_size=4, accumulation=1), data())


def test_resuming_needs_the_same_data_and_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    meaning = "samples_per_step, that is batch_size x accumulation x processes"
    with pytest.raises(ValueRangeError, match=rf"another {meaning} \(was 4, is 8\); repeat it as it was"):
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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["by-products", "checkpoints", "log.jsonl"]


def test_a_checkpoint_that_fails_leaves_the_last_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configure(tmp_path)
    train(config, stop_after=2)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("torch_moddit.trainer.write_state", full)
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
