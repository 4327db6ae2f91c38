"""Every JSON that is read becomes a typed record here: bounded, checked, and with one way to say what is wrong.

A record is a frozen dataclass whose annotations have its bounds (`moddit.bounds`); msgspec checks them without
converting anything but whole numbers to float. Messages read ``[component] FILE: path.of.field is VALUE, want ...; what
to do``, and show text of a file as Python would write it, shortened, so that none of it reaches a terminal as it is.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from reprlib import Repr
from types import NoneType, UnionType
from typing import Annotated, Any, Final, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from moddit.bounds import JSON_BYTES, JSON_DEPTH, NAME
from moddit.errors import FormatError, InputError, MissingError, UnsupportedError, ValueRangeError

_SHOWN: Final = 80  # characters of a value that a message shows
_LISTED: Final = 6  # keys that a message lists
_REPR: Final = Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = _SHOWN
_REPR.maxlevel, _REPR.maxlist, _REPR.maxtuple, _REPR.maxdict = 2, 4, 4, 4
_WORDS: Final = {
    "int": "an integer",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}
_SIGNS: Final = {">=": "at least", "<=": "at most", ">": "more than", "<": "less than"}
_STEP: Final = re.compile(r"\.(\w+)|\[(\d+)\]|(\[\.\.\.\])")
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")

T = TypeVar("T")
Step = str | int
Kind = Any  # a type with its bounds, as `typing` writes it
_origin: Final[Callable[[Kind], Any]] = get_origin  # which mypy takes for that of a ParamSpec


class Keys(Enum):
    """Which keys an object has."""

    EXACT = "exact"  # all fields of its record, and no others
    KNOWN = "known"  # no others; fields with a default may be absent
    ANY = "any"  # another program's: keys that the record has not are ignored


@dataclass(frozen=True)
class Origin:
    """Where JSON comes from, for messages."""

    component: str
    where: str  # the file, and the place in it
    advice: str = ""  # what to do about a damaged one

    def __str__(self) -> str:
        return f"[{self.component}] {escape(self.where)}"

    @property
    def end(self) -> str:
        """The end of a message."""
        return f"; {self.advice}" if self.advice else ""


class OneOf:
    """A record of alternatives: its object has exactly one of the fields, whose name says what the value is."""

    @property
    def chosen(self) -> Any:
        """The value that is there."""
        return next(value for value in vars(self).values() if value is not None)

    @classmethod
    def alternatives(cls) -> list[Any]:
        """List the kinds of the fields, in order."""
        return [_plain(kind) for kind in get_type_hints(cls, include_extras=True).values()]


def quote(value: object) -> str:
    """Show a value of a file in a message, as Python writes it, shortened."""
    return "null" if value is None else _REPR.repr(value)


def escape(text: str) -> str:
    """Show a name in a message, as it is unless a terminal would obey it."""
    return text if text.isprintable() else ascii(text)[1:-1]


def read_json(path: Path, origin: Origin, *, absent: str, most: int = JSON_BYTES, strict: bool = True) -> Any:
    """Read a JSON file of at most `most` bytes; `absent` says what to do if there is none.

    Raises:
        MissingError: there is no such file.
        FormatError: it cannot be read, is no regular file or too large, or as `parse_json`.
    """
    return parse_json(read_bytes(path, origin, absent=absent, most=most), origin, most=most, strict=strict)


def read_bytes(path: Path, origin: Origin, *, absent: str, most: int) -> bytes:
    """Read a whole regular file; raises as `read_json`."""
    try:
        with open(path, "rb", opener=open_regular) as file:
            size = os.fstat(file.fileno()).st_size
            content = file.read(most + 1) if size <= most else b""
    except (FileNotFoundError, NotADirectoryError):
        raise absent_file(path, origin, absent) from None
    except OSError as error:
        raise FormatError(f"{origin}: cannot be read ({error.strerror}), want a readable file") from None
    except ValueError as error:  # a name that no file can have
        raise FormatError(f"{origin}: cannot be read ({error})") from None
    size = max(size, len(content))
    if size > most:
        raise FormatError(f"{origin}: has {size} bytes, want at most {most}{origin.end}")
    return content


def parse_json(content: bytes, origin: Origin, *, most: int = JSON_BYTES, strict: bool = True) -> Any:
    """Parse JSON in UTF-8 of at most `most` bytes.

    If strict, refuse what other programs write, too: NaN and Infinity, and a key twice, of which the last one counts.

    Raises:
        FormatError: it is too large, not JSON, nested too deeply, or has texts that are not Unicode or numbers beyond
            float64.
    """
    if len(content) > most:
        raise FormatError(f"{origin}: has {len(content)} bytes, want at most {most}{origin.end}")
    options: dict[str, Any] = {"object_pairs_hook": _unique, "parse_constant": _refuse_constant} if strict else {}
    try:
        value = json.loads(content.decode("utf-8"), parse_int=_read_integer, parse_float=_read_float, **options)
        if _SURROGATE.search(content):
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{origin}: not JSON ({escape(str(error))[:200]}){origin.end}") from None
    if not _is_shallow(value):
        raise FormatError(f"{origin}: nested more than {JSON_DEPTH} deep{origin.end}")
    return value


def decode(value: object, kind: type[T], origin: Origin, keys: Keys = Keys.EXACT) -> T:
    """Make a record, a frozen dataclass, of parsed JSON.

    Raises:
        FormatError: missing or unknown keys, or values of another type.
        MissingError: missing keys of another program's object.
        UnsupportedError: a text that is none of the allowed ones.
        ValueRangeError: a number out of bounds.
        InputError: what the record itself refuses.
    """
    try:
        record = msgspec.convert(value, kind, strict=True)
    except msgspec.ValidationError as error:
        _explain(str(error), value, kind, origin, keys)
    except InputError as error:
        raise type(error)(f"{error} (in {escape(origin.where)}){origin.end}") from None
    if keys is not Keys.ANY:
        for steps, found, record_kind in _objects(value, kind):
            _check_keys(found, record_kind, _join(steps), origin, keys)
    return record


def schema(kind: type, **top: object) -> dict[str, Any]:
    """Write the JSON Schema of a record whose objects have exactly its fields; `top` is put before it."""
    made = _tidy(msgspec.json.schema(kind))
    for definition in made["$defs"].values():
        definition["additionalProperties"] = False
    alternatives = {record.__name__ for record in OneOf.__subclasses__()}
    for name, definition in made["$defs"].items():
        if name in alternatives:
            definition["properties"] = {key: item["anyOf"][0] for key, item in definition["properties"].items()}
            definition |= {"minProperties": 1, "maxProperties": 1}
            definition.pop("required", None)
        else:
            definition["required"] = list(definition["properties"])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **top, **made}


def _tidy(node: Any) -> Any:
    """Leave out of a schema what says nothing more: names of classes, defaults, and patterns beside their choices."""
    if isinstance(node, list):
        return [_tidy(item) for item in node]
    if not isinstance(node, dict):
        return node
    idle = {"default", *(("pattern", "type") if "enum" in node else ()), *(("title",) if "properties" in node else ())}
    return {name: _tidy(item) for name, item in node.items() if name not in idle}


@contextmanager
def system_errors(component: str) -> Iterator[None]:
    """Turn what the system says while files are looked for and read into FormatError, which names the file."""
    try:
        yield
    except OSError as error:
        raise FormatError(
            f"[{component}] {escape(str(error.filename or 'a file'))}: cannot be read ({error.strerror}), "
            "want a readable file"
        ) from None


def open_regular(path: str, flags: int) -> int:
    """Open a file without waiting for whoever writes a FIFO; raises OSError if it is not a regular file."""
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "a folder" if stat.S_ISDIR(mode) else "not a regular file")


def absent_file(path: Path, origin: Origin, absent: str) -> MissingError:
    """Make the error of an absent file; an interrupted download leaves a link whose target is not there yet."""
    if path.is_symlink():
        return MissingError(f"{origin}: a link to a file that is not there; download it again")
    return MissingError(f"{origin}: no such file; {absent}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"key {quote(name)} is there twice")
        found[name] = value
    return found


def _read_integer(digits: str) -> int:
    if len(digits) > sys.float_info.max_10_exp:  # fewer always fit
        _read_float(digits)
    return int(digits)


def _read_float(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{quote(digits)} is too large a number")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _is_shallow(value: object) -> bool:
    level = [value]
    for _ in range(JSON_DEPTH):
        parts = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, (dict, list))]
        level = [item for part in parts for item in part]
        if not level:
            return True
    return not any(isinstance(item, (dict, list)) for item in level)


def _explain(message: str, value: object, kind: Kind, origin: Origin, keys: Keys) -> NoReturn:
    """Raise the error for what msgspec has found first."""
    problem, steps, value, kind = _locate(message, value, kind)
    place = _join(steps)
    if problem.startswith("Object missing"):
        assert isinstance(value, Mapping)
        _check_keys(value, _plain(kind), place, origin, keys)
    if " - at `key`" in message:
        raise FormatError(f"{origin}: {place or 'it'} has a key that is no text of 1 to {NAME} characters{origin.end}")
    meta = _bounds(kind)
    choices = (meta.extra_json_schema or {}).get("enum") if meta else None
    error, wanted = _wish(problem, choices, meta.description if meta else None)
    found = quote(value) if "length" not in problem else f"of length {len(value)}"  # type: ignore[arg-type]
    raise error(f"{origin}: {place or 'it'} is {found}, want {wanted}{origin.end}")


def _wish(problem: str, choices: Sequence[str] | None, description: str | None) -> tuple[type[InputError], str]:
    """Say what is wanted instead, in our words."""
    if match := re.fullmatch(r"Expected `(.*)`, got `.*`", problem):
        return FormatError, " or ".join(_WORDS.get(word, word) for word in match[1].split(" | "))
    if "regex" in problem:
        if choices:
            return UnsupportedError, " or ".join(choices)
        return FormatError, description or "another text"
    if match := re.fullmatch(r"Expected `\w+` (of length )?([<>]=?) (\S+)", problem):
        bound = f"{_SIGNS[match[2]]} {match[3].removesuffix('.0')}"
        return (FormatError if match[1] else ValueRangeError), bound
    return FormatError, description or problem  # none that msgspec has now


def _locate(message: str, value: Any, kind: Kind) -> tuple[str, tuple[Step, ...], Any, Kind]:
    """Find the problem, the path, the value and its kind in msgspec's message, which leaves out keys of mappings."""
    problem, _, path = message.rpartition(" - at `")
    steps: list[Step] = []
    for name, index, any_key in (match.groups() for match in _STEP.finditer(path if problem else "")):
        inner = _inner(kind, name)
        if any_key:
            for key, item in value.items():
                try:
                    msgspec.convert(item, inner, strict=True)
                except msgspec.ValidationError as error:
                    found = _locate(str(error), item, inner)
                    return found[0], (*steps, key, *found[1]), *found[2:]
        step: Step = name or int(index)
        steps.append(step)
        value, kind = value[step], inner
    return problem or message, tuple(steps), value, kind


def _check_keys(found: Mapping[Any, Any], kind: type, place: str, origin: Origin, keys: Keys) -> None:
    """Raise if an object, at a place of the file, has other keys than its record allows."""
    named = fields(kind)
    names = {field.name for field in named}
    if issubclass(kind, OneOf):
        if len(found) != 1 or found.keys() - names or None in found.values():
            names_found = ", ".join(map(quote, sorted(found, key=str)[:_LISTED])) or "nothing"
            raise FormatError(
                f"{origin}: {place or 'it'} has {names_found}, "
                f"want an object with exactly one of {sorted(names)}{origin.end}"
            )
        return
    required = names if keys is Keys.EXACT else {field.name for field in named if field.default is MISSING}
    absent, more = sorted(required - set(found)), sorted(set(found) - names, key=str)
    if absent and keys is Keys.ANY:
        raise MissingError(f"{origin}: field {absent[0]!r} is missing{origin.end}")
    if absent or more:
        said = (("lacks", absent), ("has", more))
        listed = [f"{verb} {', '.join(map(quote, part[:_LISTED]))}" for verb, part in said if part]
        optional = f" and at most {sorted(names - required)}" if names > required else ""
        raise FormatError(
            f"{origin}: {place or 'it'} {' and '.join(listed)}, want an object with exactly {sorted(required)}"
            f"{optional}{origin.end}"
        )


def _objects(value: Any, kind: Kind, steps: tuple[Step, ...] = ()) -> Iterator[tuple[tuple[Step, ...], Any, type]]:
    """List the objects within checked JSON, with their paths and records."""
    plain = _plain(kind)
    if value is None or not _has_objects(plain):
        return
    if is_dataclass(plain):
        assert isinstance(plain, type)
        yield steps, value, plain
        for name in hints(plain).keys() & value.keys():
            yield from _objects(value[name], hints(plain)[name], (*steps, name))
        return
    parts = value.items() if isinstance(value, Mapping) else enumerate(value)
    for step, item in parts:
        yield from _objects(item, _inner(plain, ""), (*steps, step))


@cache
def _has_objects(plain: Kind) -> bool:
    return is_dataclass(plain) or (_origin(plain) in (tuple, Mapping) and _has_objects(_plain(_inner(plain, ""))))


@cache
def hints(kind: type) -> Mapping[str, Kind]:
    """The fields of a record with their kinds."""
    return get_type_hints(kind, include_extras=True)


def _plain(kind: Kind) -> Kind:
    """Take the bounds and the null off a kind."""
    if _origin(kind) is Annotated:
        return _plain(get_args(kind)[0])
    if _origin(kind) in (Union, UnionType):
        return _plain(next(item for item in get_args(kind) if item is not NoneType))
    return kind


def _bounds(kind: Kind) -> msgspec.Meta | None:
    if _origin(kind) in (Union, UnionType):
        return next(filter(None, map(_bounds, get_args(kind))), None)
    return next((item for item in get_args(kind)[1:] if isinstance(item, msgspec.Meta)), None)


def _inner(kind: Kind, name: str) -> Kind:
    """Take the kind of a field, or of the entries of a list or mapping."""
    plain = _plain(kind)
    if name:
        return hints(plain)[name]
    arguments = get_args(plain)
    return arguments[0] if _origin(plain) is tuple else arguments[-1]


def _join(steps: Sequence[Step]) -> str:
    """Write a path as `files[0].path`; keys of files are escaped."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{escape(step)[:_SHOWN]}" for step in steps)
    return text.removeprefix(".")
