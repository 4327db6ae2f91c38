"""Tokenizers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests.parity.published.base import (
    Published,
    case,
    edit,
    null,
    plain,
    save,
)
from tests.sentencepieces import write_model


def _with_vocabulary(folder: Path, **settings: Any) -> Path:
    return save(folder, text_encoder={"vocab_size": 180}, **settings)


@case
def tokenizer_of_2024(folder: Path) -> Published:
    model = _with_vocabulary(folder)
    shutil.rmtree(model / "tokenizer")
    write_model(model / "tokenizer")
    extra = [f"<extra_id_{index}>" for index in range(100)]
    files = {
        "tokenizer_config.json": {"tokenizer_class": "T5Tokenizer", "model_max_length": 120, "legacy": True},
        "special_tokens_map.json": {"additional_special_tokens": extra, "eos_token": {"content": "</s>"}},
        "added_tokens.json": {name: 33 + index for index, name in enumerate(reversed(extra))},
    }
    for name, value in files.items():
        (model / "tokenizer" / name).write_text(json.dumps(value))
    return plain(model)


@case
def tokens_declared_in_the_configuration(folder: Path) -> Published:
    model = _with_vocabulary(folder)
    decoder = {"60": {"content": "xylophone", "special": False, "normalized": False, "lstrip": True}}
    edit(model / "tokenizer/tokenizer_config.json", added_tokens_decoder=decoder)
    return plain(model)


@case
def special_tokens_of_a_fine_tune(folder: Path) -> Published:
    model = _with_vocabulary(folder)
    edit(model / "tokenizer/tokenizer_config.json", additional_special_tokens=["<left>", "xylo"])
    return plain(model)


@case
def extra_tokens_of_a_fine_tune(folder: Path) -> Published:
    model = _with_vocabulary(folder)
    edit(model / "tokenizer/tokenizer_config.json", extra_special_tokens=["red"])
    return plain(model)


@case
def tokenizer_json_of_another_program(folder: Path) -> Published:
    model = save(folder)
    path = model / "tokenizer/tokenizer.json"
    edit(path, pre_tokenizer={"type": "Whitespace"}, truncation=None)
    null(path, "post_processor")
    edit(model / "model_index.json", tokenizer=["transformers", "T5TokenizerFast"])
    return plain(model)


@case
def a_tokenizer_shorter_than_the_pipeline(folder: Path) -> Published:
    model = save(folder)  # model_max_length 16, and the prompt has more
    edit(model / "tokenizer/tokenizer_config.json", model_max_length=5)
    return plain(model)
