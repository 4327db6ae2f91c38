"""The tokenizer of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convert.source import read_json
from moddit.errors import FormatError, MissingError


@dataclass(frozen=True)
class TokenizerFile:
    """A tokenizer in the format of the `tokenizers` library."""

    text: bytes  # tokenizer.json
    size: int  # tokens, numbered from 0
    max_length: int | None  # tokens of a text, if the checkpoint limits them
    files: tuple[Path, ...]  # that it was read from


def read_tokenizer(folder: Path) -> TokenizerFile:
    """Read `tokenizer.json` and `tokenizer_config.json`.

    Raises:
        MissingError: no tokenizer.json.
        FormatError: it is not a tokenizer.
    """
    path, config = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if not path.is_file():
        found = sorted(entry.name for entry in folder.iterdir())
        raise MissingError(
            f"[tokenizer] {path}: no such file, got {', '.join(found) or 'no files'}; save the tokenizer again with "
            "a current transformers"
        )
    value = read_json(path)
    return TokenizerFile(
        text=path.read_bytes(),
        size=_count_tokens(value, path),
        max_length=_max_length(read_json(config)) if config.is_file() else None,
        files=(path, config) if config.is_file() else (path,),
    )


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
