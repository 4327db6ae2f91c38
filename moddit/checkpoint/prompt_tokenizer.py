"""The tokenizer of a bundle, which turns prompts into numbers of tokens, through the `tokenizers` library.

A file that is damaged or made to do harm is refused when it is read: what the library would raise, the panics of its
Rust code included, becomes an error that names the file, and no number leaves the text encoder's vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from moddit.bounds import PROMPT, TOKENIZER_BYTES
from moddit.checkpoint.tokenizer_shape import Shape
from moddit.errors import FormatError, MissingError, ShapeError, ValueRangeError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class PromptTokenizer:
    """Text to token numbers as diffusers' PixArt pipelines do it with `clean_caption=False`."""

    path: Path
    vocab_size: int  # of the text encoder: every number is below it
    max_length: int  # tokens of a prompt, the end token included
    library: Tokenizer

    @classmethod
    def load(cls, path: Path, *, vocab_size: int, max_length: int) -> Self:
        """Read `tokenizer.json`.

        Args:
            path: of the file.
            vocab_size: of the text encoder.
            max_length: tokens to keep of a prompt, the end token included.

        Raises:
            MissingError: there is no such file.
            FormatError: it is damaged, or does not end a text with one token.
            ShapeError: it has numbers of tokens that the text encoder does not know.
            UnsupportedError: it is of another kind than T5's.
        """
        try:
            with path.open("rb") as file:
                content = file.read(TOKENIZER_BYTES + 1)
        except FileNotFoundError:
            raise MissingError(f"[tokenizer] {path}: no such file; convert the checkpoint again") from None
        except OSError as error:
            raise FormatError(f"[tokenizer] {path}: cannot be read ({error}); convert the checkpoint again") from None
        return cls.parse(content, path, vocab_size=vocab_size, max_length=max_length)

    @classmethod
    def parse(cls, content: bytes, path: Path, *, vocab_size: int, max_length: int) -> Self:
        """Read the content of `tokenizer.json`; `path` is named in errors. Raises as `load`."""
        from tokenizers import Tokenizer

        fields = _parse_json(content, path)
        shape = Shape(path, vocab_size)
        shape.check(fields)
        with _library_errors(path):
            library = Tokenizer.from_str(json.dumps(fields))  # of what was checked, not of a second reading
            library.no_padding()  # transformers stores the settings of its last call
            library.enable_truncation(max_length)  # cuts before the end token, which stays
            largest = max(library.get_vocab(with_added_tokens=True).values(), default=0)
        shape.check_number("the largest number of a token", largest)
        tokenizer = cls(path, vocab_size, max_length, library)
        end = tokenizer.encode("")
        if len(end) != 1:
            raise FormatError(f"[tokenizer] {path}: the empty text has tokens {end}, want the end token only")
        return tokenizer

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
                f"[tokenizer] {self.path}: a prompt has {len(ids)} tokens up to number {max(ids)}, want at most "
                f"{self.max_length} below {self.vocab_size}; convert the checkpoint again"
            )
        return ids

    def has(self, token: str) -> bool:
        """Whether a token has a number."""
        return self.library.token_to_id(token) is not None


def _parse_json(content: bytes, path: Path) -> dict[str, Any]:
    if len(content) > TOKENIZER_BYTES:
        raise FormatError(f"[tokenizer] {path}: larger than {TOKENIZER_BYTES} bytes, want a tokenizer of T5's kind")
    try:
        fields = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"[tokenizer] {path}: not JSON ({error}); convert the checkpoint again") from None
    if not isinstance(fields, dict) or "model" not in fields:
        raise FormatError(
            f"[tokenizer] {path}: not a tokenizer, want an object with a 'model'; convert the checkpoint again"
        )
    return fields


@contextmanager
def _library_errors(path: Path) -> Iterator[None]:
    """Turn what the library raises into an error that names the file."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 # the library raises nothing narrower
        raise _damaged(path, error) from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of pyo3, which gives it no module to import it from
            raise
        raise _damaged(path, error) from None


def _damaged(path: Path, error: BaseException) -> FormatError:
    return FormatError(f"[tokenizer] {path}: not a tokenizer ({error}); convert the checkpoint again")
