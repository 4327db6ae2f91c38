"""Two processes on this machine share a run, started by torchrun and by Accelerate, and get what one process gets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests import tiny
from tests.shards import save_shards
from torch_moddit import cli
from torch_moddit.loading import load_checkpoint

# Weights after four steps; the two add gradients in another order, and AdamW divides gradients by their size, those of
# rounding too (4e-5 measured). Another sample moves weights by 1e-3 and more.
SHARED = 2e-4
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2")
ACCELERATE = (
    *("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"),
)
LAUNCHERS = {"torchrun": TORCHRUN, "accelerate": ACCELERATE}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, its data, and what one process makes of them."""
    folder = tmp_path_factory.mktemp("processes")
    save_shards(folder / "data", tiny.save_pipeline(folder / "dense", kind="alpha", routed=False))
    done = CliRunner().invoke(cli.command, [*arguments(folder, "one"), "--batch-size", "4"])
    assert done.exit_code == 0, done.output
    return folder


def arguments(folder: Path, out: str) -> list[str]:
    files = ("--model", folder / "dense", "--data", folder / "data", "--out", folder / out)
    steps = ("--steps", 4, "--warmup", 1, "--distill-weight", 1, "--log-every", 1, "--learning-rate", 1e-3)
    looks = ("--validate-every", 2, "--validation-share", 0.25, "--validation-prompt", "a red circle")
    return list(map(str, (*files, *steps, *looks)))


@pytest.mark.parametrize("name", LAUNCHERS)
def test_two_processes_are_one_with_twice_the_batch(name: str, folder: Path) -> None:
    command = [sys.executable, "-m", *LAUNCHERS[name], "-m", "torch_moddit.finetune", *arguments(folder, name)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        [*command, "--batch-size", "2"], env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(folder / name / "model")]  # one of them writes it
    one, two = (load_checkpoint(folder / run / "model") for run in ("one", name))
    assert one.policy == two.policy
    state = two.state_dict()
    assert max(float((value - state[key]).abs().max()) for key, value in one.state_dict().items()) <= SHARED
    logs = [[json.loads(row) for row in (folder / run / "log.jsonl").read_text().splitlines()] for run in ("one", name)]
    assert [row["samples"] for row in logs[1] if "loss" in row] == [4, 8, 12, 16]
    for key, count in (("samples", 4), ("loss", 4), ("validation_loss", 2), ("pictures", 2)):
        one_told, two_told = ([row[key] for row in log if key in row] for log in logs)
        assert len(one_told) == count
        assert two_told == (one_told if key == "pictures" else pytest.approx(one_told, rel=1e-4))
