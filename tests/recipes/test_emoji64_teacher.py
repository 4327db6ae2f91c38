"""The teacher in the repository stands in for one that was trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moddit.checkpoint.description import describe
from moddit.checkpoint.sources import as_sources
from recipes.emoji64.classifier import load_classifier
from recipes.emoji64.teacher import PIPELINE, TEACHER, restore_teacher, save_teacher

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("emoji64") / "work"
    restore_teacher(work, REPOSITORY)
    restore_teacher(work, REPOSITORY)  # which leaves what is there
    return work


def test_it_is_a_whole_dense_pipeline(work: Path) -> None:
    found = describe(as_sources(work / PIPELINE))
    assert not found.policy.has_routers
    assert found.spec.default_side == 64
    assert found.spec.transformer.tokens(32, 32) == 256
    assert sum(path.stat().st_size for path in (REPOSITORY / TEACHER).rglob("*")) < 12_000_000
    assert not any("_name_or_path" in path.read_text() for path in (work / PIPELINE).rglob("config.json"))


def test_it_is_saved_as_it_was_restored(work: Path, tmp_path: Path) -> None:
    save_teacher(work, tmp_path)
    saved, kept = ({path.relative_to(root / TEACHER): path for path in (root / TEACHER).rglob("*") if path.is_file()}
                   for root in (tmp_path, REPOSITORY))  # fmt: skip
    assert saved.keys() == kept.keys()
    assert all(saved[name].read_bytes() == kept[name].read_bytes() for name in kept if name.suffix != ".safetensors")
    state = torch.load(work / "classifier.pt", weights_only=True)
    load_classifier(work / "classifier.pt", max(value.shape[0] for value in state.values() if value.ndim))
