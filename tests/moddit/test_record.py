"""JSON is read within bounds, and what is wrong with it is said in one line that names file and field."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import pytest
from msgspec import Meta

from moddit import bounds
from moddit.bounds import Name, choice
from moddit.errors import FormatError, InputError, MissingError, UnsupportedError, ValueRangeError
from moddit.record import Keys, OneOf, Origin, decode, escape, parse_json, quote, read_json, schema, system_errors

ORIGIN: Final = Origin("test", "a.json", "get another")


@dataclass(frozen=True)
class Inner:
    size: Annotated[int, Meta(ge=1, le=10)]
    kind: Annotated[str, choice("red", "blue")] = "red"


@dataclass(frozen=True)
class Outer:
    items: Annotated[tuple[Inner, ...], Meta(min_length=1, max_length=2)]
    named: Mapping[Name, Inner]
    share: Annotated[float, Meta(ge=0, le=1)]
    note: Name | None = None
    tint: Annotated[str, choice("red", "blue")] | None = None


VALID: Final = {
    "items": [{"size": 1, "kind": "red"}],
    "named": {"a": {"size": 2, "kind": "blue"}},
    "share": 1,
    "note": None,
    "tint": None,
}


def test_a_record() -> None:
    assert decode(VALID, Outer, ORIGIN) == Outer((Inner(1),), {"a": Inner(2, "blue")}, 1.0)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"share": "x"}, FormatError, "share is 'x', want a number"),
        ({"share": True}, FormatError, "share is True, want a number"),
        ({"share": None}, FormatError, "share is null, want a number"),
        ({"share": 2}, ValueRangeError, "share is 2, want at most 1"),
        ({"share": float("nan")}, ValueRangeError, "share is nan, want at least 0"),
        ({"share": float("inf")}, ValueRangeError, "share is inf, want at most 1"),
        ({"note": 5}, FormatError, "note is 5, want a text or null"),
        ({"note": ""}, FormatError, "note is of length 0, want at least 1"),
        ({"note": "\x1b[31m" * 99}, FormatError, "note is of length 495, want at most 256"),
        ({"tint": "green"}, UnsupportedError, "tint is 'green', want red or blue"),
        ({"items": {}}, FormatError, "items is {}, want a list"),
        ({"items": []}, FormatError, "items is of length 0, want at least 1"),
        ({"items": [{"size": 2.0, "kind": "red"}]}, FormatError, "items[0].size is 2.0, want an integer"),
        ({"items": [{"size": 10**30, "kind": "red"}]}, ValueRangeError, "items[0].size is 1" + 30 * "0"),
        ({"items": [{"size": 1}]}, FormatError, "items[0] lacks 'kind', want an object with exactly ['kind', 'size']"),
        ({"items": [VALID["items"][0] | {"\x1b": 1}]}, FormatError, "items[0] has '\\x1b', want an object with"),  # type: ignore[index]
        ({"items": [{"size": 1, "kind": "\x1b[2J\n"}]}, UnsupportedError, "kind is '\\x1b[2J\\n', want red or blue"),
        ({"named": {"a": VALID["items"][0], "b\n": {"size": 0}}}, ValueRangeError, "named.b\\n.size is 0, want at"),  # type: ignore[index]
        ({"named": {"a": {"kind": "red"}}}, FormatError, "named.a lacks 'size', want an object with exactly"),
        ({"named": {"": VALID["items"][0]}}, FormatError, "named has a key that is no text of 1 to 256 characters"),  # type: ignore[index]
        ({"more": 1}, FormatError, "it has 'more', want an object with exactly"),
    ],
    ids=str,
)  # fmt: skip
def test_what_a_record_refuses(change: dict[str, Any], error: type[InputError], message: str) -> None:
    with pytest.raises(
        error, match=re.escape(f"[test] a.json: {message}" if "kind is" not in message else message)
    ) as raised:
        decode(VALID | change, Outer, ORIGIN)
    assert type(raised.value) is error
    assert str(raised.value).endswith("; get another")
    assert str(raised.value).isprintable()


@pytest.mark.parametrize("value", [None, 5, [], "x"])
def test_something_else_than_an_object(value: object) -> None:
    with pytest.raises(FormatError, match=r"a\.json: it is .*, want an object"):
        decode(value, Outer, ORIGIN)


def test_keys_that_may_be_absent() -> None:
    value = {name: VALID[name] for name in ("items", "named", "share")}
    with pytest.raises(FormatError, match="exactly"):
        decode(value, Outer, ORIGIN)
    assert decode(value, Outer, ORIGIN, Keys.KNOWN) == decode(VALID, Outer, ORIGIN)
    with pytest.raises(FormatError, match=r"'more'.* and at most"):
        decode(value | {"more": 1}, Outer, ORIGIN, Keys.KNOWN)
    assert decode(value | {"more": 1}, Outer, ORIGIN, Keys.ANY) == decode(VALID, Outer, ORIGIN)
    with pytest.raises(MissingError, match=r"a\.json: field 'size' is missing; get another"):
        decode({"kind": "red"}, Inner, ORIGIN, Keys.ANY)


@dataclass(frozen=True)
class Shape(OneOf):
    """A circle or a square."""

    circle: Inner | None = None
    square: Inner | None = None


@dataclass(frozen=True)
class Holder:
    shape: Shape


class TestOneOf:
    def test_exactly_one(self) -> None:
        found = decode({"shape": {"square": VALID["items"][0]}}, Holder, ORIGIN)  # type: ignore[index]
        assert found == Holder(Shape(square=Inner(1)))
        assert found.shape.chosen == Inner(1)
        assert Shape.alternatives() == [Inner, Inner]

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ({}, "shape has nothing, want an object with exactly one of ['circle', 'square']"),
            (
                {"circle": {"size": 1, "kind": "red"}, "square": {"size": 1, "kind": "red"}},
                "has 'circle', 'square', want",
            ),
            (
                {"circle": {"size": 1, "kind": "red"}, "square": None},
                "shape has 'circle', 'square', want an object with",
            ),
            ({"circle": None}, "shape has 'circle', want an object with exactly one of"),
            ({"triangle": {}}, "shape has 'triangle', want an object with exactly one of"),
            (
                {"circle": {"size": 1, "kind": "red"}, "\x1b": 1},
                "shape has '\\x1b', 'circle', want an object with exactly",
            ),
            (None, "shape is null, want an object"),
            ([], "shape is [], want an object"),
            ({"circle": {"size": 0, "kind": "red"}}, "shape.circle.size is 0, want at least 1"),
            ({"circle": {"size": 1}}, "shape.circle lacks 'kind', want an object with exactly ['kind', 'size']"),
            ({"circle": {"size": 1, "kind": "red", "more": 1}}, "shape.circle has 'more', want an object with exactly"),
        ],
        ids=str,
    )
    def test_none_two_null_and_unknown_are_refused(self, value: object, message: str) -> None:
        with pytest.raises(InputError, match=re.escape(message)) as raised:
            decode({"shape": value}, Holder, ORIGIN)
        assert str(raised.value).startswith("[test] a.json: ")
        assert str(raised.value).isprintable()

    @pytest.mark.parametrize("value", [{}, {"circle": None}, {"circle": {"size": 1}, "square": {"size": 1}}], ids=str)
    def test_none_may_be_absent_where_other_keys_may(self, value: object) -> None:
        with pytest.raises(FormatError, match=r"shape has .*, want an object with exactly one of"):
            decode({"shape": value}, Holder, ORIGIN, Keys.KNOWN)
        assert decode({"shape": {"circle": {"size": 1}}}, Holder, ORIGIN, Keys.KNOWN) == Holder(Shape(Inner(1)))

    def test_the_schema(self) -> None:
        made = schema(Holder)
        assert made["$defs"]["Shape"] == {
            "description": "A circle or a square.",
            "type": "object",
            "properties": {"circle": {"$ref": "#/$defs/Inner"}, "square": {"$ref": "#/$defs/Inner"}},
            "additionalProperties": False,
            "minProperties": 1,
            "maxProperties": 1,
        }


def test_the_schema_says_the_same() -> None:
    made = schema(Outer, title="T")
    assert made["title"] == "T"
    assert made["$defs"]["Inner"] == {
        "type": "object",
        "properties": {
            "size": {"type": "integer", "minimum": 1, "maximum": 10},
            "kind": {"enum": ["red", "blue"]},
        },
        "required": ["size", "kind"],
        "additionalProperties": False,
    }


class TestText:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (b'{"a": 1, "a": 2}', "key 'a' is there twice"),
            (b'{"a": NaN}', "NaN is not a number"),
            (b'{"a": -Infinity}', "-Infinity is not a number"),
            (b'{"a": "\\ud800"}', "surrogates not allowed"),
            (b"\xff", "not JSON"),
            (b'{"a": ', "not JSON"),
            (b'{"\x1b": ', "not JSON"),
            (b"[" * 100_000, "not JSON|nested"),
            (b"[" * 70 + b"]" * 70, "nested more than 64 deep"),
            (b"1" * 5000, "not JSON"),
        ],
    )
    def test_what_is_refused(self, text: bytes, message: str) -> None:
        with pytest.raises(FormatError, match=message) as raised:
            parse_json(text, ORIGIN)
        assert str(raised.value).isprintable()

    def test_other_programs_may_write_more(self) -> None:
        assert parse_json(b'{"a": -Infinity, "a": 1}', ORIGIN, strict=False) == {"a": 1}
        assert parse_json(b"[" * 60 + b"]" * 60, ORIGIN) is not None
        assert parse_json(b'["\\ud83d\\ude00"]', ORIGIN) == ["\N{GRINNING FACE}"]


class TestFiles:
    def read(self, path: Path, most: int = 100) -> Any:
        return read_json(path, Origin("test", str(path), "get another"), absent="make one", most=most)

    def test_whole_and_bounded(self, tmp_path: Path) -> None:
        path = tmp_path / "a.json"
        path.write_text(json.dumps([1] * 20))
        assert self.read(path) == [1] * 20
        with pytest.raises(FormatError, match=r"a\.json: has 60 bytes, want at most 59; get another"):
            self.read(path, most=59)

    def test_what_is_no_file(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "fifo.json")
        (tmp_path / "folder.json").mkdir()
        (tmp_path / "loop.json").symlink_to(tmp_path / "loop.json")
        (tmp_path / "gone.json").symlink_to(tmp_path / "blob")
        cases: dict[str, tuple[type[InputError], str]] = {
            "fifo.json": (FormatError, r"cannot be read \(not a regular file\)"),
            "folder.json": (FormatError, r"cannot be read \(a folder\)"),
            "loop.json": (FormatError, r"cannot be read \(Too many levels"),
            "gone.json": (MissingError, "a link to a file that is not there; download it again"),
            "none.json": (MissingError, "no such file; make one"),
            "folder.json/x/y": (MissingError, "no such file; make one"),
            "n" * 300: (FormatError, r"cannot be read \(File name too long\)"),
            "x\0": (FormatError, "cannot be read"),
        }
        for name, (error, message) in cases.items():
            with pytest.raises(error, match=message) as raised:
                self.read(tmp_path / name)
            assert escape(name) in str(raised.value)
        with pytest.raises(FormatError, match="/dev/zero: cannot be read"):
            self.read(Path("/dev/zero"))

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_without_permission(self, tmp_path: Path) -> None:
        path = tmp_path / "a.json"
        path.write_text("{}")
        path.chmod(0)
        with pytest.raises(FormatError, match=r"a\.json: cannot be read \(Permission denied\)"):
            self.read(path)


def test_errors_of_the_system_name_their_file(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"\[test\] .*none: cannot be read \(No such file"), system_errors("test"):
        list((tmp_path / "none").iterdir())


def test_values_are_shown_escaped_and_short() -> None:
    assert quote("\x1b]0;x\a\u202e\n") == r"'\x1b]0;x\x07\u202e\n'"
    assert quote("größer") == "'größer'"
    assert len(quote("x" * 10**6)) < 100
    assert escape("a\nb") == r"a\nb"
    assert escape("größer") == "größer"


def test_the_table_of_bounds_is_the_documented_one() -> None:
    text = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| ([\d,]+) ", text, re.MULTILINE))
    documented = {name: int(number.replace(",", "")) for name, number in rows.items()}
    assert documented == {name: value for name, value in vars(bounds).items() if name.isupper()}
