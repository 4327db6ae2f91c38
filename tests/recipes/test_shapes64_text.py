"""The tokenizer's files give the same ids through transformers and through the plain tokenizers library."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers")
pytest.importorskip("diffusers")

from tokenizers import Tokenizer
from transformers import T5Tokenizer

from recipes.shapes64.scenes import draw_caption, draw_scene
from recipes.shapes64.text import MAX_TOKENS, build_words
from recipes.text import tokenize


def test_tokenizer_is_the_same_everywhere(tmp_path: Path) -> None:
    build_words().save_pretrained(tmp_path)
    slow = T5Tokenizer.from_pretrained(tmp_path)
    plain = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    rng = np.random.default_rng(0)
    texts = [draw_caption(rng, draw_scene(rng)) for _ in range(50)]
    for text in [*texts, "", "a zebra, 3 cats!", "red   circle ,square"]:
        ids = slow(text).input_ids
        assert plain.encode(text).ids == ids
        assert ids[-1] == slow.eos_token_id


def test_captions_need_no_unknown_and_few_tokens(tmp_path: Path) -> None:
    tokenizer = build_words()
    rng = np.random.default_rng(1)
    ids, mask = tokenize(tokenizer, [draw_caption(rng, draw_scene(rng)) for _ in range(200)])
    assert ids.shape == mask.shape == (200, MAX_TOKENS)
    assert (ids != tokenizer.unk_token_id).all()
    assert mask.sum(dim=1).max() <= 20
