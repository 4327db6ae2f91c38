"""Training with LoRA, or of routers alone: what is not trained stays, is its own teacher, and is stored once."""

from __future__ import annotations

import copy
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor

from moddit.checkpoint.lora import DIFFUSERS_FILE
from moddit.checkpoint.safetensors import read_tensors
from moddit.checkpoint.sources import LoraSource, Sources
from moddit.errors import InputError, MissingError, UnsupportedError, ValueRangeError
from tests import tiny
from tests.torch_moddit.training import NULL, REPEATED, Latents, configure, difference, read_log, schedule, train
from torch_moddit.architectures import dense
from torch_moddit.conditioning import make_context
from torch_moddit.data import collate
from torch_moddit.export import save_adapter, save_checkpoint
from torch_moddit.finetune import FinetuneResult, Mode, finetune
from torch_moddit.loading import load_checkpoint
from torch_moddit.runfiles import list_checkpoints
from torch_moddit.runstate import read_state
from torch_moddit.settings import Train
from torch_moddit.tensorfiles import write_tensors
from torch_moddit.trainee import Trainee, make_adamw, make_trainee

# Merging in float32 rounds W + B @ A in another order than the trained model adds W x + B (A x).
MERGED = 1e-5
RANK = 2
PARTS = [Train.LORA, Train.ROUTERS]


def make(**changes: Any) -> Trainee:
    config = configure(Path("unused"), lora_rank=RANK, **changes)
    return make_trainee(config, tiny.make_transformer(), 1000)


def inputs() -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    data = Latents()
    batch = collate([data[index] for index in range(4)])
    return batch.pop("latents"), torch.tensor([10, 300, 600, 999]), dict(make_context(batch, {}))


def disturb(trainee: Trainee) -> None:
    with torch.no_grad():
        for parameter in trainee.trained():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)


@pytest.mark.parametrize("train_", PARTS)
@pytest.mark.parametrize("mode", [Mode.LEARNED, Mode.UNIFORM])
def test_what_is_not_trained_is_the_dense_teacher(train_: Train, mode: Mode) -> None:
    """To the bit, however the adapters and routers have moved: also after MLPs were doubled against their gates."""
    reference = dense(copy.deepcopy(tiny.make_transformer()), 1000).eval()
    trainee = make(train=train_, mode=mode).eval()
    disturb(trainee)
    with torch.no_grad():
        told = reference(*inputs())
        assert torch.equal(trainee.predict_untrained(*inputs()), told)
        assert not torch.allclose(trainee(*inputs()), told, atol=1e-3)


def test_the_teacher_changes_no_gradient() -> None:
    gradients = []
    for asks in (False, True):
        trainee = make(train=Train.LORA)
        torch.manual_seed(0)
        disturb(trainee)
        output = trainee(*inputs())
        if asks:
            with torch.no_grad():
                trainee.predict_untrained(*inputs())
        output.square().mean().backward()
        gradients.append([parameter.grad for parameter in trainee.trained()])
    for first, second in zip(*gradients, strict=True):
        assert first is not None
        assert torch.equal(first, second)


@pytest.mark.parametrize("train_", PARTS)
def test_only_what_is_told_moves(tmp_path: Path, train_: Train) -> None:
    result = train(configure(tmp_path, train=train_, lora_rank=RANK, weight_decay=0.1))
    before = make(train=Train.ALL).model.transformer.state_dict()
    after = result.model.transformer.state_dict()
    assert after.keys() == before.keys()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    routers = {name for name in after if name.endswith("router.weight")}
    assert routers <= moved
    if train_ is Train.ROUTERS:
        assert moved == routers
        assert result.lora is None
    else:
        kinds = {name.split(".", 2)[2].removesuffix(".weight") for name in moved - routers}
        layers = {f"attn{n}.to_{part}" for n in (1, 2) for part in ("q", "k", "v", "out.0")}
        assert kinds == layers | {"ff.net.0.proj", "ff.net.2"}


@pytest.mark.parametrize("train_", PARTS)
def test_starts_at_the_dense_model(tmp_path: Path, train_: Train) -> None:
    config = configure(tmp_path, steps=100, train=train_, learning_rate=0.0, router_rate=0.0, ratio_rate=0.0)
    assert read_log(train(replace(config, log_every=1), stop_after=1))[0]["distill_loss"] < 1e-10


@pytest.mark.parametrize("train_", PARTS)
def test_killed_and_resumed_reaches_the_same_weights(tmp_path: Path, train_: Train) -> None:
    config = configure(tmp_path / "whole", train=train_, lora_rank=RANK)
    whole = train(config)
    config = replace(config, output=tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        train(config, Latents(breaks_at=4 * 5 + 2))
    (checkpoint,) = list_checkpoints(config.output)
    stored = (checkpoint / "state.safetensors").stat().st_size
    assert stored < sum(value.nbytes for value in whole.model.state_dict().values()) / 2  # no weight that never changes
    assert difference(train(config), whole) <= REPEATED


def test_a_run_goes_on_with_the_weights_that_it_began_with(tmp_path: Path) -> None:
    config = configure(tmp_path, train=Train.LORA, lora_rank=RANK)
    train(config, stop_after=3)
    with pytest.raises(ValueRangeError, match="untrained_weights"):
        finetune(config, tiny.make_transformer(seed=5), Latents(), schedule(), null=NULL)


@pytest.mark.parametrize("mode", [Mode.RANDOM, Mode.DENSE])
def test_routers_are_not_trained_where_there_are_none(tmp_path: Path, mode: Mode) -> None:
    with pytest.raises(ValueRangeError, match=f"train routers got mode {mode.value}"):
        configure(tmp_path, mode=mode, train=Train.ROUTERS)


@pytest.mark.parametrize("mode", [Mode.RANDOM, Mode.DENSE])
def test_controls_take_adapters_too(tmp_path: Path, mode: Mode) -> None:
    result = train(configure(tmp_path, mode=mode, train=Train.LORA, lora_rank=RANK))
    assert result.lora is not None
    assert not any("lora" in name for name in result.model.state_dict())


@pytest.mark.parametrize("train_", PARTS)
def test_weights_in_half_precision_change_no_answer(train_: Train) -> None:
    """Autocast rounds what is stored in 16 bits anyway; tables, which it leaves as they are, stay in float32."""
    whole, stored = (make(train=train_, mixed_precision=name).eval() for name in ("no", "bf16"))
    matrices = [
        value for name, value in stored.named_parameters() if name.endswith(("to_q.weight", "to_q.base_layer.weight"))
    ]
    assert {value.dtype for value in matrices} == {torch.bfloat16}
    assert all(value.dtype == torch.float32 for value in stored.trained())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        told = dense(tiny.make_transformer(), 1000).eval()(*inputs())
        assert torch.equal(stored.predict_untrained(*inputs()), told)
        assert torch.equal(stored(*inputs()), whole(*inputs()))


@pytest.mark.parametrize("train_", list(Train))
def test_training_in_half_precision_ends_in_float32(tmp_path: Path, train_: Train) -> None:
    AcceleratorState._reset_state()  # it knows one precision in a process
    config = configure(tmp_path, train=train_, lora_rank=RANK, mixed_precision="bf16", gradient_checkpointing=True)
    result = train(config)
    assert all(value.dtype == torch.float32 for value in result.model.parameters())
    assert all(row["loss"] < 10 for row in read_log(result))
    AcceleratorState._reset_state()


def test_a_precision_that_is_not_there_is_one_error(tmp_path: Path) -> None:
    AcceleratorState._reset_state()
    with pytest.raises(UnsupportedError, match=r"refuses mixed_precision 'fp16' .which a cpu has not"):
        train(configure(tmp_path / "fp16", mixed_precision="fp16"))
    AcceleratorState._reset_state()
    train(configure(tmp_path / "whole", steps=1))
    with pytest.raises(UnsupportedError, match=r"refuses mixed_precision 'bf16' .*the same for all runs"):
        train(configure(tmp_path / "bf16", mixed_precision="bf16"))


def test_adam_of_8_bits_goes_on_where_it_was(tmp_path: Path) -> None:
    """One matrix of the tiny model is large enough for it. The library is not among those of development: peft loads
    it, seconds and a warning, wherever it is installed.
    """
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    config = configure(tmp_path / "whole", use_8bit_adam=True)
    whole = train(config)
    config = replace(config, output=tmp_path / "stopped")
    train(config, stop_after=3)
    state = read_state(list_checkpoints(config.output)[-1])["optimizer_0"]["state"]
    assert any(value.dtype == torch.uint8 for value in _tensors(state))
    assert difference(train(config), whole) <= REPEATED


def _tensors(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from _tensors(value)


def test_adam_of_8_bits_is_refused_where_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(MissingError, match="pip install 'bitsandbytes"):
        make_adamw(configure(Path("unused"), use_8bit_adam=True), make())


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "m"
    save_checkpoint(folder, dense(tiny.make_transformer(), 1000))
    return folder


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> FinetuneResult:
    return train(configure(tmp_path_factory.mktemp("run"), train=Train.LORA, lora_rank=RANK))


def write(folder: Path, result: FinetuneResult) -> Path:
    save_adapter(folder, result)
    return folder


def test_what_is_added_to_a_routed_model_is_no_adapter_of_a_dense_one(tmp_path: Path, result: FinetuneResult) -> None:
    config = configure(tmp_path, mode=Mode.FIXED, train=Train.LORA, lora_rank=RANK)
    before = copy.deepcopy(result.model)
    further = finetune(config, copy.deepcopy(before), Latents(), schedule(), null=NULL)
    assert further.lora is None
    with pytest.raises(MissingError, match="no adapters of a dense model; want a run with train lora, and not in mode"):
        save_adapter(tmp_path / "adapter", further)
    assert not (tmp_path / "adapter").exists()
    after = further.model.state_dict()
    assert after.keys() == before.state_dict().keys()
    assert any(not torch.equal(value, after[name]) for name, value in before.state_dict().items() if "ff" in name)


def test_the_adapter_on_the_dense_model_is_the_merged_model(tmp_path: Path, base: Path, result: FinetuneResult) -> None:
    adapter = write(tmp_path / "adapter", result)
    found = load_checkpoint(Sources(base / "transformer", loras=(LoraSource(adapter),)))
    assert found.policy == result.model.policy
    left, right = found.state_dict(), result.model.state_dict()
    assert left.keys() == right.keys()
    assert max(float((left[name] - right[name]).abs().max()) for name in left) <= MERGED


def test_a_routed_adapter_is_for_a_dense_model_and_at_its_own_strength(
    tmp_path: Path, base: Path, result: FinetuneResult
) -> None:
    adapter = write(tmp_path / "adapter", result)
    save_checkpoint(tmp_path / "routed", result.model)
    with pytest.raises(UnsupportedError, match="has routers, and so has the checkpoint"):
        load_checkpoint(Sources(tmp_path / "routed" / "transformer", loras=(LoraSource(adapter),)))
    with pytest.raises(UnsupportedError, match=r"trained at a scale of 1, got 0\.5"):
        load_checkpoint(Sources(base / "transformer", loras=(LoraSource(adapter, 0.5),)))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (None, "has routers, but no 'diffcr' in its metadata"),
        ("{", "not JSON"),
        (json.dumps({"regions": 1, "num_train_timesteps": 1000, "keep_tenths": [[5]]}), "has 1 layers, want 3"),
        (json.dumps({"regions": 1, "num_train_timesteps": 10, "keep_tenths": [[5]] * 3}), r"shape \[4\], want \[1\]"),
    ],
)
def test_a_damaged_plan_is_one_error(
    tmp_path: Path, base: Path, result: FinetuneResult, plan: str | None, message: str
) -> None:
    file = write(tmp_path / "adapter", result) / DIFFUSERS_FILE
    tensors = {name: torch.from_numpy(tensor.read()) for name, tensor in read_tensors(file).items()}
    write_tensors(file, tensors, {} if plan is None else {"diffcr": plan})
    with pytest.raises(InputError, match=message):
        load_checkpoint(Sources(base / "transformer", loras=(LoraSource(file),)))


@pytest.mark.parametrize(
    ("pattern", "replacement", "message"),
    [
        (r".*\.(router|keep_ratio).*", None, "has 'diffcr' in its metadata, .* but no routers"),
        (
            r"transformer\.(transformer_blocks\.0\.router\.weight)",
            r"\1",
            "are both 'transformer_blocks.0.router.weight'",
        ),
    ],
)
def test_routers_are_there_and_there_once(
    tmp_path: Path, base: Path, result: FinetuneResult, pattern: str, replacement: str | None, message: str
) -> None:
    file = write(tmp_path / "adapter", result) / DIFFUSERS_FILE
    tensors = {name: torch.from_numpy(tensor.read()) for name, tensor in read_tensors(file).items()}
    found = {match[0]: match for match in map(re.compile(pattern).fullmatch, tensors) if match}
    for name, match in found.items():
        if replacement is None:
            del tensors[name]
        else:
            tensors[match.expand(replacement)] = tensors[name].clone()
    write_tensors(file, tensors, {"diffcr": json.dumps(result.model.policy.plan.to_json())})
    with pytest.raises(InputError, match=message):
        load_checkpoint(Sources(base / "transformer", loras=(LoraSource(file),)))
