"""Tokens that a tokenizer's folder adds to its vocabulary, gathered as transformers does: which, and in what order.

The order decides their numbers: a token that the vocabulary has keeps that number, another takes the next free one,
whatever number a file declares for it.

Source: transformers 5.24, tokenization_utils_base.py `_from_pretrained`, tokenization_utils_tokenizers.py
`TokenizersBackend.__init__`, models/t5/tokenization_t5.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

from moddit.errors import FormatError
from moddit.record import quote

_NAMED: Final = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
T5_NAMED: Final[Mapping[str, str]] = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
EXTRA_IDS: Final = 100  # sentinel tokens of T5, unless the folder says otherwise
MAX_EXTRA_IDS: Final = 10_000
EXTRA: Final = "extra_special_tokens"
LEGACY_EXTRA: Final = "additional_special_tokens"
_OWN: Final = "model_specific_special_tokens"
_FLAGS: Final = ("single_word", "lstrip", "rstrip")


@dataclass(frozen=True)
class AddedToken:
    """A token with the fields that `tokenizers` has for it."""

    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool | None = None  # None: unless it is special
    special: bool = True

    def fields(self) -> dict[str, Any]:
        """Give the arguments of `tokenizers.AddedToken`."""
        return {**asdict(self), "normalized": not self.special if self.normalized is None else self.normalized}


@dataclass(frozen=True)
class Declarations:
    """What a tokenizer's folder says of added tokens."""

    config: Mapping[str, Any]  # tokenizer_config.json
    special_map: Mapping[str, Any]  # special_tokens_map.json
    added: Mapping[str, Any]  # added_tokens.json: number by content
    serialized: tuple[Any, ...]  # "added_tokens" of tokenizer.json
    where: Path  # the folder, for messages
    files: tuple[str, ...]  # in it, that say something

    @property
    def place(self) -> str:
        """The files, for messages about what may stand in any of them."""
        return f"{self.where} ({', '.join(self.files)})"

    def extra_ids(self) -> int:
        """Read how many sentinel tokens a T5 tokenizer has; raises FormatError if it is not a number of tokens."""
        count = self.config.get("extra_ids", EXTRA_IDS)
        if type(count) is not int or not 0 <= count <= MAX_EXTRA_IDS:
            path = self.where / "tokenizer_config.json"
            raise FormatError(f"[tokenizer] {path}: extra_ids is {count!r}, want an integer in 0..{MAX_EXTRA_IDS}")
        return count

    def name(self, key: str, default: str) -> str:
        """Read the text of a token that the tokenizer's class has by name."""
        found = _read_declared(self)[0].get(key, default)
        return default if found is None else _parse(found, self.place).content

    def legacy_extra(self) -> list[AddedToken] | None:
        """Read the further special tokens that the tokenizer's class takes; None if the folder has none for it."""
        place = None
        if "added_tokens_decoder" not in self.config and LEGACY_EXTRA in self.special_map:
            place = self.special_map
        elif isinstance(self.config.get(EXTRA), Mapping) and self.config[EXTRA] and LEGACY_EXTRA in self.config:
            place = self.config
        return None if place is None else [_parse(value, self.place) for value in _items(place[LEGACY_EXTRA], self)]


def list_added_tokens(
    found: Declarations, named: Mapping[str, str], default_extra: Iterable[AddedToken]
) -> tuple[AddedToken, ...]:
    """List the tokens to add, in order; raises FormatError for a declaration that transformers does not read.

    Special tokens that the tokenizer's class has by name, and further ones, give way to those that the folder names.
    """
    settings, declared = _read_declared(found)
    special: dict[str, Any] = {
        **dict.fromkeys(_NAMED),
        **named,
        **{key: settings[key] for key in _NAMED if key in settings},
    }
    special |= {key: value for key, value in settings.items() if _is_own_name(key, value)}
    special |= settings[_OWN]
    tokens = [_parse(value, found.place) for value in special.values() if value is not None]
    # Whoever lists further tokens, if only none or null, replaces those of the class.
    listed = [_parse(value, found.place) for value in _items(settings.get(EXTRA), found)]
    further = listed if EXTRA in settings else list(default_extra)
    # Of a token that is listed twice, the later one counts: `tokenizers` keeps its number and takes its flags.
    known, names = {token.content for token in declared.values()}, {token.content for token in tokens}
    result = [token for _, token in sorted(declared.items())]
    result += [token for token in (*tokens, *further) if token.content not in known]
    return tuple(replace(token, special=True) if token.content in names else token for token in result)


def _read_declared(found: Declarations) -> tuple[dict[str, Any], dict[int, AddedToken]]:
    """Read the settings, and the tokens that are declared with numbers, which order them."""
    settings = dict(found.config)
    if LEGACY_EXTRA in settings and not settings.get(EXTRA):
        settings[EXTRA] = settings.pop(LEGACY_EXTRA)
    settings[_OWN] = _take_own(settings)
    if "added_tokens_decoder" in settings:
        decoder = settings["added_tokens_decoder"]
        if not isinstance(decoder, Mapping):
            raise _error(found.place, "added_tokens_decoder", decoder)
        return settings, {_number(key, found.place): _parse(value, found.place) for key, value in decoder.items()}
    for key, value in found.special_map.items():
        if key == LEGACY_EXTRA:  # the tokenizer's class takes these
            continue
        if key == EXTRA and isinstance(value, list):
            value = [*_items(settings.get(key), found), *map(_as_special, value)]
        settings[key] = value if key == EXTRA else _as_special(value)
    settings[_OWN] |= _take_own(settings)
    special = {_parse(settings[key], found.place).content for key in _NAMED if settings.get(key)}
    special |= {_parse(value, found.place).content for value in _items(settings.get(EXTRA), found)}
    declared = {
        _number(number, found.place): AddedToken(content, normalized=content not in special, special=content in special)
        for content, number in found.added.items()
    }
    for value in found.serialized:
        if not isinstance(value, Mapping):
            raise _error(found.place, "added_tokens", value)
        declared[_number(value.get("id"), found.place)] = _parse(value, found.place)
    return settings, declared


def _take_own(settings: dict[str, Any]) -> dict[str, Any]:
    """Take tokens under names of the model's own out of the further special tokens."""
    return dict(settings.pop(EXTRA)) if isinstance(settings.get(EXTRA), Mapping) else {}


def _as_special(value: Any) -> Any:
    """Make a token special, unless it is a string, which is one anyway."""
    return {**value, "special": True} if isinstance(value, Mapping) else value


def _items(value: object, found: Declarations) -> list[Any]:
    if value is None or isinstance(value, Mapping):
        return []
    if not isinstance(value, list):
        raise _error(found.place, "extra_special_tokens", value)
    return value


def _is_own_name(key: str, value: object) -> bool:
    """Say whether this is a special token under a name of the model's own."""
    is_token = isinstance(value, str) or (isinstance(value, Mapping) and value.get("__type") == "AddedToken")
    return key.endswith("_token") and key not in _NAMED and is_token


def _parse(value: object, where: str) -> AddedToken:
    """Read a token: its text, which makes it special, or an object with the fields of `tokenizers`."""
    if isinstance(value, str):
        return AddedToken(value)
    if not isinstance(value, Mapping) or not isinstance(value.get("content"), str):
        raise _error(where, "a token", value)
    fields = {key: value[key] for key in (*_FLAGS, "normalized", "special") if key in value}
    if not all(isinstance(flag, bool) for flag in fields.values()):
        raise _error(where, "a token", value)
    return AddedToken(value["content"], **{"special": False, **fields})


def _number(value: object, where: str) -> int:
    if isinstance(value, str) and value.isdecimal() and len(value) < 10:
        value = int(value)
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise _error(where, "the number of a token", value)
    return value


def _error(where: str, what: str, value: object) -> FormatError:
    return FormatError(
        f"[tokenizer] {where}: {what} is {quote(value)}, which is not what transformers writes; save it again"
    )
