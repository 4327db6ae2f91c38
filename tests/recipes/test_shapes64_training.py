"""The recipe's training: batched Muon equals torch's, a resumed run equals a whole one, the recipe runs."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import torch

from recipes.muon import GroupedMuon
from recipes.runs import Journal, shuffled
from recipes.shapes64.__main__ import SMOKE, run_latents, run_text, run_vae
from recipes.shapes64.dense import DenseSettings, DenseTrainer
from torch_moddit.loading import load_checkpoint


def test_grouped_muon_equals_torch() -> None:
    torch.manual_seed(0)
    shapes = [(16, 16), (16, 16), (32, 16), (16, 32)]
    left = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    right = [torch.nn.Parameter(parameter.detach().clone()) for parameter in left]
    options: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.01, "adjust_lr_fn": "match_rms_adamw"}
    optimizers = [torch.optim.Muon(left, **options), GroupedMuon(right, **options)]
    for _ in range(3):
        for one, other in zip(left, right, strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(left, right, strict=True):
        torch.testing.assert_close(
            one, other, rtol=1e-3, atol=1e-4
        )  # bfloat16 inside: batched sums may round otherwise


def test_shuffled_visits_everything_once_an_epoch() -> None:
    batches = shuffled(12, 4, seed=0)
    epochs = [torch.cat([next(batches) for _ in range(3)]) for _ in range(2)]
    assert all(sorted(epoch.tolist()) == list(range(12)) for epoch in epochs)
    assert epochs[0].tolist() != epochs[1].tolist()


@pytest.mark.slow
def test_resumed_training_equals_uninterrupted(tmp_path: Path) -> None:
    for stage in (run_text, run_vae, run_latents):
        stage(tmp_path, SMOKE)
    settings = replace(SMOKE.dense, steps=6, save_every=3)
    whole = _train(tmp_path, settings, "whole")
    (tmp_path / "dense.pt").unlink()
    _train(tmp_path, settings, "part", stop_at=3)
    resumed = _train(tmp_path, settings, "part")
    for name, value in whole.average.values.items():
        assert torch.equal(value, resumed.average.values[name]), name


@pytest.mark.slow
def test_smoke_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "recipes.shapes64", "--work", str(tmp_path), "--smoke"]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    assert load_checkpoint(tmp_path / "diffcr").policy.has_routers
    assert load_checkpoint(tmp_path / "dense").policy.is_dense
    assert "| DiffCR |" in (tmp_path / "report" / "shapes64-table.md").read_text()


def _train(work: Path, settings: DenseSettings, name: str, stop_at: int | None = None) -> DenseTrainer:
    def stop(step: int, *_: object) -> None:
        if step == stop_at:
            raise KeyboardInterrupt

    trainer = DenseTrainer(work, settings, Journal(work / f"{name}.jsonl", name), stop)
    trainer.resume()
    try:
        trainer.train()
    except KeyboardInterrupt:
        assert stop_at is not None
    return trainer
