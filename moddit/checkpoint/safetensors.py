"""The safetensors format, read strictly and in pieces, and written as a stream.

A file is the length of its header (8 bytes, little endian), the header (JSON), and the tensors' bytes without gaps.

Source: https://github.com/huggingface/safetensors, README, "Format".
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from moddit.checkpoint.stored import ITEM_BYTES, StoredTensor
from moddit.errors import FormatError, MissingError
from moddit.record import Origin, open_regular, parse_json

LENGTH_BYTES: Final = 8  # of the header's length
MAX_HEADER_BYTES: Final = 100_000_000  # the format's own limit
MAX_COUNT: Final = 1 << 63  # above every size and offset
ALIGNMENT: Final = 8  # of the first tensor, by padding the header with spaces
# How the bytes are held in numpy, which has no bfloat16: as its bits.
NUMPY_DTYPES: Final[Mapping[str, str]] = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "U32": "<u4",
}
_METADATA: Final = "__metadata__"
_ADVICE: Final = "copy or download the file again"


@dataclass(frozen=True)
class Entry:
    """One tensor of a header."""

    dtype: str  # a key of ITEM_BYTES
    shape: tuple[int, ...]
    start: int  # bytes, from the end of the header
    end: int


@dataclass(frozen=True)
class FileTensor(StoredTensor):
    """One tensor of a file; its bytes go straight into a new array, so that a conversion holds nothing twice."""

    offset: int  # bytes, from the start of the file

    def read(self, first: int = 0, last: int | None = None) -> NDArray[Any]:
        rows, *rest = self.shape or (1,)
        last = rows if last is None else last
        array = np.empty((last - first, *rest), NUMPY_DTYPES[self.dtype])
        row_bytes = math.prod(rest) * ITEM_BYTES[self.dtype]
        where = f"[safetensors] {self.path}: tensor {self.name!r}"
        try:
            with open(self.path, "rb", opener=open_regular) as file:
                file.seek(self.offset + first * row_bytes)
                done = file.readinto(array.reshape(-1).view(np.uint8).data)
        except OSError as error:
            raise FormatError(f"{where} cannot be read ({error.strerror}); {_ADVICE}") from None
        if done < array.nbytes:
            raise FormatError(f"{where} ends early, got {done} bytes of {array.nbytes}; {_ADVICE}")
        return array if self.shape else array.reshape(())


def read_tensors(path: Path) -> dict[str, FileTensor]:
    """Read and check the header of a file.

    Raises:
        MissingError: there is no such file.
        FormatError: the file is not safetensors, is truncated, or its tensors overlap or leave gaps.
    """
    where = Origin("safetensors", str(path), _ADVICE)
    try:
        with open(path, "rb", opener=open_regular) as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            _check_length(length, size, where)
            text = file.read(length)
    except (FileNotFoundError, NotADirectoryError):
        raise MissingError(f"{where}: no such file; {_ADVICE}") from None
    except OSError as error:
        raise FormatError(f"{where}: cannot be read ({error.strerror}); {_ADVICE}") from None
    begin = LENGTH_BYTES + length
    entries = parse_header(text, size - begin, where)
    return {
        name: FileTensor(path, name, entry.dtype, entry.shape, begin + entry.start) for name, entry in entries.items()
    }


def parse_header(text: bytes, data_bytes: int, where: Origin) -> dict[str, Entry]:
    """Parse and check a header, which may end in spaces, of a file with so many bytes behind it.

    Raises:
        FormatError: anything that the format does not allow; never another error, whatever the bytes.
    """
    header = parse_json(text, replace(where, where=f"{where.where}: header"), most=MAX_HEADER_BYTES)
    if not isinstance(header, dict) or text[:1] != b"{":
        raise FormatError(f"{where}: header is not a JSON object; {_ADVICE}")
    _check_metadata(header.pop(_METADATA, None), where)
    entries = {name: _parse_entry(name, value, where) for name, value in header.items()}
    _check_layout(entries, data_bytes, where)
    return entries


def format_header(tensors: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """Write length and header of a file that holds tensors (name, dtype, shape) in this order.

    The header is padded with spaces so that the first tensor starts at a multiple of 8 bytes.
    """
    header: dict[str, Any] = {_METADATA: dict(metadata)}
    start = 0
    for name, dtype, shape in tensors:
        end = start + math.prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(LENGTH_BYTES + len(text)) % ALIGNMENT)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


def _check_length(length: int, size: int, where: Origin) -> None:
    if size < LENGTH_BYTES:
        raise FormatError(f"{where}: not safetensors, got {size} bytes, want at least {LENGTH_BYTES}; {_ADVICE}")
    if length > MAX_HEADER_BYTES:
        raise FormatError(
            f"{where}: not safetensors, its header would have {length} bytes, want at most {MAX_HEADER_BYTES}; "
            f"{_ADVICE} (a PyTorch .bin or .pth file must be saved as safetensors first)"
        )
    if LENGTH_BYTES + length > size:
        raise FormatError(
            f"{where}: truncated within the header, got {size} bytes, want at least {LENGTH_BYTES + length}; {_ADVICE}"
        )


def _check_metadata(metadata: object, where: Origin) -> None:
    if metadata is None:  # absent, or null, which the format's own reader takes for absent
        return
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError(f"{where}: {_METADATA} is not an object of strings; {_ADVICE}")


def _parse_entry(name: str, value: object, file: Origin) -> Entry:
    if not name.isprintable():
        raise FormatError(f"{file}: tensor name {name!a} is not printable; {_ADVICE}")
    where = f"{file}: tensor {name!r}"
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{where} is not described by exactly dtype, shape and data_offsets; {_ADVICE}")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise FormatError(f"{where}: dtype is unknown, got {dtype!a}, want one of {', '.join(sorted(ITEM_BYTES))}")
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise FormatError(f"{where}: shape or data_offsets are damaged, got {shape!a} and {offsets!a}; {_ADVICE}")
    if not _has_bytes(shape, ITEM_BYTES[dtype], offsets[1] - offsets[0]):
        raise FormatError(
            f"{where} has {offsets[1] - offsets[0]} bytes, which is not what {dtype} {shape!a} takes; {_ADVICE}"
        )
    return Entry(dtype, tuple(shape), *offsets)


def _check_layout(entries: Mapping[str, Entry], data_bytes: int, where: Origin) -> None:
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != position:
            what = "overlaps the one before it" if entry.start < position else "leaves a gap before it"
            raise FormatError(f"{where}: tensor {name!r} {what}, starts at {entry.start}, want {position}; {_ADVICE}")
        position = entry.end
    if position != data_bytes:
        state = "truncated" if data_bytes < position else "too long"
        raise FormatError(f"{where}: {state}, got {data_bytes} bytes of tensors, want {position}; {_ADVICE}")


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < MAX_COUNT for item in value)


def _has_bytes(shape: list[int], item_bytes: int, wanted: int) -> bool:
    """Compare sizes without multiplying numbers that a damaged header made absurd."""
    if 0 in shape:
        return wanted == 0
    size = item_bytes
    for count in shape:
        size *= count
        if size > wanted:
            return False
    return size == wanted
