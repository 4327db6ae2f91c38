"""Which pictures there are, and what is said of each: in folders as people and `datasets` keep them, and in
webdataset's tar files.

    metadata.jsonl or metadata.csv   "file_name" and "text" a line, as of datasets' ImageFolder; of classes, "label"
    *.tar                            KEY.jpg, .png or .webp, with KEY.txt, KEY.json or KEY.cls (webdataset)
    NAME.png and NAME.txt            at any depth; of classes, without texts the name of the folder is the class

The first of these that a folder has counts. Nothing is unpacked: a picture in a tar file is read where it lies.
"""

from __future__ import annotations

import csv
import io
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Annotated, Any, Final

from msgspec import Meta

from moddit.bounds import LOG_BYTES, PATH, TEXT, Text
from moddit.errors import FormatError, MissingError
from moddit.pictures import SUFFIXES, Opener
from moddit.record import Keys, Origin, decode, escape, open_regular, parse_json, quote, read_bytes

PICTURE_BYTES: Final = 1 << 28  # of one file in a tar file
_METADATA: Final = ("metadata.jsonl", "metadata.csv")
_COLUMNS: Final = {False: "text", True: "label"}
_TEXTS: Final[Mapping[bool, tuple[str, ...]]] = {False: ("txt", "json"), True: ("cls", "json", "txt")}


@dataclass(frozen=True)
class Sample:
    """A picture, and its caption or the name or number of its class."""

    name: str  # below the folder
    caption: str
    path: Path  # of its file, or of the tar file that it is in
    start: int | None = None  # in a tar file, bytes
    size: int = 0

    @property
    def where(self) -> str:
        return escape(str(self.path) if self.start is None else f"{self.path}: {self.name}")

    @property
    def origin(self) -> Origin:
        return Origin("data", self.where, "replace it or take it out")

    @property
    def opener(self) -> Opener:
        """What opens the picture's file; raises OSError."""
        return partial(_open, self.path, self.start, self.size)


@dataclass(frozen=True)
class _Name:
    file_name: Annotated[str, Meta(min_length=1, max_length=PATH)]


@dataclass(frozen=True)
class _Caption:
    text: Text


def list_samples(place: Path, *, are_classes: bool, column: str | None = None) -> list[Sample]:
    """List the pictures of a folder or a tar file, sorted by name.

    Args:
        place: see the module's docstring.
        are_classes: whether captions are names or numbers of classes.
        column: field of the metadata, or of a JSON in a tar file, that has the caption; "text" or "label" by default.

    Raises:
        MissingError: no pictures, or one without a caption or file, or a line without a name or a caption.
        FormatError: damaged metadata, captions or tar files; a name that is there twice, or that leaves the folder.
    """
    column = column or _COLUMNS[are_classes]
    metadata = [place / name for name in _METADATA if os.path.lexists(place / name)]
    if len(metadata) > 1:
        raise FormatError(f"[data] {place}: has both {' and '.join(_METADATA)}; take one of them away")
    tars = [place] if place.is_file() else sorted(place.rglob("*.tar"))
    if metadata:
        samples = _read_metadata(metadata[0], column)
    elif tars:
        samples = [sample for tar in tars for sample in _read_tar(tar, place, column, are_classes)]
    else:
        samples = list(_read_side_files(place, are_classes))
    if not samples:
        raise MissingError(
            f"[data] {place}: no pictures; want {' or '.join(_METADATA)}, pictures ({', '.join(SUFFIXES)}) with .txt "
            "files beside them, or .tar files"
        )
    return sorted(samples, key=lambda sample: sample.name)


def _open(path: Path, start: int | None, size: int) -> AbstractContextManager[IO[bytes]]:
    if start is None:
        return open(path, "rb", opener=open_regular)
    with open(path, "rb", opener=open_regular) as file:
        return io.BytesIO(_read_at(file, start, size))


def _read_at(file: IO[bytes], start: int, size: int) -> bytes:
    file.seek(start)
    content = file.read(size)
    if len(content) < size:
        raise OSError(f"the tar file ends after {len(content)} of {size} bytes")
    return content


def _read_metadata(path: Path, column: str) -> list[Sample]:
    content = read_bytes(path, Origin("data", str(path)), absent="want one picture a line", most=LOG_BYTES)
    rows = _read_csv(content, path) if path.suffix == ".csv" else _read_jsonl(content, path)
    lines: dict[str, str] = {}
    samples = []
    for origin, row in rows:
        name = PurePosixPath(decode(row, _Name, origin, Keys.ANY).file_name)
        caption = _caption(row, column, origin)
        if name.is_absolute() or ".." in name.parts:
            raise FormatError(
                f"{origin}: file_name {quote(str(name))} leaves the folder; want a picture below {path.parent}"
            )
        picture = path.parent / name
        if not picture.is_file():
            raise MissingError(f"{origin}: {escape(str(picture))} is not there")
        if str(name) in lines:
            raise FormatError(f"{origin}: {escape(str(name))} is there twice, see {lines[str(name)]}; keep one of them")
        lines[str(name)] = escape(origin.where)
        samples.append(Sample(str(name), caption, picture))
    return samples


def _read_jsonl(content: bytes, path: Path) -> Iterator[tuple[Origin, Any]]:
    for number, line in enumerate(content.splitlines(), start=1):
        if line.strip():
            origin = Origin("data", f"{path}:{number}", 'want a JSON object with "file_name" and its caption')
            yield origin, parse_json(line, origin, strict=False)


def _read_csv(content: bytes, path: Path) -> Iterator[tuple[Origin, Any]]:
    origin = Origin("data", str(path), "save it as CSV in UTF-8, whose first line names the columns")
    try:
        reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        for row in reader:
            origin = Origin("data", f"{path}:{reader.line_num}", origin.advice)
            yield origin, {name: value for name, value in row.items() if name is not None and value is not None}
    except (csv.Error, UnicodeDecodeError) as error:
        raise FormatError(f"{origin}: not CSV ({error}){origin.end}") from None


def _caption(row: Any, column: str, origin: Origin) -> str:
    if isinstance(row, dict):
        if column not in row:
            raise MissingError(f"{origin}: field {column!r} is missing{origin.end}")
        value = row[column]
        row = {"text": str(value) if type(value) is int else value}
    return decode(row, _Caption, origin, Keys.ANY).text


def _read_side_files(folder: Path, are_classes: bool) -> Iterator[Sample]:
    stems: dict[Path, Path] = {}
    for picture in sorted(filter(_is_picture, folder.rglob("*"))):
        path, name = picture.with_suffix(".txt"), picture.relative_to(folder).as_posix()
        if are_classes and picture.parent != folder and not os.path.lexists(path):
            yield Sample(name, picture.parent.name, picture)
            continue
        if path in stems:
            raise FormatError(
                f"[data] {escape(str(picture))}: has the caption {path.name} as has {stems[path].name}; rename one"
            )
        stems[path] = picture
        absent = f"want the caption of {picture.name} in it, or metadata.jsonl"
        content = read_bytes(path, Origin("data", str(path)), absent=absent, most=TEXT)
        yield Sample(name, _decode_text(content, escape(str(path))), picture)


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")  # as a Mac's archives have beside each


def _decode_text(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise FormatError(f"[data] {where}: not UTF-8 ({error}); save the caption again") from None


class _Bounded(io.FileIO):
    """A file of which nobody reads much at once, whatever a header in it says."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= PICTURE_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size) or b""


def _read_tar(path: Path, place: Path, column: str, are_classes: bool) -> Iterator[Sample]:
    """List the samples of a tar file: what shares a name up to the first dot."""
    label = "" if path == place else f"{path.relative_to(place).as_posix()}/"
    parts: dict[str, dict[str, tuple[int, int]]] = {}
    try:
        with _Bounded(path, "rb", opener=open_regular) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                folder, _, base = member.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                key, suffix = f"{folder}/{stem}".lstrip("/"), suffix.lower()
                if not member.isreg() or member.sparse is not None or not stem:
                    continue
                if suffix in parts.setdefault(key, {}):
                    raise FormatError(f"[data] {path}: {escape(member.name)} is there twice; keep one of them")
                parts[key][suffix] = member.offset_data, member.size
            for key, found in parts.items():
                pictures = [suffix for suffix in SUFFIXES if suffix[1:] in found]
                if pictures:
                    caption = _tar_caption(file, found, f"{path}: {key}", column, _TEXTS[are_classes])
                    start, size = found[pictures[0][1:]]
                    if size > PICTURE_BYTES:
                        raise FormatError(
                            f"[data] {path}: {escape(key)} has {size} bytes, want at most {PICTURE_BYTES}"
                        )
                    yield Sample(f"{label}{key}{pictures[0]}", caption, path, start, size)
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        raise FormatError(
            f"[data] {path}: not a tar file, or damaged ({error}); want one without compression"
        ) from None


def _tar_caption(
    file: IO[bytes], found: Mapping[str, tuple[int, int]], where: str, column: str, suffixes: Iterable[str]
) -> str:
    origin = Origin("data", where, f'want a JSON object with "{column}"')
    for suffix in suffixes:
        if suffix not in found:
            continue
        start, size = found[suffix]
        if size > TEXT:
            raise FormatError(f"{origin}.{suffix}: has {size} bytes, want at most {TEXT}")
        content = _read_at(file, start, size)
        if suffix != "json":
            return _decode_text(content, f"{escape(where)}.{suffix}")
        return _caption(parse_json(content, origin, strict=False), column, origin)
    raise MissingError(
        f"{origin}: has no caption; want one of {', '.join(f'.{suffix}' for suffix in suffixes)} beside it"
    )
