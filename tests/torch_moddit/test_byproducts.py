"""By-products of a run: a model for each tenth that the mean keep ratio passes, and how one becomes a pipeline."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from moddit.checkpoint.safetensors import read_tensors
from moddit.errors import FormatError, MissingError, OutputExistsError
from tests import tiny
from tests.shards import save_shards
from tests.torch_moddit.training import REPEATED, Latents, configure, train
from torch_moddit import cli
from torch_moddit.byproducts import BY_PRODUCTS, RECORD, list_by_products
from torch_moddit.finetune import Mode
from torch_moddit.loading import load_checkpoint
from torch_moddit.pipeline import ReferencePipeline
from torch_moddit.runfiles import list_checkpoints
from torch_moddit.settings import Target, Train

# the mean falls for ten steps
SLOW: dict[str, Any] = {"steps": 16, "fall_share": 0.6, "freeze_share": 0.9, "save_every": 5}


def digest(output: Path) -> dict[str, str]:
    files = [path for path in (output / BY_PRODUCTS).rglob("*") if path.is_file()]
    return {str(path.relative_to(output)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("trained", Train)
@pytest.mark.parametrize("target", [0.5, (0.8, 0.6, 0.4, 0.2)])
def test_each_tenth_that_the_mean_passes_leaves_a_model(tmp_path: Path, trained: Train, target: Target) -> None:
    config = configure(tmp_path / "run", keep_checkpoints=1, train=trained, target=target, **SLOW)
    train(config)
    found = list_by_products(config.output)
    assert [(item.name, item.step) for item in found] == [("0.9", 2), ("0.8", 4), ("0.7", 6), ("0.6", 8)]
    for item in found:
        model = load_checkpoint(item.folder(config.output))
        lost = 0.1 / 12 if target == 0.5 else 0.1 / 3  # a tenth of one ratio, in each region with a target of its own
        assert item.tenths / 10 - lost < model.policy.plan.mean_keep_ratio <= item.tenths / 10 + 1e-9
        stopped = train(replace(config, output=tmp_path / item.name), stop_after=item.step)
        average = stopped.model.state_dict()
        assert all(
            torch.allclose(value, average[name], rtol=0, atol=REPEATED) for name, value in model.state_dict().items()
        )


@pytest.mark.parametrize("reads", [4 * 4 + 2, 4 * 8 + 2])  # before the first checkpoint, and after it
def test_killed_and_resumed_leaves_the_same_files(tmp_path: Path, reads: int) -> None:
    config = configure(tmp_path / "whole", **SLOW)
    train(config)
    killed = replace(config, output=tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        train(killed, Latents(breaks_at=reads))
    steps = [int(path.name) for path in list_checkpoints(killed.output)]
    assert max(item.step for item in list_by_products(killed.output)) > max(steps, default=0)  # one is made twice
    train(killed)
    assert digest(killed.output) == digest(config.output)


def test_what_a_resumed_run_has_not_reached_is_not_there(tmp_path: Path) -> None:
    config = configure(tmp_path, **SLOW)
    with pytest.raises(KeyboardInterrupt):
        train(config, Latents(breaks_at=4 * 8 + 2))
    train(config, stop_after=0)
    assert [item.step for item in list_by_products(tmp_path)] == [2, 4]  # the checkpoint is of step 5
    (tmp_path / BY_PRODUCTS / "0.9" / RECORD).write_text("{")
    with pytest.raises(FormatError, match=r"0\.9/by-product\.json: not JSON"):
        train(config)


def test_nothing_is_kept_where_nothing_falls_or_nobody_wants_it(tmp_path: Path) -> None:
    cases: dict[str, dict[str, Any]] = {
        "off": {"by_products": False},
        "uniform": {"mode": Mode.UNIFORM},
        "one": {"target": 1.0},
    }
    for name, changes in cases.items():
        train(configure(tmp_path / name, **changes))
        assert not (tmp_path / name / BY_PRODUCTS).exists()


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli.command, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_one_becomes_a_pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = tiny.save_pipeline(tmp_path / "dense", kind="alpha", routed=False)
    data, out = save_shards(tmp_path / "data", dense), tmp_path / "out"
    monkeypatch.chdir(tmp_path)  # the run remembers where its model is, wherever it is used from
    training = ("--data", data, "--out", out, "--steps", 6, "--batch-size", 2, "--caption-dropout", 0)
    code, output = run("--model", "dense", *training, "--target", 0.65, "--fall-share", 0.9, "--freeze-share", 1)
    assert code == 0, output
    assert [line for line in output.splitlines() if "--pick" in line] == [
        f"--pick {item.name} has the model of step {item.step}" for item in list_by_products(out)
    ]
    monkeypatch.chdir("/")
    assert run("--out", out, "--pick", "0.7", "--dtype", "float16") == (0, f"{out / 'model-0.7'}\n")
    picked, kept = load_checkpoint(out / "model-0.7"), load_checkpoint(out / BY_PRODUCTS / "0.7")
    assert picked.policy == kept.policy
    state = kept.state_dict()
    assert all(torch.equal(value, state[name].half().float()) for name, value in picked.state_dict().items())
    names = read_tensors(out / "model-0.7/transformer/diffusion_pytorch_model.safetensors").keys()
    assert {f"transformer_blocks.{layer}.keep_ratio" for layer in range(3)} <= names
    assert ReferencePipeline.load(out / "model-0.7").generate("a red circle", steps=2).shape == (32, 32, 3)
    with pytest.raises(OutputExistsError, match=r"model-0\.7: exists"):
        run("--out", out, "--pick", "0.7")
    assert run("--out", out, "--pick", "0.7", "--overwrite")[0] == 0
    with pytest.raises(MissingError, match=r"by-products: has 0\.9, 0\.8, 0\.7, want 0\.5"):
        run("--out", out, "--pick", "0.5")
    code, output = run("--out", out, "--pick", "0.8", "--steps", 9)
    assert code == 2
    assert "--pick trains nothing; leave out --steps" in output
    (out / "source.json").unlink()
    with pytest.raises(MissingError, match=r"source\.json.* name the model that was trained with --model"):
        run("--out", out, "--pick", "0.8")
    assert run("--out", out, "--pick", "0.8", "--model", dense)[0] == 0
