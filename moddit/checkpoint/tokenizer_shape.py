"""What `tokenizer.json` may hold: the parts of T5's kind, whose work and whose numbers are bounded.

The `tokenizers` library runs whatever a file says: steps that make a text ten times as long, nine times in a row, and
numbers of tokens that no text encoder has. These are refused before it sees them. So is a field that is not known,
which it ignores, and a number that it replaces by its own.
"""

from __future__ import annotations

import base64
import binascii
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from moddit.bounds import REPLACEMENT, STEPS
from moddit.errors import FormatError, ShapeError, UnsupportedError
from moddit.record import Origin, escape, quote

T = TypeVar("T", str, bool, list[Any], dict[str, Any])

FORMAT: Final = "1.0"
_USED: Final = ("added_tokens", "normalizer", "pre_tokenizer", "post_processor", "model")
_UNUSED: Final = ("truncation", "padding", "decoder")
_PADDING: Final = ("strategy", "direction", "pad_to_multiple_of", "pad_id", "pad_type_id", "pad_token")
_FLAGS: Final = ("single_word", "lstrip", "rstrip", "normalized", "special")
_SPACES: Final = {"Regex": " {2,}"}  # the one expression that files of T5's kind have
_SCHEMES: Final = ("always", "never", "first")
_TYPE_IDS: Final = range(1 << 32)
_NORMALIZERS: Final[Mapping[object, tuple[str, ...]]] = {  # by type, with their fields
    "Precompiled": ("precompiled_charsmap",),
    "Replace": ("pattern", "content"),
    "Strip": ("strip_left", "strip_right"),
    **dict.fromkeys(("Lowercase", "NFC", "NFD", "NFKC", "NFKD"), ()),
}
_LISTED: Final = 6  # keys that a message lists
_WORDS: Final[Mapping[type, str]] = {str: "a text", bool: "true or false", list: "a list", dict: "an object"}


@dataclass(frozen=True)
class Shape:
    """Checks the parts of one file."""

    origin: Origin
    vocab_size: int  # of the text encoder

    def check(self, value: object) -> dict[str, Any]:
        """Check all parts of `tokenizer.json` that encoding uses.

        Returns:
            these parts, in the form of the file; nothing in the place of the others.

        Raises:
            FormatError: a part is damaged.
            ShapeError: a token has a number that the text encoder does not know.
            UnsupportedError: a part that tokenizers of T5's kind have not.
        """
        fields = self._fields("it", value, ("version", *_USED, *_UNUSED))
        if fields["version"] != FORMAT:
            raise self._unsupported("version", quote(fields["version"]), repr(FORMAT))
        pieces = self._check_model(fields["model"])
        self._check_steps("normalizer", fields["normalizer"], "normalizers", self._check_normalizer)
        self._check_steps("pre_tokenizer", fields["pre_tokenizer"], "pretokenizers", self._check_cut)
        self._check_template(fields["post_processor"])
        self._check_added(fields["added_tokens"], pieces)
        if fields["truncation"] is not None:
            self._fields("truncation", fields["truncation"], ("max_length", "strategy", "stride"), ("direction",))
        if fields["padding"] is not None:
            self._check_number("padding.pad_id", self._fields("padding", fields["padding"], _PADDING)["pad_id"])
        return {**fields, **dict.fromkeys(_UNUSED), "post_processor": {**fields["post_processor"], "pair": []}}

    def damaged(self, place: str, found: str, wanted: str) -> FormatError:
        """Make the error for a part that is not what it claims to be."""
        return FormatError(f"{self.origin}: {place} {found}, want {wanted}{self.origin.end}")

    def _wrong(self, place: str, value: object, wanted: str) -> FormatError:
        return self.damaged(place, f"is {quote(value)}", wanted)

    def _unsupported(self, place: str, found: str, wanted: str) -> UnsupportedError:
        """Make the error for a part of another kind of tokenizer."""
        return UnsupportedError(f"{self.origin}: {place} {found} is not implemented, want {wanted}, as T5 has it")

    def _check_number(self, place: str, number: object) -> int:
        """Hold the number of a token against the text encoder."""
        if type(number) is not int or number < 0:
            raise self._wrong(place, number, "the number of a token")
        if number >= self.vocab_size:
            raise ShapeError(
                f"{self.origin}: {place} is {quote(number)}, the text encoder's vocab_size is {self.vocab_size}"
                f"{self.origin.end}"
            )
        return number

    def _check_model(self, value: object) -> list[tuple[str, float]]:
        """Check the vocabulary; returns its pieces."""
        self._check_type("model", value, ("Unigram",))
        model = self._fields("model", value, ("type", "unk_id", "vocab"), ("byte_fallback",))
        pieces = self._typed("model.vocab", model["vocab"], list)
        for index, piece in enumerate(pieces):
            if not is_piece(piece):
                raise self._wrong(f"model.vocab[{index}]", piece, "a text and its finite score")
        if not pieces:
            raise self._wrong("model.vocab", pieces, "at least one piece")
        self._check_number("the last piece's number in model.vocab", len(pieces) - 1)
        if self._check_number("model.unk_id", model["unk_id"]) >= len(pieces):
            raise self._wrong("model.unk_id", model["unk_id"], f"one of the {len(pieces)} pieces")
        self._typed("model.byte_fallback", model.get("byte_fallback", False), bool)
        return pieces

    def _check_steps(self, name: str, value: object, key: str, check: Callable[[str, object], None]) -> None:
        """Check a part that is nothing, one step, or a sequence of steps."""
        if value is None:
            return
        if self._typed(name, value, dict).get("type") != "Sequence":
            check(name, value)
            return
        steps = self._typed(f"{name}.{key}", self._fields(name, value, ("type", key))[key], list)
        if len(steps) > STEPS:
            raise self._unsupported(name, f"of {len(steps)} steps", f"at most {STEPS}")
        for index, step in enumerate(steps):
            check(f"{name}.{key}[{index}]", step)
        if [step["type"] for step in steps].count("Precompiled") > 1:
            raise self._unsupported(name, "of several maps of characters", "one")

    def _check_normalizer(self, place: str, value: object) -> None:
        kind = self._check_type(place, value, _NORMALIZERS)
        fields = self._fields(place, value, ("type", *_NORMALIZERS[kind]))
        if kind == "Precompiled":
            self._check_charsmap(f"{place}.precompiled_charsmap", fields["precompiled_charsmap"])
        elif kind == "Replace":
            self._check_replace(place, fields)
        for name in ("strip_left", "strip_right") if kind == "Strip" else ():
            self._typed(f"{place}.{name}", fields[name], bool)

    def _check_charsmap(self, place: str, value: object) -> None:
        """Bound what a map of characters puts for one: four bytes tell where its texts begin, each ends with a zero."""
        text = self._typed(place, value, str)
        try:
            data = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            data = b""
        start = 4 + int.from_bytes(data[:4], "little")
        if base64.b64encode(data).decode() != text or not 4 < start <= len(data) or start % 4:
            raise self._wrong(place, text, "a map of characters")
        longest = max(map(len, data[start:].split(b"\0")))
        if longest > REPLACEMENT:
            raise self._unsupported(place, f"with texts of {longest} bytes", f"at most {REPLACEMENT}")

    def _check_replace(self, place: str, fields: Mapping[str, Any]) -> None:
        pattern = self._typed(f"{place}.pattern", fields["pattern"], dict)
        content = self._typed(f"{place}.content", fields["content"], str)
        text = pattern.get("String")
        is_text = len(pattern) == 1 and isinstance(text, str) and text != "" and len(content) <= len(text)
        if not is_text and not (pattern == _SPACES and len(content) <= 1):
            raise self._unsupported(
                place, f"Replace {quote(pattern)} by {quote(content)}", "one that makes no text longer"
            )

    def _check_cut(self, place: str, value: object) -> None:
        if self._check_type(place, value, ("WhitespaceSplit", "Metaspace")) == "WhitespaceSplit":
            self._fields(place, value, ("type",))
            return
        optional = {"prepend_scheme": "always", "split": True, "add_prefix_space": True, "str_rep": ""}
        fields = {**optional, **self._fields(place, value, ("type", "replacement"), tuple(optional))}
        if len(self._typed(f"{place}.replacement", fields["replacement"], str)) != 1:
            raise self._wrong(f"{place}.replacement", fields["replacement"], "one character")
        scheme = fields["prepend_scheme"]
        if scheme not in _SCHEMES:
            raise self._unsupported(f"{place}.prepend_scheme", quote(scheme), " or ".join(_SCHEMES))
        self._typed(f"{place}.split", fields["split"], bool)
        self._typed(f"{place}.str_rep", fields["str_rep"], str)
        if not self._typed(f"{place}.add_prefix_space", fields["add_prefix_space"], bool) and scheme != "never":
            raise self.damaged(f"{place}.add_prefix_space", "is false", "what prepend_scheme says")

    def _check_template(self, value: object) -> None:
        place = "post_processor"
        self._check_type(place, value, ("TemplateProcessing",))
        template = self._fields(place, value, ("type", "single", "pair", "special_tokens"))
        listed = self._typed(f"{place}.special_tokens", template["special_tokens"], dict)
        lengths = {name: self._count(f"{place}.special_tokens.{escape(name)[:80]}", listed[name]) for name in listed}
        texts, tokens = 0, 0
        for index, part in enumerate(self._typed(f"{place}.single", template["single"], list)):
            where = f"{place}.single[{index}]"
            kind, name = self._read_part(where, part)
            if kind == "Sequence" and name == "A":
                texts += 1
            elif kind == "SpecialToken" and name in lengths:
                tokens += lengths[name]
            else:
                raise self._wrong(where, part, "the text A or one of post_processor.special_tokens")
        if (texts, tokens) != (1, 1):
            found = f"has {texts} texts and {tokens} tokens"
            raise self.damaged(f"{place}.single", found, "one text and one end token")

    def _count(self, place: str, value: object) -> int:
        """Check a special token of the template; returns how many numbers it has."""
        token = self._fields(place, value, ("id", "ids", "tokens"))
        self._typed(f"{place}.id", token["id"], str)
        for text in self._typed(f"{place}.tokens", token["tokens"], list):
            self._typed(f"{place}.tokens", text, str)
        numbers = self._typed(f"{place}.ids", token["ids"], list)
        for number in numbers:
            self._check_number(f"{place}.ids", number)
        return len(numbers)

    def _read_part(self, place: str, value: object) -> tuple[str, str]:
        """Read a part of the template: of which kind it is, and its name."""
        part = self._fields(place, value, (), ("Sequence", "SpecialToken"))
        if len(part) != 1:
            raise self._wrong(place, value, "a Sequence or a SpecialToken")
        ((kind, inner),) = part.items()
        fields = self._fields(f"{place}.{kind}", inner, ("id", "type_id"))
        if type(fields["type_id"]) is not int or fields["type_id"] not in _TYPE_IDS:
            raise self._wrong(f"{place}.{kind}.type_id", fields["type_id"], "an integer of 32 bits")
        return kind, self._typed(f"{place}.{kind}.id", fields["id"], str)

    def _check_added(self, value: object, pieces: list[tuple[str, float]]) -> None:
        """Check the added tokens: each has the number of its piece, or else the next one."""
        numbers = {piece: number for number, (piece, _) in enumerate(pieces)}
        following, seen = len(pieces), set()
        for index, item in enumerate(self._typed("added_tokens", value, list)):
            place = f"added_tokens[{index}]"
            token = self._fields(place, item, ("id", "content", *_FLAGS))
            content = self._typed(f"{place}.content", token["content"], str)
            for flag in _FLAGS:
                self._typed(f"{place}.{flag}", token[flag], bool)
            if not content or content in seen:
                raise self.damaged(f"{place}.content", f"is {quote(content)}, empty or there twice", "another text")
            number = self._check_number(f"{place}.id", token["id"])
            wanted = numbers.get(content, following)
            if number != wanted:
                raise self._wrong(f"{place}.id", number, f"{wanted}, the number of {quote(content)}")
            seen.add(content)
            following = max(following, number + 1)

    def _check_type(self, place: str, value: object, kinds: Iterable[object]) -> str:
        """Read the type of a part, which is one of those listed."""
        kind = self._typed(place, value, dict).get("type")
        if not isinstance(kind, str) or kind not in kinds:
            raise self._unsupported(place, f"of type {quote(kind)}", " or ".join(map(str, kinds)))
        return kind

    def _fields(
        self, place: str, value: object, required: tuple[str, ...], optional: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        """Read an object that has the required fields, perhaps optional ones, and no others."""
        fields = self._typed(place, value, dict)
        absent = [name for name in required if name not in fields]
        more = [name for name in fields if name not in (*required, *optional)]
        if absent or more:
            found = f"{'lacks' if absent else 'has'} {', '.join(map(quote, (absent or more)[:_LISTED]))}"
            raise self.damaged(place, found, f"an object with {', '.join((*required, *optional))}")
        return fields

    def _typed(self, place: str, value: object, kind: type[T]) -> T:
        if not isinstance(value, kind):
            raise self._wrong(place, value, _WORDS[kind])
        return value


def is_piece(value: object) -> bool:
    """Whether a value is a piece of a vocabulary: a text and its finite score."""
    if not isinstance(value, list) or len(value) != 2 or not isinstance(value[0], str):
        return False
    return type(value[1]) in (int, float) and abs(value[1]) <= sys.float_info.max
