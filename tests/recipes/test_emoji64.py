"""The recipe of glyphs: what is asked for and what is held out, where the font comes from, and that the recipe runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import torch
from tokenizers import Tokenizer
from transformers import T5Tokenizer

from moddit.errors import MissingError
from recipes.emoji64 import font as fonts
from recipes.emoji64.classifier import Classifier
from recipes.emoji64.evaluate import choose_scenes
from recipes.emoji64.glyphs import Glyph, list_names, load_glyphs
from recipes.emoji64.scenes import BACKGROUNDS, HELD_OUT_PERCENT, Scene, caption, list_scenes, render, to_floats
from recipes.emoji64.score import Scorer, read_background
from recipes.emoji64.text import MAX_TOKENS, build_words
from recipes.text import tokenize
from torch_moddit.loading import load_checkpoint
from torch_moddit.samples import list_samples

NAMES = list(list_names())


@pytest.fixture(scope="module")
def font() -> Path:
    if not fonts.INSTALLED.exists():
        pytest.skip(f"Noto Color Emoji is not installed ({fonts.PACKAGE}; `make setup` does it as root)")
    return fonts.INSTALLED


@pytest.fixture(scope="module")
def glyphs(font: Path) -> list[Glyph]:
    return load_glyphs(font)


@pytest.mark.parametrize(
    ("scene", "text"),
    [
        (Scene("steaming bowl", "yellow"), "a steaming bowl on a yellow background"),
        (Scene("elephant", "white"), "an elephant"),
        (Scene("grapes", "black"), "grapes on a black background"),
        (Scene("octopus", "white"), "an octopus"),
        (Scene("unicorn face", "white"), "a unicorn face"),
    ],
)
def test_captions_are_what_people_say(scene: Scene, text: str) -> None:
    assert caption(scene) == text
    assert caption(scene, article=False) == text.removeprefix("a ").removeprefix("an ")


def test_held_out_scenes_are_few_and_never_white() -> None:
    held_out, others = (list_scenes(NAMES, held_out=kind) for kind in (True, False))
    assert len(held_out) + len(others) == len(NAMES) * len(BACKGROUNDS)
    assert len(held_out) / len(NAMES) / (len(BACKGROUNDS) - 1) == pytest.approx(HELD_OUT_PERCENT / 100, abs=0.02)
    assert not any(scene.background == "white" for scene in held_out)
    assert choose_scenes(NAMES, 20, held_out=True) == choose_scenes(NAMES, 30, held_out=True)[:20]


def test_every_caption_is_made_of_known_words(tmp_path: Path) -> None:
    build_words(NAMES).save_pretrained(tmp_path)
    tokenizer = T5Tokenizer.from_pretrained(tmp_path)
    texts = [caption(Scene(name, "yellow"), article=article) for name in NAMES for article in (True, False)]
    ids, mask = tokenize(tokenizer, texts)
    assert (ids != tokenizer.unk_token_id).all()
    assert ids.shape[1] == MAX_TOKENS
    assert mask.sum(1).tolist() == [len(text.split()) + 1 for text in texts]
    plain = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert [plain.encode(text).ids for text in texts[:50]] == [tokenizer(text).input_ids for text in texts[:50]]


def test_the_font_has_every_glyph(glyphs: Sequence[Glyph]) -> None:
    pictures = {glyph.picture.tobytes() for glyph in glyphs}
    assert len(glyphs) == len(NAMES) == len(pictures)
    assert all(glyph.picture.getbbox() for glyph in glyphs)
    assert [glyph.name for glyph in glyphs] == NAMES


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_pictures_show_their_background(glyphs: Sequence[Glyph], background: str) -> None:
    rng = np.random.default_rng(0)
    assert all(read_background(to_floats(render(glyph, background, rng))) == background for glyph in glyphs[::40])


def test_scorer_knows_what_is_drawn_and_what_is_not(glyphs: Sequence[Glyph]) -> None:
    torch.manual_seed(0)
    few = glyphs[::20]
    scorer = Scorer(few, Classifier(len(few)))  # features of chance tell glyphs apart, too
    scenes = [Scene(glyph.name, "blue") for glyph in few]
    pictures = np.stack([to_floats(render(glyph, "blue")) for glyph in few])
    assert scorer.score(pictures, scenes)["pixels/1"] == 1
    assert scorer.score(pictures, scenes)["features/5"] > 0.9
    assert scorer.score(pictures[::-1].copy(), scenes)["pixels/1"] <= 1 / len(few)
    assert scorer.score(pictures, [Scene(glyph.name, "pink") for glyph in few])["background"] == 0


def test_says_how_to_get_the_font(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "INSTALLED", tmp_path / "absent.ttf")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingError, match=rf"this is no Debian or Ubuntu; install {fonts.PACKAGE}, or put"):
        fonts.find_font(tmp_path)
    for name in ("apt-get", "dpkg-deb"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'E: Unable to locate package' >&2\nexit 100\n")
        (tmp_path / name).chmod(0o755)
    with pytest.raises(MissingError, match=r"apt-get cannot download it \(E: Unable to locate package\)"):
        fonts.find_font(tmp_path)
    assert not (tmp_path / "font").exists()


@pytest.mark.slow
def test_smoke_run(font: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "recipes.emoji64", "--work", str(tmp_path), "--smoke"]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    assert load_checkpoint(tmp_path / "final").policy.is_dense
    assert len(list_samples(tmp_path / "pictures", are_classes=False)) > 50
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["held out"].keys() == {"pictures", "reconstructions", "dense"}
    assert all(row["background"] == 1 for kind in scores.values() for name, row in kind.items() if name == "pictures")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/**/*.safetensors")}
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/**/*.safetensors")}
