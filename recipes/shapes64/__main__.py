"""Command line of the recipe: run every stage, or one; a stage whose output exists is skipped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import torch
from diffusers import PixArtTransformer2DModel
from transformers import T5EncoderModel

from recipes.pipeline import assemble, save_pipeline
from recipes.runs import Journal, make_parser
from recipes.shapes64 import vae
from recipes.shapes64.dense import DenseSettings, DenseTrainer, encode_set
from recipes.shapes64.diffcr import train_routed, write_data
from recipes.shapes64.evaluate import draw_held_out, evaluate
from recipes.shapes64.figures import TITLES
from recipes.shapes64.publish import publish
from recipes.shapes64.report import evaluate_model, write_report
from recipes.shapes64.teacher import restore_teacher
from recipes.shapes64.text import pretrain_text
from recipes.training import FinetuneBudget


@dataclass(frozen=True)
class Budget:
    """How much work each stage does."""

    text_steps: int
    vae_steps: int
    latents: int
    dense: DenseSettings
    preview_prompts: int  # scored at each snapshot of the dense model
    finetune: FinetuneBudget
    prompts: int  # scored at the end
    seeds: int
    shown: int  # pictures of each model in the report


FULL: Final = Budget(
    text_steps=400,
    vae_steps=4200,
    latents=48_000,
    dense=DenseSettings(steps=4800),
    preview_prompts=64,
    finetune=FinetuneBudget(steps=5500),
    prompts=500,
    seeds=3,
    shown=10,
)
SMOKE: Final = Budget(
    text_steps=60,
    vae_steps=20,
    latents=64,
    dense=DenseSettings(steps=10, batch=8, warmup=2, log_every=5, save_every=10),
    preview_prompts=2,
    finetune=FinetuneBudget(steps=8, batch=8),
    prompts=3,
    seeds=1,
    shown=3,
)


def run_text(work: Path, budget: Budget) -> None:
    """Tokenizer and pretrained text encoder: tokenizer/, text_encoder/."""
    if not (work / "text_encoder").exists():
        pretrain_text(work, Journal(work / "logs" / "text.jsonl", "text"), steps=budget.text_steps)


def run_vae(work: Path, budget: Budget) -> None:
    """Autoencoder: vae/."""
    if not (work / "vae").exists():
        vae.train(work / "vae", Journal(work / "logs" / "vae.jsonl", "vae"), steps=budget.vae_steps)


def run_latents(work: Path, budget: Budget) -> None:
    """Training set: latents.pt."""
    if not (work / "latents.pt").exists():
        encode_set(work, Journal(work / "logs" / "latents.jsonl", "latents"), count=budget.latents)


def run_dense(work: Path, budget: Budget) -> None:
    """Dense teacher: dense.pt (resumed when it exists), preview/dense/ now and then, dense/ at the end."""
    if (work / "dense").exists():
        return
    journal = Journal(work / "logs" / "dense.jsonl", "dense")
    scores = Journal(work / "logs" / "dense-scores.jsonl", "dense")

    def preview(step: int, transformer: PixArtTransformer2DModel, text_encoder: T5EncoderModel) -> None:
        pipeline = assemble(transformer, text_encoder, trainer.tokenizer, trainer.vae)
        pipeline.set_progress_bar_config(disable=True)
        save_pipeline(pipeline, work / "preview" / "dense")
        if step % (2 * budget.dense.save_every) == 0 or step == budget.dense.steps:
            scores.write(step=step, **evaluate(pipeline, draw_held_out(budget.preview_prompts), seed=1))

    trainer = DenseTrainer(work, budget.dense, journal, preview)
    trainer.resume()
    trainer.train()
    trainer.export(work / "dense")


def run_routed(work: Path, budget: Budget, name: str) -> None:
    """DiffCR or one of its controls: finetune-data/, runs/NAME/ (resumed when it exists), NAME/ at the end."""
    if (work / name).exists():
        return
    if not (work / "finetune-data").exists():
        write_data(work)
    train_routed(work, name, budget.finetune)


def run_evaluate(work: Path, budget: Budget) -> None:
    """Scores of every model that is there: scores/NAME-SEED.json, samples/NAME.npy."""
    for name in TITLES:
        if (work / name).exists():
            evaluate_model(work, name, prompts=budget.prompts, seeds=budget.seeds, shown=budget.shown)


def run_report(work: Path, budget: Budget) -> None:
    """Tables and figures: report/."""
    write_report(work, work / "report", shown=budget.shown)


STAGES: Final[dict[str, Callable[[Path, Budget], None]]] = {
    "text": run_text,
    "vae": run_vae,
    "latents": run_latents,
    "dense": run_dense,
    "diffcr": partial(run_routed, name="diffcr"),
    "uniform": partial(run_routed, name="uniform"),
    "random": partial(run_routed, name="random"),
    "evaluate": run_evaluate,
    "report": run_report,
}


def main() -> None:
    """Parse the command line and run the stages."""
    parser = make_parser("recipes.shapes64", __doc__, STAGES)
    parser.add_argument("--teacher", action="store_true", help="take the repository's dense teacher, train none")
    parser.add_argument("--publish", type=Path, metavar="REPOSITORY", help="only copy the results into the repository")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.publish:
        publish(arguments.work, arguments.publish)
        return
    if arguments.teacher:
        restore_teacher(arguments.work, Path())
    for name in arguments.stage or STAGES:
        STAGES[name](arguments.work, SMOKE if arguments.smoke else FULL)


if __name__ == "__main__":
    main()
