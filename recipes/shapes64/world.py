"""shapes64 as a world of the comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from recipes.pipeline import load_pipeline
from recipes.runs import Journal
from recipes.shapes64.classifier import Classifier, load_classifier, train_classifier
from recipes.shapes64.dense import encode_set
from recipes.shapes64.diffcr import write_data
from recipes.shapes64.evaluate import draw_held_out
from recipes.shapes64.scenes import caption, parse, render
from recipes.shapes64.score import ATTRIBUTES, score
from recipes.shapes64.teacher import restore_teacher
from recipes.training import FinetuneBudget, settings, train_on
from recipes.world import Outcomes, Pictures, World
from torch_moddit.finetune import FinetuneConfig, FinetuneResult

REPOSITORY: Final = Path(__file__).parents[2]
LATENTS: Final = {False: 48_000, True: 64}  # samples of the training set
CLASSIFIER_STEPS: Final = {False: 600, True: 4}
BUDGET: Final = FinetuneBudget(steps=1500)
SHOWN_SEED: Final = 12  # of the true pictures


class Shapes64(World):
    """Scenes of one or two objects, read by the analytic scorer."""

    NAME: ClassVar[str] = "shapes64"
    OUTCOME: ClassVar[str] = "all"
    SETTINGS: ClassVar[Mapping[str, Any]] = settings(BUDGET)

    def teacher(self) -> Path:
        restore_teacher(self.work, REPOSITORY)
        return self.work / "dense"

    def finetune(self, config: FinetuneConfig) -> FinetuneResult:
        teacher, data = self.teacher(), self.work / "finetune-data"
        if not (self.work / "latents.pt").exists():
            journal = Journal(self.work / "logs" / "latents.jsonl", "latents")
            encode_set(self.work, journal, count=LATENTS[self.is_smoke])
        if not data.exists():
            write_data(self.work)
        return train_on(data, config, load_pipeline(teacher).transformer, muon_rate=BUDGET.muon_rate)

    def prompts(self, count: int) -> list[str]:
        return [caption(scene) for scene in draw_held_out(count)]

    def show(self, prompts: Sequence[str]) -> Pictures:
        rng = np.random.default_rng(SHOWN_SEED)
        return np.stack([render(parse(prompt), rng) for prompt in prompts])

    def score(self, pictures: Pictures, prompts: Sequence[str]) -> Outcomes:
        rows = [score(picture, parse(prompt)) for picture, prompt in zip(pictures, prompts, strict=True)]
        return {name: np.array([row[name] for row in rows]) for name in ATTRIBUTES}

    def features(self, pictures: Pictures) -> NDArray[np.float64]:
        return self._classifier.features(pictures)

    @cached_property
    def _classifier(self) -> Classifier:
        path = self.work / "classifier.pt"
        if not path.exists():
            train_classifier(path, steps=CLASSIFIER_STEPS[self.is_smoke])
        return load_classifier(path)
