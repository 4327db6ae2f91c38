"""emoji64 as a world of the comparison: in the folder of the recipe, which trains the teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np
from numpy.typing import NDArray

from recipes.emoji64.classifier import load_classifier
from recipes.emoji64.evaluate import choose_scenes
from recipes.emoji64.recipe import FULL, SMOKE, STAGES, Recipe
from recipes.emoji64.scenes import Scene, caption, list_scenes, render, to_floats
from recipes.emoji64.score import Scorer
from recipes.emoji64.teacher import PIPELINE, restore_teacher
from recipes.pipeline import load_pipeline
from recipes.training import FinetuneBudget, settings, train_on
from recipes.vae import to_tensor
from recipes.world import Outcomes, Pictures, World
from torch_moddit.finetune import FinetuneConfig, FinetuneResult

REPOSITORY: Final = Path(__file__).parents[2]
BUDGET: Final = FinetuneBudget(steps=600, batch=16, save_every=50)
SHOWN_SEED: Final = 12  # of the true pictures


class Emoji64(World):
    """Glyphs on backgrounds that they were not trained on, found again among all glyphs."""

    NAME: ClassVar[str] = "emoji64"
    OUTCOME: ClassVar[str] = "features/1"
    SETTINGS: ClassVar[Mapping[str, Any]] = {**settings(BUDGET), "mixed_precision": "bf16"}  # as its teacher

    def teacher(self) -> Path:
        """Give the one that the recipe has trained there, or else the repository's."""
        folder = self.work / PIPELINE
        if not folder.exists() and self.is_smoke:
            for make in STAGES.values():
                make(self._recipe)
        restore_teacher(self.work, REPOSITORY)
        return folder

    def finetune(self, config: FinetuneConfig) -> FinetuneResult:
        self.teacher()
        if not (self.work / "data-64").exists():
            for name in ("pictures", "base", "data"):
                STAGES[name](self._recipe)
        return train_on(
            self.work / "data-64", config, load_pipeline(self.teacher()).transformer, muon_rate=BUDGET.muon_rate
        )

    def prompts(self, count: int) -> list[str]:
        return [caption(scene) for scene in choose_scenes(self._recipe.names, count, held_out=True)]

    def show(self, prompts: Sequence[str]) -> Pictures:
        rng, glyphs = np.random.default_rng(SHOWN_SEED), {glyph.name: glyph for glyph in self._recipe.glyphs}
        scenes = map(self._scenes.__getitem__, prompts)
        return np.stack([to_floats(render(glyphs[scene.glyph], scene.background, rng)) for scene in scenes])

    def score(self, pictures: Pictures, prompts: Sequence[str]) -> Outcomes:
        return self._scorer.judge(pictures, [self._scenes[prompt] for prompt in prompts])

    def features(self, pictures: Pictures) -> NDArray[np.float64]:
        return self._scorer.features(to_tensor(pictures)).double().numpy()

    @cached_property
    def _recipe(self) -> Recipe:
        return Recipe(self.work, SMOKE if self.is_smoke else FULL)

    @cached_property
    def _scenes(self) -> dict[str, Scene]:
        return {caption(scene): scene for scene in list_scenes(self._recipe.names, held_out=True)}

    @cached_property
    def _scorer(self) -> Scorer:
        self._recipe.make_classifier()
        glyphs = self._recipe.glyphs
        return Scorer(glyphs, load_classifier(self.work / "classifier.pt", len(glyphs)))
