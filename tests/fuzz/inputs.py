"""Whole inputs of our programs, small: each is a folder whose files are damaged, one at a time, in copies of it."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from PIL import Image

from tests import tiny
from tests.forked import run_forked
from tests.parity.published.adapters import save_adapter
from tests.parity.published.original import original_alpha
from tests.sentencepieces import write_model
from tests.shards import save_shards

CONVERT: Final = ("convert", "--from", "hf-checkpoint", "--hf-path", "in/model", "--out", "out")
COREML: Final = ("--to", "coreml", "--max-sequence-length", "16")
GENERATE: Final = ("mlx_moddit", "generate", "--steps", "1", "--height", "32", "--width", "32", "-o", "a.png")
FINETUNE: Final = (
    *("torch_moddit.finetune", "--model", "in/model", "--batch-size", "2", "--warmup", "1", "--caption-dropout", "0"),
    *("--steps", "2", "--save-every", "1"),
)
PREPARE: Final = ("torch_moddit.prepare", "--model", "in/model", "--size", "16x16", "--out", "out")


def routed(folder: Path) -> None:
    tiny.save_pipeline(folder / "model")


def sharded(folder: Path) -> None:
    tiny.save_pipeline(folder / "model", sharded=True, dtype="float16")


def sentencepiece(folder: Path) -> None:
    """A tokenizer as T5's publishers keep it."""
    tiny.save_pipeline(folder / "model", routed=False)
    (folder / "model/tokenizer/tokenizer.json").unlink()
    write_model(folder / "model/tokenizer")


def labels(folder: Path) -> None:
    """A model that draws classes."""
    tiny.save_dit_pipeline(folder / "model")


def original(folder: Path) -> None:
    """PixArt's own names in a pickle, beside a pipeline for the rest."""
    folder.mkdir()
    original_alpha(folder)


def adapter(folder: Path) -> None:
    tiny.save_pipeline(folder / "model", routed=False)
    save_adapter(folder, "style", 3, lora_alpha=5)


def mlx(folder: Path) -> None:
    _make(folder, "model", *CONVERT)


def labels_mlx(folder: Path) -> None:
    labels(folder)
    _replace(folder, "model", *CONVERT)


def picture(folder: Path) -> None:
    """A bundle, and a picture that it made."""
    mlx(folder)
    _run(folder, *GENERATE, "--model", "in/model", "-p", "a red circle")
    shutil.move(folder.parent / "a.png", folder)


def prompts(folder: Path) -> None:
    mlx(folder)
    (folder / "prompts.txt").write_text("a red circle\n\na small blue square on the left\n")


def coreml(folder: Path) -> None:
    _make(folder, "model", *CONVERT, *COREML)


def shards(folder: Path) -> None:
    """A dataset of latents and text states."""
    save_shards(folder / "data", tiny.save_pipeline(folder / "model", kind="alpha", routed=False))


def pictures(folder: Path) -> None:
    tiny.save_pipeline(folder / "model", kind="alpha", routed=False)
    (folder / "data").mkdir()
    for index in range(2):
        Image.new("RGB", (20, 24), (80 * index, 0, 99)).save(folder / f"data/{index}.png")
    rows = (f'{{"file_name": "{index}.png", "text": "a small blue square"}}\n' for index in range(2))
    (folder / "data/metadata.jsonl").write_text("".join(rows))


def captions(folder: Path) -> None:
    """Pictures with a text beside each."""
    pictures(folder)
    (folder / "data/metadata.jsonl").unlink()
    for index in range(2):
        (folder / f"data/{index}.txt").write_text("a small blue square")


def archive(folder: Path) -> None:
    """Pictures and captions in a tar file."""
    captions(folder)
    with tarfile.open(folder / "a.tar", "w") as tar:
        for path in sorted((folder / "data").iterdir()):
            tar.add(path, path.name)
    shutil.rmtree(folder / "data")


def run(folder: Path) -> None:
    """A fine-tuning that can be resumed."""
    shards(folder)
    _run(folder, *FINETUNE, "--data", "in/data", "--out", "in/run")
    shutil.rmtree(folder / "run/model")


MAKERS: Final[Mapping[str, Callable[[Path], None]]] = {
    maker.__name__: maker
    for maker in (
        *(routed, sharded, sentencepiece, labels, original, adapter, mlx, labels_mlx, picture, prompts, coreml),
        *(shards, pictures, captions, archive, run),
    )
}


def make_inputs(root: Path) -> None:
    """Make each input as ROOT/NAME/in."""
    for name, maker in MAKERS.items():
        (root / name).mkdir(parents=True)
        maker(root / name / "in")


def _make(folder: Path, name: str, *arguments: str) -> None:
    """Convert a routed checkpoint, and keep the bundle alone."""
    tiny.save_pipeline(folder / "model")
    _replace(folder, name, *arguments)


def _replace(folder: Path, name: str, *arguments: str) -> None:
    """Convert the checkpoint that is there, and keep the bundle alone."""
    _run(folder, *arguments)
    shutil.rmtree(folder / "model")
    shutil.move(folder.parent / "out", folder / name)


def _run(folder: Path, *arguments: str) -> None:
    module, *rest = arguments
    done = run_forked(module, rest, folder=folder.parent)
    assert done.status == 0, (arguments, done.status, done.errors)
