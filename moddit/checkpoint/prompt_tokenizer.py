"""The tokenizer of a bundle, which turns prompts into numbers of tokens, through the `tokenizers` library.

A file that is damaged or made to do harm is refused when it is read: what the library would raise, the panics of its
Rust code included, becomes an error that names the file, and no number leaves the text encoder's vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from moddit.bounds import PROMPT, TOKENIZER_BYTES
from moddit.checkpoint.tokenizer_shape import Shape
from moddit.errors import FormatError, ShapeError, ValueRangeError
from moddit.record import Origin, escape, parse_json, read_bytes

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_ADVICE: Final = "convert the checkpoint again"


@dataclass(frozen=True)
class PromptTokenizer:
    """Text to token numbers as diffusers' PixArt pipelines do it with `clean_caption=False`."""

    path: Path
    vocab_size: int  # of the text encoder: every number is below it
    max_length: int  # tokens of a prompt, the end token included
    library: Tokenizer

    @classmethod
    def load(cls, path: Path, *, vocab_size: int, max_length: int) -> Self:
        """Read `tokenizer.json` for a text encoder's vocabulary and prompts of so many tokens, the end token included.

        Raises:
            MissingError: there is no such file.
            FormatError: it is damaged, or does not end a text with one token.
            ShapeError: it has numbers of tokens that the text encoder does not know.
            UnsupportedError: it is of another kind than T5's.
        """
        content = read_bytes(path, _origin(path), absent=_ADVICE, most=TOKENIZER_BYTES)
        return cls.parse(content, path, vocab_size=vocab_size, max_length=max_length)

    @classmethod
    def parse(cls, content: bytes, path: Path, *, vocab_size: int, max_length: int) -> Self:
        """Read the content of `tokenizer.json`; `path` is named in errors. Raises as `load`."""
        from tokenizers import Tokenizer

        shape = Shape(_origin(path), vocab_size)
        fields = shape.check(parse_json(content, shape.origin, most=TOKENIZER_BYTES))
        with _library_errors(path):
            library = Tokenizer.from_str(json.dumps(fields))  # of what was checked, not of a second reading
            library.enable_truncation(max_length)  # cuts before the end token, which stays
            sought = [_normalize(library, token) for token in fields["added_tokens"]]
        if "" in sought:  # the library finds it everywhere
            place = f"added_tokens[{sought.index('')}].content"
            raise shape.damaged(place, "is empty when it is normalized", "a text")
        return cls(path, vocab_size, max_length, library)

    def encode(self, text: str) -> list[int]:
        """Encode one text: lower case, stripped, truncated, closed with the end token, never padded.

        Raises:
            ValueRangeError: the text has more than PROMPT characters, or halves of characters.
            FormatError, ShapeError: the tokenizer is damaged after all.
        """
        if len(text) > PROMPT:
            raise ValueRangeError(
                f"[tokenizer] the prompt has {len(text)} characters, want at most {PROMPT}; shorten it"
            )
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueRangeError(
                "[tokenizer] the prompt is not Unicode text; check the encoding of where it came from"
            )
        with _library_errors(self.path):
            ids: list[int] = self.library.encode(text.lower().strip()).ids
        if len(ids) > self.max_length or any(number >= self.vocab_size for number in ids):
            raise ShapeError(
                f"{_origin(self.path)}: a prompt has {len(ids)} tokens up to number {max(ids)}, want at most "
                f"{self.max_length} below {self.vocab_size}; {_ADVICE}"
            )
        return ids

    def has(self, token: str) -> bool:
        """Whether a token has a number."""
        return self.library.token_to_id(token) is not None


def _origin(path: Path) -> Origin:
    return Origin("tokenizer", str(path), _ADVICE)


def _normalize(library: Tokenizer, token: Mapping[str, Any]) -> str:
    """Write an added token as it is sought in a text."""
    content: str = token["content"]
    return library.normalizer.normalize_str(content) if token["normalized"] and library.normalizer else content


@contextmanager
def _library_errors(path: Path) -> Iterator[None]:
    """Turn what the library raises into an error that names the file."""
    try:
        yield
    except BaseException as error:  # the library raises nothing narrower
        # a panic is one of pyo3, which gives it no module to import it from
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise FormatError(f"{_origin(path)}: not a tokenizer ({escape(str(error))[:200]}); {_ADVICE}") from None
