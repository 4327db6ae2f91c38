"""The dense teacher that the repository carries, so that fine-tuning can be repeated without training it again.

Of the teacher only the transformer is stored; text encoder, tokenizer, VAE and scheduler are those of the checkpoint,
which fine-tuning leaves as they are.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Final

from moddit.checkpoint.sources import INDEX, TRANSFORMER
from moddit.models.pixart import PixArtSpec
from recipes.runs import write_folder

TEACHER: Final = Path("recipes/shapes64/teacher")
CHECKPOINT: Final = Path("moddit/checkpoints/shapes64")
JOURNALS: Final = ("text.jsonl", "vae.jsonl", "latents.jsonl", "dense.jsonl", "dense-scores.jsonl")
_LOCAL_KEY: Final = "_name_or_path"  # diffusers notes where a configuration was loaded from


def save_teacher(work: Path, repository: Path) -> None:
    """Copy the trained teacher and the journals of its stages into the repository."""

    def write(target: Path) -> None:
        shutil.copytree(work / "dense" / "transformer", target / "transformer")
        (target / "logs").mkdir()
        for name in JOURNALS:
            shutil.copyfile(work / "logs" / name, target / "logs" / name)
        drop_local_paths(target)

    write_folder(repository / TEACHER, write)


def restore_teacher(work: Path, repository: Path) -> None:
    """Put the repository's teacher where the stages before fine-tuning would have left it, so that they are skipped."""
    if (work / "dense").exists():
        return
    teacher, checkpoint = repository / TEACHER, repository / CHECKPOINT
    for name in ("tokenizer", "text_encoder", "vae"):
        shutil.copytree(checkpoint / name, work / name)
    shutil.copytree(teacher / "logs", work / "logs", dirs_exist_ok=True)

    def write(target: Path) -> None:
        shutil.copytree(checkpoint, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("transformer"))
        shutil.copytree(teacher / "transformer", target / "transformer")
        index = json.loads((target / INDEX).read_text(encoding="utf-8"))
        index[TRANSFORMER] = ["diffusers", PixArtSpec.DIFFUSERS_CLASS]  # the checkpoint's is routed
        (target / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    write_folder(work / "dense", write)


def drop_local_paths(folder: Path) -> None:
    """Remove from all configurations the path of the machine they were written on."""
    for path in folder.rglob("*.json"):
        value = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(value, dict) and value.pop(_LOCAL_KEY, None) is not None:
            path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
