"""The dense teacher that the repository carries, with what its pictures are scored by: neither is trained again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file, save_file

from recipes.runs import save_whole, write_folder
from recipes.shapes64.teacher import drop_local_paths

TEACHER: Final = Path("recipes/emoji64/teacher")
PIPELINE: Final = "final"  # part of the training that ends with it
_PARTS: Final = ("tokenizer", "text_encoder", "vae")  # that stages of their own make
_CLASSIFIER: Final = "classifier.safetensors"


def save_teacher(work: Path, repository: Path) -> None:
    """Copy the trained teacher and the classifier into the repository."""

    def write(target: Path) -> None:
        shutil.copytree(work / PIPELINE, target, dirs_exist_ok=True)
        save_file(torch.load(work / "classifier.pt", weights_only=True), target / _CLASSIFIER)
        drop_local_paths(target)

    write_folder(repository / TEACHER, write)


def restore_teacher(work: Path, repository: Path) -> None:
    """Put the repository's teacher where the stages before fine-tuning would have left it, so that they are skipped."""
    if (work / PIPELINE).exists():
        return
    teacher = repository / TEACHER
    work.mkdir(parents=True, exist_ok=True)
    for name in _PARTS:
        shutil.copytree(teacher / name, work / name)
    save_whole(load_file(teacher / _CLASSIFIER), work / "classifier.pt")
    others = shutil.ignore_patterns(_CLASSIFIER)
    write_folder(work / PIPELINE, lambda target: shutil.copytree(teacher, target, dirs_exist_ok=True, ignore=others))
