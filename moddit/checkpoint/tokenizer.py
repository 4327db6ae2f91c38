"""The tokenizer of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from moddit.checkpoint.sentencepiece import EXTRA_IDS, format_tokenizer, make_tokenizer, read_vocabulary
from moddit.checkpoint.weights import read_json
from moddit.errors import FormatError, MissingError

MAX_EXTRA_IDS: Final = 10_000


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer in the format of the `tokenizers` library."""

    text: bytes  # tokenizer.json
    size: int  # tokens, numbered from 0
    max_length: int | None  # tokens of a text, if the checkpoint limits them
    files: tuple[Path, ...]  # that it was read from, the settings last


def read_tokenizer(folder: Path) -> TokenizerFile:
    """Read `tokenizer.json`, or `spiece.model` where there is none, and `tokenizer_config.json`.

    Raises:
        MissingError: neither file is there.
        FormatError: it is not a tokenizer.
        UnsupportedError: it is not one of T5's kind.
    """
    path, spiece, settings = (folder / name for name in ("tokenizer.json", "spiece.model", "tokenizer_config.json"))
    config = read_json(settings) if settings.is_file() else {}
    if path.is_file():
        text, value = path.read_bytes(), read_json(path)
    elif spiece.is_file():
        path, value = spiece, make_tokenizer(read_vocabulary(spiece), _extra_ids(config, settings))
        text = format_tokenizer(value)
    else:
        found = sorted(entry.name for entry in folder.iterdir())
        raise MissingError(
            f"[tokenizer] {path}: no such file, nor {spiece.name}, got {', '.join(found) or 'no files'}; "
            "save the tokenizer again with save_pretrained"
        )
    files = (path, settings) if settings.is_file() else (path,)
    return TokenizerFile(text, _count_tokens(value, path), _max_length(config), files)


def _count_tokens(value: dict[str, Any], path: Path) -> int:
    model, added = value.get("model"), value.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, list | dict) or not isinstance(added, list):
        raise FormatError(f"[tokenizer] {path}: not a tokenizer, want model.vocab and added_tokens; save it again")
    numbers = [token.get("id") for token in added if isinstance(token, dict)]
    return max(len(vocabulary), *(number + 1 for number in numbers if isinstance(number, int)), 0)


def _max_length(config: dict[str, Any]) -> int | None:
    length = config.get("model_max_length")
    # transformers writes 1e30 for "no limit"
    return length if isinstance(length, int) and 0 < length < 1 << 31 else None


def _extra_ids(config: dict[str, Any], path: Path) -> int:
    count = config.get("extra_ids", EXTRA_IDS)
    if type(count) is not int or not 0 <= count <= MAX_EXTRA_IDS:
        raise FormatError(f"[tokenizer] {path}: extra_ids is {count!r}, want an integer in 0..{MAX_EXTRA_IDS}")
    return count
