"""The comparison from training to its tables, in small; and which rows there are."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moddit.routing import RoutingPlan
from moddit.tokens import TokenPolicy
from recipes.comparison.evaluation import Group, Key, Row, equal_steps, open_entry
from recipes.comparison.methods import (
    BY_PRODUCT,
    CONTROL,
    DENSE,
    DIFFCR,
    FAMILIES,
    FULL,
    METHODS,
    Entry,
    Training,
    list_entries,
    list_trainings,
)
from recipes.comparison.publish import BEFORE, insert_section
from recipes.comparison.training import save_by_products
from recipes.comparison.worlds import WORLDS
from recipes.emoji64 import font as fonts
from tests import tiny
from torch_moddit.export import write_transformer
from torch_moddit.pixart import RoutedPixArt


def test_every_training_serves_a_row_and_every_row_has_its_training() -> None:
    trainings = set(list_trainings(FULL))
    taken = {entry.checkpoint for entry in list_entries(FULL)} - {None}
    assert {replace(training, passed=None) for training in taken if training is not None} == trainings
    assert {training.family for training in trainings} == set(FAMILIES)


def test_one_seed_of_everything_is_trained_before_the_next() -> None:
    seeds = [training.seed for training in list_trainings(FULL)]
    assert seeds == sorted(seeds)
    assert [item.family for item in list_trainings(FULL, ["tome", "uniform"])] == ["uniform"] * 3 * FULL.trainings


def test_names_tell_rows_apart() -> None:
    names = [entry.name for entry in list_entries(FULL)]
    assert len(set(names)) == len(names)


def test_partners_are_trained_alike() -> None:
    assert Entry("tome", 7, None).partner == Entry(DENSE, 10, None)
    assert Entry(DIFFCR, 7, 1).partner == Entry(CONTROL, 10, 1)
    for entry in list_entries(FULL):
        assert entry.partner.method in METHODS


def test_what_a_run_leaves_on_its_way_becomes_checkpoints(tmp_path: Path) -> None:
    teacher = tiny.save_pipeline(tmp_path / "teacher", kind="sigma")
    plan = RoutingPlan.uniform(3, 4, 8, 1000)
    model = RoutedPixArt.from_dense(tiny.make_transformer(), TokenPolicy.topk(plan))
    write_transformer(tmp_path / "run" / "by-products" / "0.8" / "transformer", model)
    evaluation: Any = SimpleNamespace(
        world=SimpleNamespace(teacher=lambda: teacher), model=lambda training: tmp_path / training.name
    )
    for _ in range(2):  # the second time there is nothing to do
        save_by_products(evaluation, Training(DIFFCR, 5, 1), tmp_path / "run")
    entry = Entry(BY_PRODUCT, 8, 1)
    assert entry.checkpoint is not None
    pipeline = open_entry(tmp_path / entry.checkpoint.name, entry)
    assert pipeline.model.policy.plan == plan
    assert entry.plain == entry


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
def test_smoke_run_and_what_it_does_not_repeat(world: str, tmp_path: Path) -> None:
    if world == "emoji64" and not fonts.INSTALLED.exists():
        pytest.skip(f"Noto Color Emoji is not installed ({fonts.PACKAGE})")
    command = [sys.executable, "-m", "recipes.comparison", "--world", world, "--work", str(tmp_path), "--smoke"]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    results = json.loads((tmp_path / "report" / "results.json").read_text())
    assert {row["method"] for row in results["rows"]} == set(METHODS)
    assert {gain["runtime"] for gain in results["gains"]} == {"torch", "mlx"}
    assert "DiffCR-LT" in (tmp_path / "report" / "tables.md").read_text()
    assert {path.name for path in (tmp_path / "report").glob("*.png")} == {
        *("quality.png", "trajectories.png", "by-products.png", "ratios.png", "routes.png"),
    }
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "results.md").write_text(f"# Results\n{BEFORE}")
    subprocess.run([*command, "--publish", str(tmp_path)], check=True, capture_output=True, timeout=100)
    assert f"## Methods compared on {world}" in (tmp_path / "docs" / "results.md").read_text()
    again = subprocess.run(command, check=True, capture_output=True, text=True, timeout=100)
    assert "[evaluate]" not in again.stdout
    other = subprocess.run([*command, "--prompts", "2"], check=False, capture_output=True, text=True, timeout=100)
    assert other.returncode == 1
    assert "is of 3 prompts, want 2" in other.stderr


def test_a_section_takes_the_place_of_an_older_one() -> None:
    page = f"# Results\n\ntext\n{BEFORE}\nrest\n"
    once = insert_section(page, "shapes64", "first\n")
    twice = insert_section(once, "shapes64", "second\n")
    both = insert_section(twice, "emoji64", "other\n")
    assert "first" in once
    assert "first" not in twice
    places = [both.index(word) for word in ("text", "second", "other", BEFORE, "rest")]
    assert places == sorted(places)
    assert both.count("<!-- end -->") == 2


@pytest.mark.parametrize(
    ("cost", "steps"), [(7.3, (7, 8)), (7.04, (7, 7)), (10, (10, 10)), (0.4, (0, 1)), (12.95, (13, 13))]
)
def test_steps_of_equal_cost(cost: float, steps: tuple[int, int]) -> None:
    def group(cost: float, count: int) -> Group:
        return {None: [Row(count, 1, cost, {}, 0.0, None)]}

    key = Key("tome", 7, 20)
    groups = {Key(DENSE, 10, 20): group(20, 20), Key(DENSE, 10, 10): group(10, 10), key: group(cost, 20)}
    assert equal_steps(key, groups) == steps
