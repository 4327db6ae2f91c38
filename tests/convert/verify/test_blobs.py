"""The reader of weight files, on files made here byte by byte."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from convert.verify.blobs import BlobFile, unpack
from moddit.errors import FormatError, MissingError, UnsupportedError

FP16, FP32, INT4, UINT3 = 1, 2, 8, 12  # codes of MIL's blob storage


def header(version: int = 2) -> bytes:
    return struct.pack("<II56x", 1, version)


def metadata(code: int, size: int, start: int = 128, padding: int = 0, sentinel: int = 0xDEADBEEF) -> bytes:
    return struct.pack("<IIQQQ32x", sentinel, code, size, start, padding)


def write(path: Path, *parts: bytes) -> BlobFile:
    (path / "weight.bin").write_bytes(b"".join(parts))
    return BlobFile(path / "weight.bin")


class TestRead:
    def test_floats(self, tmp_path: Path) -> None:
        values = np.array([[1.5, -2, 65504], [0, np.inf, 2**-24]], np.float16)
        file = write(tmp_path, header(), metadata(FP16, 12), values.tobytes())
        found = file.find(64, "fp16", (2, 3)).read()
        assert found.dtype == np.float16
        assert np.array_equal(found, values)

    def test_an_array_that_is_changed_leaves_the_file_alone(self, tmp_path: Path) -> None:
        file = write(tmp_path, header(), metadata(FP32, 4), bytes(4))
        file.find(64, "fp32", (1,)).read()[0] = 7
        assert (tmp_path / "weight.bin").read_bytes()[128:] == bytes(4)

    def test_int4_has_its_sign_and_starts_with_the_low_half(self, tmp_path: Path) -> None:
        file = write(tmp_path, header(), metadata(INT4, 2, padding=4), bytes([0xF1, 0x08]))
        assert file.find(64, "int4", (3,)).read().tolist() == [1, -1, -8]

    def test_values_straddle_bytes(self, tmp_path: Path) -> None:
        # 5, 3, 6, 1 in three bits each, first one lowest: 001 110 011 101
        file = write(tmp_path, header(), metadata(UINT3, 2, padding=4), (0b001_110_011_101).to_bytes(2, "little"))
        assert file.find(64, "uint3", (2, 2)).read().tolist() == [[5, 3], [6, 1]]

    @pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
    def test_unpacks_what_arithmetic_packs(self, bits: int) -> None:
        values = np.random.default_rng(bits).integers(0, 1 << bits, 101)
        number = sum(int(value) << (bits * index) for index, value in enumerate(values))
        packed = np.frombuffer(number.to_bytes(-(-101 * bits // 8), "little"), np.uint8)
        assert np.array_equal(unpack(packed, bits, 101), values)


class TestDamage:
    @pytest.mark.parametrize(
        ("parts", "message"),
        [
            ([header()[:-1]], "truncated, got 63 bytes, want at least 64"),
            ([header(1)], "version of blob storage, got 1, want 2"),
        ],
    )
    def test_file(self, parts: list[bytes], message: str, tmp_path: Path) -> None:
        with pytest.raises(FormatError, match=message):
            write(tmp_path, *parts)

    @pytest.mark.parametrize(
        ("entry", "message"),
        [
            (metadata(FP32, 8, sentinel=0xDEADBEE0), "no metadata there, got 0xdeadbee0, want 0xdeadbeef"),
            (metadata(FP16, 8), "dtype, got fp16, want fp32"),
            (metadata(FP32, 12), "got 12 bytes, want 8 for fp32 \\[2\\]"),
            (metadata(FP32, 8, padding=3), "got 3 bits of padding, want 0"),
            (metadata(FP32, 8, start=136), "data is at 136..144"),
            (metadata(FP32, 8, start=192), "at most 136, where the file ends"),
            (metadata(FP32, 8, start=2**63), "where the file ends"),
        ],
    )
    def test_metadata(self, entry: bytes, message: str, tmp_path: Path) -> None:
        file = write(tmp_path, header(), entry, bytes(8))
        with pytest.raises(FormatError, match=rf"weight.bin: array at offset 64.*{message}"):
            file.find(64, "fp32", (2,))

    @pytest.mark.parametrize("offset", [0, 65, 128, 2**40])
    def test_offset(self, offset: int, tmp_path: Path) -> None:
        file = write(tmp_path, header(), metadata(FP32, 8), bytes(8))
        with pytest.raises(FormatError, match=f"offset {offset}: no place for metadata"):
            file.find(offset, "fp32", (2,))

    def test_unknown_code(self, tmp_path: Path) -> None:
        file = write(tmp_path, header(), metadata(99, 8), bytes(8))
        with pytest.raises(UnsupportedError, match="dtype has code 99"):
            file.find(64, "fp32", (2,))

    def test_absent_or_unreadable(self, tmp_path: Path) -> None:
        with pytest.raises(MissingError, match="no such file"):
            BlobFile(tmp_path / "weight.bin")
        with pytest.raises(FormatError, match="cannot be read"):
            BlobFile(tmp_path)
