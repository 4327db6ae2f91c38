"""The weight file of an .mlpackage: MIL's blob storage, version 2, read one array at a time.

A file is a header of 64 bytes and then, for each array, 64 bytes of metadata and the data. The program names an array
by the offset of its metadata. All numbers are little endian, and metadata and data start at multiples of 64 bytes:

    header    uint32 count, uint32 version (2), zeros
    metadata  uint32 0xDEADBEEF, uint32 dtype, uint64 bytes, uint64 offset of the data, uint64 padding bits, zeros

Values of less than a byte are packed from the least significant bit upwards, and may straddle two bytes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from moddit.errors import FormatError, MissingError, UnsupportedError

ALIGNMENT: Final = 64  # bytes, of the header, of metadata and of data
VERSION: Final = 2
SENTINEL: Final = 0xDEADBEEF
_HEADER: Final = struct.Struct("<II")
_METADATA: Final = struct.Struct("<IIQQQ")
_CODES: Final[Mapping[int, str]] = {
    1: "fp16",
    2: "fp32",
    3: "uint8",
    4: "int8",
    6: "int16",
    7: "uint16",
    8: "int4",
    9: "uint1",
    10: "uint2",
    11: "uint4",
    12: "uint3",
    13: "uint6",
    14: "int32",
    15: "uint32",
}
# In whole bytes, as numpy reads them.
NUMPY_DTYPES: Final[Mapping[str, str]] = {
    "fp16": "<f2",
    "fp32": "<f4",
    "int8": "<i1",
    "int16": "<i2",
    "int32": "<i4",
    "uint8": "<u1",
    "uint16": "<u2",
    "uint32": "<u4",
}
PACKED_BITS: Final[Mapping[str, int]] = {"int4": 4, "uint1": 1, "uint2": 2, "uint3": 3, "uint4": 4, "uint6": 6}
_ADVICE: Final = "write or copy the package again"


@dataclass(frozen=True)
class StoredArray:
    """One array of a weight file, whose metadata has been checked; read when asked for."""

    dtype: str  # a key of NUMPY_DTYPES or PACKED_BITS
    shape: tuple[int, ...]
    path: Path
    start: int  # of the data, bytes

    def read(self) -> NDArray[Any]:
        """Read the array; raise FormatError if the file has changed and does not hold it any more."""
        return decode(_read(self.path, self.start, count_bytes(self.dtype, self.shape)), self.dtype, self.shape)


class BlobFile:
    """A weight file, of which nothing stays in memory.

    Raises:
        MissingError: there is no such file.
        FormatError: the file is not blob storage of version 2.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        version = _HEADER.unpack(_read(path, 0, ALIGNMENT)[: _HEADER.size].tobytes())[1]
        if version != VERSION:
            raise FormatError(f"[blobs] {path}: version of blob storage, got {version}, want {VERSION}; {_ADVICE}")
        self._size = path.stat().st_size

    def find(self, offset: int, dtype: str, shape: tuple[int, ...]) -> StoredArray:
        """Find the array whose metadata is at `offset`, and check that it has this dtype and as many values.

        Raises:
            FormatError: the metadata is damaged or describes something else, or the file ends before the data does.
            UnsupportedError: the file's dtype is not one that is known here.
        """
        where = f"[blobs] {self.path}: array at offset {offset}"
        size = self._size
        if offset % ALIGNMENT or not ALIGNMENT <= offset <= size - ALIGNMENT:
            raise FormatError(
                f"{where}: no place for metadata, want a multiple of {ALIGNMENT} and {ALIGNMENT} bytes from there on, "
                f"but the first, in a file of {size} bytes; {_ADVICE}"
            )
        metadata = _read(self.path, offset, _METADATA.size).tobytes()
        sentinel, code, stored, start, padding = _METADATA.unpack(metadata)
        if sentinel != SENTINEL:
            raise FormatError(f"{where}: no metadata there, got {sentinel:#010x}, want {SENTINEL:#010x}; {_ADVICE}")
        if code not in _CODES:
            raise UnsupportedError(f"{where}: dtype has code {code}, want one of {sorted(_CODES)}")
        _check_size(_CODES[code], stored, padding, dtype, shape, where)
        if start % ALIGNMENT or start + stored > size:
            raise FormatError(
                f"{where}: data is at {start}..{start + stored}, want a multiple of {ALIGNMENT} and at most {size}, "
                f"where the file ends; {_ADVICE}"
            )
        return StoredArray(dtype, shape, self.path, start)


def decode(data: NDArray[np.uint8], dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Read bytes, as many as are needed, as an array; packed values come in a whole byte each, int4 with its sign."""
    if dtype in NUMPY_DTYPES:
        return data.view(NUMPY_DTYPES[dtype]).reshape(shape)
    values = unpack(data, PACKED_BITS[dtype], math.prod(shape)).reshape(shape)
    if dtype == "int4":
        return ((values ^ 8).astype(np.int8) - 8).astype(np.int8)
    return values


def unpack(data: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint8]:
    """Unpack `count` values of `bits` bits each, least significant bit first."""
    if bits == 4:  # the common case, twenty times as fast
        return np.stack((data & 15, data >> 4), axis=1).reshape(-1)[:count]
    stream = np.unpackbits(data, bitorder="little")[: count * bits].reshape(count, bits)
    return np.packbits(stream, axis=1, bitorder="little").reshape(count)


def count_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Give the bytes that an array takes in a file."""
    count = math.prod(shape)
    if dtype in NUMPY_DTYPES:
        return count * np.dtype(NUMPY_DTYPES[dtype]).itemsize
    return -(-count * PACKED_BITS[dtype] // 8)


def _read(path: Path, start: int, count: int) -> NDArray[np.uint8]:
    """Read bytes into a new array."""
    try:
        with path.open("rb") as file:
            file.seek(start)
            data = np.fromfile(file, np.uint8, count)
    except (FileNotFoundError, NotADirectoryError):
        raise MissingError(f"[blobs] {path}: no such file; {_ADVICE}") from None
    except OSError as error:
        raise FormatError(f"[blobs] {path}: cannot be read ({error.strerror}); {_ADVICE}") from None
    if len(data) != count:
        raise FormatError(
            f"[blobs] {path}: truncated, got {start + len(data)} bytes, want at least {start + count}; {_ADVICE}"
        )
    return data


def _check_size(found: str, stored: int, padding: int, dtype: str, shape: tuple[int, ...], where: str) -> None:
    if found != dtype:
        raise FormatError(f"{where}: dtype, got {found}, want {dtype} as the program declares; {_ADVICE}")
    wanted = count_bytes(dtype, shape)
    if stored != wanted:
        raise FormatError(f"{where}: got {stored} bytes, want {wanted} for {dtype} {list(shape)}; {_ADVICE}")
    unused = 8 * wanted - math.prod(shape) * PACKED_BITS[dtype] if dtype in PACKED_BITS else 0
    if padding != unused:
        raise FormatError(f"{where}: got {padding} bits of padding, want {unused} for {dtype} {list(shape)}; {_ADVICE}")
