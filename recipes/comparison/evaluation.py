"""Draw and measure every entry: a file for each number of steps and seed of noise, so that nothing is done twice."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from moddit.errors import ValueRangeError
from moddit.files import new_file
from recipes.comparison.drawing import draw
from recipes.comparison.measures import frechet_distance, held_out_loss, psnr
from recipes.comparison.methods import Entry, Scale, Training, list_entries
from recipes.world import Pictures, World
from torch_moddit.pipeline import ReferencePipeline

EQUAL: Final = 0.01  # share of FLOPs, such as those of routers, that is no difference
FIRST_SEED: Final = 1  # of noise; the one whose pictures are compared with those of many steps


class Key(NamedTuple):
    """What rows of several trainings and seeds have in common."""

    method: str
    tenths: int
    steps: int


@dataclass(frozen=True)
class Row:
    """What the pictures of an entry are like, in one number of steps and with one seed of noise."""

    steps: int
    seed: int
    cost: float  # FLOPs of the blocks, as a multiple of those of a dense step
    outcomes: dict[str, NDArray[np.bool_]]  # by measure, (prompts,)
    frechet: float
    psnr: float | None  # dB, against the checkpoint's own pictures of many steps; None for other seeds


Group = dict[int | None, list[Row]]  # by training


class Evaluation:
    """The rows of a world in a folder.

    Args:
        world: which world.
        work: folder, which has models/ and gets rows/ and references/.
        scale: how much is drawn.
        only: names of methods; all of them if there is none.
    """

    def __init__(self, world: World, work: Path, scale: Scale, only: Sequence[str] = ()) -> None:
        self.world = world
        self.work = work
        self.scale = scale
        self.only = only

    @cached_property
    def prompts(self) -> list[str]:
        """The prompts: as many as the scale says, or as there are."""
        return self.world.prompts(self.scale.prompts)

    def entries(self) -> Iterator[Entry]:
        """List the entries whose checkpoints are there."""
        return filter(self._can_open, list_entries(self.scale, self.only))

    def folder(self, entry: Entry) -> Path:
        """Name the folder of an entry's checkpoint."""
        training = entry.checkpoint
        return self.world.teacher() if training is None else self.model(training)

    def model(self, training: Training) -> Path:
        """Name the folder of what a training makes."""
        return self.work / "models" / training.name

    def _can_open(self, entry: Entry) -> bool:
        return entry.checkpoint is None or self.model(entry.checkpoint).exists()

    def run(self) -> None:
        """Measure what is not there yet: every entry, then its partners in as many steps as cost what it costs."""
        both = (one for entry in self.entries() for one in (entry, entry.partner) if self._can_open(one))
        for entry in dict.fromkeys(both):
            self._measure(entry, self.scale.steps if entry.how.has_edge else self.scale.steps[:1])
        groups = self.groups()
        for key, group in groups.items():
            for training in group:
                partner = Entry(key.method, key.tenths, training).partner
                if partner.method != key.method and self._can_open(partner):
                    self._measure(partner, sorted({1, *equal_steps(key, groups)} - {0}))

    def groups(self) -> dict[Key, Group]:
        """Read every row that is there, in the order of the table."""
        groups: dict[Key, Group] = {}
        for entry in list_entries(self.scale):
            rows = map(_read, (self.work / "rows" / entry.name).glob("steps*.json"))
            for row in sorted(rows, key=lambda row: (-row.steps, row.seed)):
                group = groups.setdefault(Key(entry.method, entry.tenths, row.steps), {})
                group.setdefault(entry.training, []).append(row)
        return groups

    def _measure(self, entry: Entry, steps: Sequence[int]) -> None:
        """Measure an entry; its model is loaded only if something is missing."""
        seeds = range(FIRST_SEED, FIRST_SEED + self.scale.seeds)
        missing = [(count, seed) for count in steps for seed in seeds if not self._is_there(entry, count, seed)]
        if missing or not self._loss_path(entry).exists():
            drawer = Drawer(self, entry)
            if not self._loss_path(entry).exists():
                _write(self._loss_path(entry), drawer.losses())
            for count, seed in missing:
                row = drawer.measure(count, seed)
                _write(self._row_path(entry, count, seed), row)
                share = row["outcomes"][self.world.OUTCOME].count("1") / len(self.prompts)
                print(f"[evaluate] {entry.name} {count} steps, seed {seed}: {100 * share:.1f} %", flush=True)

    def losses(self, entry: Entry) -> list[float]:
        """Read the held-out loss of each quarter of the timesteps; none if it is not there."""
        path = self._loss_path(entry)
        return json.loads(path.read_text()) if path.exists() else []

    def _is_there(self, entry: Entry, steps: int, seed: int) -> bool:
        """Whether a row is there; raises ValueRangeError if it is of another number of prompts."""
        path = self._row_path(entry, steps, seed)
        if not path.exists():
            return False
        count = len(json.loads(path.read_text())["outcomes"][self.world.OUTCOME])
        if count != len(self.prompts):
            raise ValueRangeError(
                f"[comparison] {path} is of {count} prompts, want {len(self.prompts)}; ask for as many, or choose "
                "another folder"
            )
        return True

    def _row_path(self, entry: Entry, steps: int, seed: int) -> Path:
        return self.work / "rows" / entry.name / f"steps{steps}-seed{seed}.json"

    def _loss_path(self, entry: Entry) -> Path:
        return self.work / "rows" / entry.name / "loss.json"


class Drawer:
    """An entry with its model in memory."""

    def __init__(self, evaluation: Evaluation, entry: Entry) -> None:
        self.evaluation, self.entry = evaluation, entry
        self.world, self.scale = evaluation.world, evaluation.scale
        self.prompts = evaluation.prompts
        self.pipeline = open_entry(evaluation.folder(entry), entry)

    def losses(self) -> list[float]:
        """Measure the held-out loss; there is none of what is done to a whole picture."""
        if self.entry.options:
            return []
        return held_out_loss(self.pipeline, self.world.show(self.prompts), self.prompts)

    def measure(self, steps: int, seed: int) -> dict[str, Any]:
        """Draw and judge the pictures of a row."""
        drawn = draw(self.pipeline, self.entry, self.prompts, seed=seed, steps=steps)
        outcomes = self.world.score(drawn.pictures, self.prompts)
        features = [self.world.features(of) for of in (drawn.pictures, self.world.show(self.prompts))]
        compared = self.scale.reference_prompts
        return {
            "steps": steps,
            "seed": seed,
            "cost": drawn.cost,
            "outcomes": {name: "".join("01"[int(mark)] for mark in marks) for name, marks in outcomes.items()},
            "frechet": frechet_distance(*features),
            "psnr": psnr(drawn.pictures[:compared], self._reference()) if seed == FIRST_SEED else None,
        }

    def _reference(self) -> Pictures:
        """Draw the checkpoint's own pictures of many steps once, without what it was not trained for."""
        plain = self.entry.plain
        path = self.evaluation.work / "references" / f"{plain.name}.npy"
        if not path.exists():
            pipeline = open_entry(self.evaluation.folder(plain), plain)
            prompts, steps = self.prompts[: self.scale.reference_prompts], self.scale.reference_steps
            drawn = draw(pipeline, plain, prompts, seed=FIRST_SEED, steps=steps)
            with new_file(path, overwrite=False) as file:
                np.save(file, drawn.pictures.astype(np.float16))
        return np.load(path).astype(np.float32)


def open_entry(folder: Path, entry: Entry) -> ReferencePipeline:
    """Load a checkpoint, and do to it what the method of an entry does."""
    pipeline, rival = ReferencePipeline.load(folder), entry.how.rival
    if rival is not None:
        rival.apply(pipeline.model, entry.tenths)
    return pipeline


def mean_cost(group: Group) -> float:
    """Mean cost of the pictures of a group, in dense steps."""
    return float(np.mean([row.cost for rows in group.values() for row in rows]))


def equal_steps(key: Key, groups: Mapping[Key, Group]) -> tuple[int, int]:
    """Give the numbers of steps in which a method's partner costs at most, and at least, as much."""
    partner = Entry(key.method, key.tenths, None).partner
    each = next(
        mean_cost(group) / other.steps
        for other, group in groups.items()
        if other[:2] == (partner.method, partner.tenths)
    )
    steps = mean_cost(groups[key]) / each
    if math.isclose(steps, round(steps), rel_tol=EQUAL):
        return round(steps), round(steps)
    return math.floor(steps), math.ceil(steps)


def _read(path: Path) -> Row:
    value = json.loads(path.read_text())
    value["outcomes"] = {name: np.array(list(marks)) == "1" for name, marks in value["outcomes"].items()}
    return Row(**value)


def _write(path: Path, value: object) -> None:
    with new_file(path, overwrite=False) as file:
        file.write((json.dumps(value) + "\n").encode())
