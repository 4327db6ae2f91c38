"""The stages of the recipe, and how much work each does; one whose output exists is skipped."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import torch
from diffusers import AutoencoderKL, PixArtTransformer2DModel

from moddit.checkpoint.hub import find_checkpoint
from recipes.emoji64.classifier import load_classifier, train_classifier
from recipes.emoji64.dense import PARTS, DenseSettings, train_dense
from recipes.emoji64.evaluate import choose_scenes, draw, measure_ceiling, save_grid
from recipes.emoji64.font import find_font
from recipes.emoji64.glyphs import Glyph, load_glyphs
from recipes.emoji64.pictures import write_pictures
from recipes.emoji64.scenes import draw_pictures
from recipes.emoji64.score import Scorer
from recipes.emoji64.text import pretrain_text
from recipes.pipeline import assemble, build_transformer, load_parts, load_pipeline, route, save_pipeline
from recipes.runs import Journal, write_folder
from recipes.vae import train_vae
from torch_moddit.finetune import FinetuneResult
from torch_moddit.pipeline import load_component

VAE_RATE: Final = 1e-3
HEADS: Final = 5  # of 32 channels
PATCH: Final = 2  # of latents: tokens of 4 x 4 pixels


@dataclass(frozen=True)
class Budget:
    """How much work each stage does."""

    every: int  # of so many glyphs one is used
    views: int  # pictures of each scene
    text_steps: int
    classifier_steps: int
    vae_steps: int
    dense: dict[str, DenseSettings]  # by the names of PARTS
    preview_scenes: int  # of each kind, drawn after each chunk of training
    preview_steps: int  # of the sampler
    scenes: int  # of each kind, scored at the end


FULL: Final = Budget(
    every=1,
    views=3,
    text_steps=900,
    classifier_steps=1500,
    vae_steps=1500,
    dense={
        "small": DenseSettings(steps=1500, batch=32),
        "large": DenseSettings(steps=3000, batch=24),
        "final": DenseSettings(steps=1500, batch=24, flat=0.0),
    },
    preview_scenes=8,
    preview_steps=12,
    scenes=250,
)
SMOKE: Final = Budget(
    every=60,
    views=1,
    text_steps=10,
    classifier_steps=10,
    vae_steps=10,
    dense={name: DenseSettings(steps=4, batch=4, chunk=2) for name in PARTS},
    preview_scenes=1,
    preview_steps=2,
    scenes=2,
)


class Recipe:
    """The stages, each of which leaves files in the work folder."""

    def __init__(self, work: Path, budget: Budget) -> None:
        self.work = work
        self.budget = budget
        self.glyphs: list[Glyph] = load_glyphs(find_font(work))[:: budget.every]
        self.names = [glyph.name for glyph in self.glyphs]
        self.journals: dict[str, Journal] = {}

    def make_pictures(self) -> None:
        """Pictures and captions as a user has them: pictures/."""
        if not (self.work / "pictures").exists():
            write_pictures(self.work / "pictures", self.glyphs, views=self.budget.views)

    def make_text(self) -> None:
        """Tokenizer and pretrained text encoder: tokenizer/, text_encoder/."""
        if not (self.work / "text_encoder").exists():
            pretrain_text(self.work, self.glyphs, self._journal("text"), steps=self.budget.text_steps)

    def make_classifier(self) -> None:
        """What the scorer looks through: classifier.pt."""
        path = self.work / "classifier.pt"
        if not path.exists():
            train_classifier(path, self.glyphs, self._journal("classifier"), steps=self.budget.classifier_steps)

    def make_vae(self) -> None:
        """Autoencoder, from that of shapes64, which knows edges and flat colours already: vae/."""
        if not (self.work / "vae").exists():
            vae: AutoencoderKL = load_component(find_checkpoint(None).sources, "vae", torch.float32)  # of shapes64
            pictures = partial(draw_pictures, self.glyphs)
            train_vae(vae, self._journal("vae"), pictures, steps=self.budget.vae_steps, rate=VAE_RATE)
            write_folder(self.work / "vae", vae.save_pretrained)

    def make_base(self) -> None:
        """The pipeline whose transformer is not trained yet: base/."""
        if not (self.work / "base").exists():
            torch.manual_seed(0)
            tokenizer, text_encoder, vae = load_parts(self.work)
            transformer = build_transformer(heads=HEADS, patch_size=PATCH)
            save_pipeline(assemble(transformer, text_encoder, tokenizer, vae), self.work / "base")

    def make_data(self) -> None:
        """Latents and text states, by the same command that a user gives: data-32/, data-64/."""
        for side in dict.fromkeys(PARTS.values()):
            command: list[str | Path] = [sys.executable, "-m", "torch_moddit.prepare", "--model", self.work / "base"]
            command += ["--images", self.work / "pictures", "--out", self.work / f"data-{side}"]
            command += ["--size", f"{side}x{side}", "--batch-size", "32", "--shard-size", "1024"]
            subprocess.run(command, check=True)

    def make_dense(self, name: str) -> None:
        """One part of the dense teacher's training: runs/NAME/ (resumed when it exists), NAME/ at the end.

        It starts from the part before, as that is: who has no time left stops "large", and runs "final".
        """
        if (self.work / name).exists():
            return
        before = {"small": "base", "large": "small", "final": "large"}[name]
        start = self.work / before if (self.work / before).exists() else self.work / "preview" / before
        transformer = PixArtTransformer2DModel.from_pretrained(start / "transformer").float()
        scorer = self._scorer()
        result = train_dense(self.work, name, transformer, self.budget.dense[name], partial(self._look, name, scorer))
        self._save(result, self.work / name)

    def evaluate(self) -> None:
        """Scores of the dense teacher, and their ceiling: scores.json."""
        if (self.work / "scores.json").exists():
            return
        scorer, found = self._scorer(), {}
        pipeline = load_pipeline(self.work / "final")
        vae = AutoencoderKL.from_pretrained(self.work / "vae").eval().requires_grad_(False)
        for kind, is_held_out in (("held out", True), ("seen", False)):
            scenes = choose_scenes(self.names, self.budget.scenes, held_out=is_held_out)
            found[kind] = measure_ceiling(self.glyphs, scenes, vae, scorer)
            found[kind]["dense"] = scorer.score(draw(pipeline, scenes, seed=1), scenes)
        (self.work / "scores.json").write_text(json.dumps(found, indent=1) + "\n")

    def _look(self, name: str, scorer: Scorer, result: FinetuneResult) -> None:
        """Save the averaged weights as a pipeline, draw some scenes with it, and score them."""
        pipeline = route(load_pipeline(self.work / "base"), result.model)
        rows = []
        for kind, is_held_out in (("held out", True), ("seen", False)):
            scenes = choose_scenes(self.names, self.budget.preview_scenes, held_out=is_held_out)
            rows.append(draw(pipeline, scenes, seed=1, side=PARTS[name], steps=self.budget.preview_steps))
            self._journal(f"{name}-scores").write(step=result.step, kind=kind, **scorer.score(rows[-1], scenes))
        save_grid(rows, self.work / "preview" / f"{name}-{result.step:06d}.png")
        self._save(result, self.work / "preview" / name)

    def _save(self, result: FinetuneResult, folder: Path) -> None:
        pipeline = load_pipeline(self.work / "base")
        pipeline.register_modules(transformer=result.model.transformer)
        save_pipeline(pipeline, folder)

    def _scorer(self) -> Scorer:
        return Scorer(self.glyphs, load_classifier(self.work / "classifier.pt", len(self.glyphs)))

    def _journal(self, name: str) -> Journal:
        if name not in self.journals:
            self.journals[name] = Journal(self.work / "logs" / f"{name}.jsonl", name)
        return self.journals[name]


STAGES: Final[dict[str, Callable[[Recipe], None]]] = {
    "pictures": Recipe.make_pictures,
    "text": Recipe.make_text,
    "classifier": Recipe.make_classifier,
    "vae": Recipe.make_vae,
    "base": Recipe.make_base,
    "data": Recipe.make_data,
    **{name: partial(Recipe.make_dense, name=name) for name in PARTS},
    "evaluate": Recipe.evaluate,
}
