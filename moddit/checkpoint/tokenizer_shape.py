"""What `tokenizer.json` may hold: the parts of T5's kind, whose work and whose numbers are bounded.

The `tokenizers` library runs whatever a file says: steps that make a text ten times as long, nine times in a row, and
numbers of tokens that no text encoder has. These are refused before it sees them.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from moddit.bounds import REPLACEMENT, STEPS
from moddit.errors import FormatError, ShapeError, UnsupportedError

FORMAT: Final = "1.0"
_SPACES: Final = " {2,}"  # the one expression that files of T5's kind have
_FIXED: Final = ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Strip")  # normalizers whose work no file decides


@dataclass(frozen=True)
class Shape:
    """Checks the parts of one file."""

    path: Path
    vocab_size: int  # of the text encoder

    def check(self, fields: Mapping[str, Any]) -> None:
        """Check all parts that encoding uses.

        Args:
            fields: of `tokenizer.json`.

        Raises:
            FormatError: a part is damaged.
            ShapeError: a token has a number that the text encoder does not know.
            UnsupportedError: a part that tokenizers of T5's kind have not.
        """
        if fields.get("version") != FORMAT:
            raise self.unsupported("version", fields.get("version"), repr(FORMAT))
        self._check_model(fields.get("model"))
        self._check_steps("normalizer", fields.get("normalizer"), "normalizers", self._check_normalizer)
        self._check_steps("pre_tokenizer", fields.get("pre_tokenizer"), "pretokenizers", self._check_cut)
        self._check_template(fields.get("post_processor"))
        for index, token in enumerate(self._list("added_tokens", fields.get("added_tokens", []))):
            self.check_number(f"added_tokens[{index}].id", self._object("added_tokens", token).get("id"))

    def check_number(self, place: str, number: object) -> None:
        """Hold the number of a token against the text encoder; raises as `check`."""
        if type(number) is not int or number < 0:
            raise self.damaged(place, number, "the number of a token")
        if number >= self.vocab_size:
            raise ShapeError(
                f"[tokenizer] {self.path}: {place} is {number}, the text encoder's vocab_size is {self.vocab_size}; "
                "convert the checkpoint again"
            )

    def damaged(self, place: str, found: object, wanted: str) -> FormatError:
        """Make the error for a part that is not what it claims to be."""
        return FormatError(
            f"[tokenizer] {self.path}: {place} is {_shorten(found)}, want {wanted}; convert the checkpoint again"
        )

    def unsupported(self, place: str, found: object, wanted: str) -> UnsupportedError:
        """Make the error for a part of another kind of tokenizer."""
        return UnsupportedError(
            f"[tokenizer] {self.path}: {place} {_shorten(found)} is not implemented, want {wanted}, as T5 has it"
        )

    def _check_model(self, value: object) -> None:
        model = self._object("model", value)
        if model.get("type") != "Unigram":
            raise self.unsupported("model", model.get("type"), "Unigram")
        pieces = self._list("model.vocab", model.get("vocab"))
        wrong = next((piece for piece in pieces if not is_piece(piece)), None)
        if wrong is not None:
            raise self.damaged("a piece of model.vocab", wrong, "a text and its finite score")
        self.check_number("the last piece's number", len(pieces) - 1)
        unknown = model.get("unk_id")
        self.check_number("model.unk_id", unknown)
        if unknown not in range(len(pieces)):
            raise self.damaged("model.unk_id", unknown, f"one of the {len(pieces)} pieces")

    def _check_steps(self, name: str, value: object, key: str, check: Callable[[str, Mapping[str, Any]], None]) -> None:
        """Check a part that is nothing, one step, or a sequence of steps."""
        if value is None:
            return
        part = self._object(name, value)
        steps = self._list(f"{name}.{key}", part.get(key)) if part.get("type") == "Sequence" else [part]
        if len(steps) > STEPS:
            raise self.unsupported(name, f"of {len(steps)} steps", f"{STEPS} at most")
        kinds = [self._object(name, step).get("type") for step in steps]
        if kinds.count("Precompiled") > 1:
            raise self.unsupported(name, "of several maps of characters", "one")
        for step in steps:
            check(name, step)

    def _check_normalizer(self, name: str, step: Mapping[str, Any]) -> None:
        kind = step.get("type")
        if kind == "Precompiled":
            self._check_charsmap(step.get("precompiled_charsmap"))
        elif kind == "Replace":
            self._check_replace(name, step.get("pattern"), step.get("content"))
        elif kind not in _FIXED:
            raise self.unsupported(name, kind, f"Precompiled, Replace, {', '.join(_FIXED)}")

    def _check_charsmap(self, value: object) -> None:
        """Bound what a map of characters puts for one: four bytes tell where its texts begin, each ends with a zero."""
        try:
            data = base64.b64decode(value, validate=True) if isinstance(value, str) else None
        except (binascii.Error, ValueError):
            data = None
        start = 4 + int.from_bytes(data[:4], "little") if data else 0
        if not data or not 4 < start <= len(data) or start % 4:
            raise self.damaged("precompiled_charsmap", value, "a map of characters")
        longest = max(map(len, data[start:].split(b"\0")))
        if longest > REPLACEMENT:
            raise self.unsupported("precompiled_charsmap", f"with texts of {longest} bytes", f"{REPLACEMENT}")

    def _check_replace(self, name: str, pattern: object, content: object) -> None:
        fields = self._object(f"{name}.pattern", pattern)
        if not isinstance(content, str):
            raise self.damaged(f"{name}.content", content, "a text")
        text = fields.get("String")
        is_text = len(fields) == 1 and isinstance(text, str) and len(content) <= len(text)
        if not is_text and not (fields == {"Regex": _SPACES} and len(content) <= 1):
            raise self.unsupported(name, f"Replace {pattern} by {content!r}", "one that makes no text longer")

    def _check_cut(self, name: str, step: Mapping[str, Any]) -> None:
        if step.get("type") not in ("WhitespaceSplit", "Metaspace"):
            raise self.unsupported(name, step.get("type"), "WhitespaceSplit or Metaspace")

    def _check_template(self, value: object) -> None:
        template = self._object("post_processor", value)
        if template.get("type") != "TemplateProcessing":
            raise self.unsupported("post_processor", template.get("type"), "TemplateProcessing")
        known = self._object("post_processor.special_tokens", template.get("special_tokens"))
        for place, number in self._template_numbers(known):
            self.check_number(place, number)
        parts = [self._object("post_processor.single", item) for item in self._list("single", template.get("single"))]
        texts = [self._object("Sequence", part["Sequence"]).get("id") for part in parts if "Sequence" in part]
        names = [
            self._object("SpecialToken", part.get("SpecialToken")).get("id") for part in parts if "Sequence" not in part
        ]
        if texts != ["A"] or any(not isinstance(name, str) or name not in known for name in names):
            raise self.damaged("post_processor.single", parts, "the text A and special tokens of the template")

    def _template_numbers(self, known: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
        for name, token in known.items():
            place = f"post_processor.special_tokens[{_shorten(name)}].ids"
            yield from ((place, number) for number in self._list(place, self._object(place, token).get("ids")))

    def _object(self, place: str, value: object) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            raise self.damaged(place, value, "an object")
        return value

    def _list(self, place: str, value: object) -> list[Any]:
        if not isinstance(value, list):
            raise self.damaged(place, value, "a list")
        return value


def is_piece(value: object) -> bool:
    """Whether a value is a piece of a vocabulary: a text and its finite score."""
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[0], str):
        return False
    return type(value[1]) in (int, float) and _is_finite(value[1])


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond every float
        return False


def _shorten(value: object) -> str:
    """Show the beginning of a value of a file."""
    text = value if isinstance(value, str) and value.startswith(("of ", "with ", "Replace ")) else repr(value)
    return text if len(text) <= 80 else text[:80] + "..."
