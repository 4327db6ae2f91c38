from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from moddit.checkpoint.prompt_tokenizer import PromptTokenizer
from tests.tiny import MAX_TOKENS, make_tokenizer

pytestmark = pytest.mark.without_mlx

PROMPTS = [
    "a large red circle on the left and a small blue square on the right",
    "A Large RED Circle",
    "  spaces \t around\nand   between  ",
    "",
    "   ",
    "unknown: ÄÖÜ ß 東京 🙂 \u00a0 123!?",
    "İstanbul ﬁne ＡＢＣ",  # lower-casing and compatibility characters change lengths
    "red," * 50,
    "xylophone " * 30,
    "</s> <pad> <unk> in the text",
]


def load(folder: Path, max_length: int) -> PromptTokenizer:
    return PromptTokenizer.load(folder / "tokenizer.json", vocab_size=48, max_length=max_length)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("max_length", [MAX_TOKENS, 5, 300])
def test_ids_equal_transformers(folder: Path, prompt: str, max_length: int) -> None:
    reference = AutoTokenizer.from_pretrained(folder)
    # as diffusers' PixArt pipelines call it
    wanted = reference(prompt.lower().strip(), truncation=True, max_length=max_length, add_special_tokens=True)
    assert load(folder, max_length).encode(prompt) == wanted.input_ids


def test_truncation_keeps_the_end_token(folder: Path) -> None:
    ids = load(folder, 6).encode("red " * 100)
    assert len(ids) == 6
    assert ids[-1] == 1


def test_settings_in_the_file_do_not_pad_or_cut(folder: Path, tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer("red", padding="max_length", max_length=9, truncation=True)  # transformers stores such settings
    tokenizer.save_pretrained(tmp_path)
    assert load(tmp_path, 300).encode("red") == [6, 1]
