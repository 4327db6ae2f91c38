"""Tokens that a tokenizer's folder adds to its vocabulary, gathered as transformers does: which, and in what order.

The order decides their numbers: a token that the vocabulary has keeps that number, another takes the next free one,
whatever number a file declares for it.

Source: transformers 5.24, tokenization_utils_base.py `_from_pretrained`, tokenization_utils_tokenizers.py
`TokenizersBackend.__init__`, models/t5/tokenization_t5.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from moddit.errors import FormatError

_NAMED: Final = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
T5_NAMED: Final[Mapping[str, str]] = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
EXTRA_IDS: Final = 100  # sentinel tokens of T5, unless the folder says otherwise
MAX_EXTRA_IDS: Final = 10_000
LEGACY_EXTRA: Final = "additional_special_tokens"
_FLAGS: Final = ("single_word", "lstrip", "rstrip")


@dataclass(frozen=True)
class AddedToken:
    """A token with the fields that `tokenizers` has for it."""

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False
    special: bool = True

    def fields(self) -> dict[str, Any]:
        """Give the arguments of `tokenizers.AddedToken`."""
        return asdict(self)


@dataclass(frozen=True)
class Declarations:
    """What a tokenizer's folder says of added tokens."""

    config: Mapping[str, Any]  # tokenizer_config.json
    special_map: Mapping[str, Any]  # special_tokens_map.json
    added: Mapping[str, Any]  # added_tokens.json: number by content
    serialized: tuple[Any, ...]  # "added_tokens" of tokenizer.json
    where: Path  # the folder, for messages

    def extra_ids(self) -> int:
        """Read how many sentinel tokens a T5 tokenizer has.

        Raises:
            FormatError: it is not a number of tokens.
        """
        count = self.config.get("extra_ids", EXTRA_IDS)
        if type(count) is not int or not 0 <= count <= MAX_EXTRA_IDS:
            path = self.where / "tokenizer_config.json"
            raise FormatError(f"[tokenizer] {path}: extra_ids is {count!r}, want an integer in 0..{MAX_EXTRA_IDS}")
        return count

    def legacy_extra(self) -> list[AddedToken] | None:
        """Read the further special tokens of special_tokens_map.json; None if it has none, or does not count."""
        if "added_tokens_decoder" in self.config or LEGACY_EXTRA not in self.special_map:
            return None
        return [_parse(value, self.where) for value in _items(self.special_map[LEGACY_EXTRA], self)]


def list_added_tokens(
    found: Declarations, named: Mapping[str, str], default_extra: Iterable[AddedToken]
) -> tuple[AddedToken, ...]:
    """List the tokens to add, in order.

    Args:
        found: what the folder says.
        named: special tokens that the tokenizer's class has by name, unless the folder names others.
        default_extra: further special tokens that its class has, unless the folder lists some.

    Raises:
        FormatError: a declaration is not of the form that transformers reads.
    """
    settings, declared = _read_declared(found)
    special: dict[str, Any] = {
        **dict.fromkeys(_NAMED),
        **named,
        **{key: settings[key] for key in _NAMED if key in settings},
    }
    special |= {key: value for key, value in settings.items() if _is_own_name(key, value)}
    extra = settings.get("extra_special_tokens") or found.config.get(LEGACY_EXTRA)
    if isinstance(extra, Mapping):
        special |= extra
        extra = None
    tokens = [_parse(value, found.where) for value in special.values() if value is not None]
    further = list(default_extra) if extra is None else [_parse(value, found.where) for value in _items(extra, found)]
    # Of a token that is listed twice, the later one counts: `tokenizers` keeps its number and takes its flags.
    known, names = {token.content for token in declared.values()}, {token.content for token in tokens}
    result = [token for _, token in sorted(declared.items())]
    result += [token for token in (*tokens, *further) if token.content not in known]
    return tuple(
        AddedToken(**{**token.fields(), "special": True}) if token.content in names else token for token in result
    )


def _read_declared(found: Declarations) -> tuple[dict[str, Any], dict[int, AddedToken]]:
    """Read the settings, and the tokens that are declared with numbers, which order them."""
    settings = dict(found.config)
    if "added_tokens_decoder" in settings:
        decoder = settings["added_tokens_decoder"]
        if not isinstance(decoder, Mapping):
            raise _error(found.where, "added_tokens_decoder", decoder)
        return settings, {_number(key, found.where): _parse(value, found.where) for key, value in decoder.items()}
    for key, value in found.special_map.items():
        if key == LEGACY_EXTRA:  # the tokenizer's class takes these
            continue
        if key == "extra_special_tokens" and isinstance(value, list):
            value = [*(settings.get(key) or []), *value]
        settings[key] = value
    special = {_parse(settings[key], found.where).content for key in _NAMED if settings.get(key)}
    special |= {_parse(value, found.where).content for value in _items(settings.get("extra_special_tokens"), found)}
    declared = {
        _number(number, found.where): AddedToken(content, normalized=content not in special, special=content in special)
        for content, number in found.added.items()
    }
    for value in found.serialized:
        if not isinstance(value, Mapping):
            raise _error(found.where, "added_tokens", value)
        declared[_number(value.get("id"), found.where)] = _parse(value, found.where)
    return settings, declared


def _items(value: object, found: Declarations) -> list[Any]:
    if value is None or isinstance(value, Mapping):
        return []
    if not isinstance(value, list):
        raise _error(found.where, "extra_special_tokens", value)
    return value


def _is_own_name(key: str, value: object) -> bool:
    """Say whether this is a special token under a name of the model's own."""
    is_token = isinstance(value, str) or (isinstance(value, Mapping) and value.get("__type") == "AddedToken")
    return key.endswith("_token") and key not in _NAMED and is_token


def _parse(value: object, where: Path) -> AddedToken:
    """Read a token: its text, which makes it special, or an object with the fields of `tokenizers`."""
    if isinstance(value, str):
        return AddedToken(value)
    if not isinstance(value, Mapping) or not isinstance(value.get("content"), str):
        raise _error(where, "a token", value)
    special = value.get("special", False)
    fields = {**dict.fromkeys(_FLAGS, False), "normalized": not special, "special": special}
    fields |= {key: value[key] for key in fields if key in value}
    if not all(isinstance(flag, bool) for flag in fields.values()):
        raise _error(where, "a token", value)
    return AddedToken(value["content"], **fields)


def _number(value: object, where: Path) -> int:
    if isinstance(value, str) and value.isdecimal() and len(value) < 10:
        value = int(value)
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise _error(where, "the number of a token", value)
    return value


def _error(where: Path, what: str, value: object) -> FormatError:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else f"{shown[:80]}..."
    return FormatError(f"[tokenizer] {where}: {what} is {shown}, which is not what transformers writes; save it again")
