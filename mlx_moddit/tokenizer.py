"""The T5 tokenizer, through the `tokenizers` library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Self

import tokenizers

from moddit.errors import FormatError, MissingError


class Tokenizer:
    """Text to token numbers as diffusers' PixArt pipelines do it with `clean_caption=False`."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, max_length: int):
        self._tokenizer = tokenizer
        self._tokenizer.enable_truncation(max_length)  # cuts before the end token, which stays

    @classmethod
    def load(cls, path: Path, max_length: int) -> Self:
        """Read `tokenizer.json`.

        `max_length` counts the tokens to keep, the end token included.

        Raises:
            MissingError: if there is no such file.
            FormatError: if it is not a tokenizer, or one that does not end a text with one token.
        """
        try:
            text = path.read_text(encoding="utf-8")
            fields = json.loads(text)
        except FileNotFoundError:
            raise MissingError(f"[tokenizer] {path}: no such file; convert the checkpoint again") from None
        except ValueError as error:
            raise FormatError(f"[tokenizer] {path}: not JSON ({error}); convert the checkpoint again") from None
        if not isinstance(fields, dict) or "model" not in fields:
            raise FormatError(
                f"[tokenizer] {path}: not a tokenizer, want an object with a 'model'; convert the checkpoint again"
            )
        tokenizer = tokenizers.Tokenizer.from_str(text)
        tokenizer.no_padding()  # transformers stores the settings of its last call
        end = tokenizer.encode("").ids
        if len(end) != 1:
            raise FormatError(f"[tokenizer] {path}: the empty text has tokens {end}, want the end token only")
        return cls(tokenizer, max_length)

    def encode(self, text: str) -> list[int]:
        """Encode one text: lower case, stripped, truncated, closed with the end token, never padded."""
        ids: list[int] = self._tokenizer.encode(text.lower().strip()).ids
        return ids
