"""The safetensors parser and writer: the library's files are read, damaged ones refused with an error of ours."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch

from moddit.checkpoint.safetensors import MAX_COUNT, format_header, parse_header, read_tensors
from moddit.checkpoint.stored import ITEM_BYTES
from moddit.errors import FormatError, MissingError
from moddit.record import Origin

ORIGIN = Origin("test", "x")


def write(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(shape: Any, start: Any, end: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


class TestRead:
    def test_null_metadata_as_the_library_reads_it(self, tmp_path: Path) -> None:
        path = write(tmp_path / "x.safetensors", {"__metadata__": None, "a": entry([1], 0, 4)}, bytes(4))
        with safe_open(path, "np") as file:
            assert file.metadata() is None
        assert list(read_tensors(path)) == ["a"]

    def test_what_the_library_writes(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        arrays: dict[str, Any] = {"a": rng.standard_normal((7, 5)).astype(np.float32)}
        arrays |= {"b": rng.standard_normal(3).astype(np.float16), "c": np.array(2.5, np.float32)}
        save_file(arrays, tmp_path / "x.safetensors", metadata={"format": "np"})
        found = read_tensors(tmp_path / "x.safetensors")
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            assert np.array_equal(found[name].read(), array)
            assert found[name].nbytes == array.nbytes

    def test_rows(self, tmp_path: Path) -> None:
        array = np.arange(70, dtype=np.float16).reshape(14, 5)
        save_file({"first": array + 1, "second": array}, tmp_path / "x.safetensors")
        assert np.array_equal(read_tensors(tmp_path / "x.safetensors")["second"].read(3, 6), array[3:6])

    def test_bfloat16_as_its_bits(self, tmp_path: Path) -> None:
        values = torch.randn(6, 4).bfloat16()
        save_torch({"a": values}, tmp_path / "x.safetensors")
        assert np.array_equal(read_tensors(tmp_path / "x.safetensors")["a"].read(), values.view(torch.uint16).numpy())

    def test_a_file_that_shrinks_meanwhile(self, tmp_path: Path) -> None:
        save_file({"a": np.ones((4, 4), np.float32)}, tmp_path / "x.safetensors")
        tensor = read_tensors(tmp_path / "x.safetensors")["a"]
        tensor.path.write_bytes(tensor.path.read_bytes()[:-16])
        with pytest.raises(FormatError, match="tensor 'a' ends early, got 48 bytes of 64"):
            tensor.read()
        tensor.path.unlink()
        with pytest.raises(FormatError, match="tensor 'a' cannot be read"):
            tensor.read()


class TestDamage:
    @pytest.mark.parametrize(
        ("header", "data", "message"),
        [
            (b"not json", b"", "header: not JSON"),
            (b"\xff{}", b"", "header: not JSON"),
            (b"[" * 100_000, b"", "header: not JSON"),
            (b"9" * 5000, b"", "header: not JSON"),
            (b'{"a": NaN}', b"", "NaN is not a number of JSON"),
            (b'{"a": 1, "a": 2}', b"", "key 'a' is there twice"),
            (b' {"a": 1}', b"", "not a JSON object"),
            ([1], b"", "not a JSON object"),
            ({"__metadata__": {"a": 1}}, b"", "not an object of strings"),
            ({"a": {"dtype": "F32"}}, b"", "exactly dtype, shape and data_offsets"),
            ({"a": entry([1], 0, 4) | {"more": 1}}, b"1234", "exactly dtype, shape and data_offsets"),
            ({"a\n": entry([1], 0, 4)}, b"1234", "not printable"),
            ({"a": entry([1], 0, 4, "F33")}, b"1234", "dtype is unknown, got 'F33'"),
            ({"a": entry([1], 0, 4, [])}, b"1234", "dtype is unknown"),
            ({"a": entry([2], 0, 8)}, b"1234", "truncated, got 4 bytes of tensors, want 8"),
            ({"a": entry([2], 0, 8)}, b"123456789", "too long, got 9 bytes of tensors, want 8"),
            ({"a": entry([2], 0, 4)}, b"1234", "has 4 bytes, which is not what F32"),
            ({"a": entry([2**62] * 400, 0, 4)}, b"1234", "has 4 bytes, which is not what F32"),
            ({"a": entry([0, 3], 0, 4)}, b"1234", "has 4 bytes, which is not what F32"),
            ({"a": entry([-2], 0, 8)}, b"12345678", "damaged"),
            ({"a": entry([True], 0, 4)}, b"1234", "damaged"),
            ({"a": entry([1.0], 0, 4)}, b"1234", "damaged"),
            ({"a": entry([MAX_COUNT], 0, 4)}, b"1234", "damaged"),
            ({"a": entry([1], 4, 0)}, b"1234", "damaged"),
            ({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, b"1234", "tensor 'b' overlaps the one before it"),
            ({"a": entry([1], 4, 8)}, b"12345678", "leaves a gap before it, starts at 4, want 0"),
        ],
    )
    def test_is_named(self, tmp_path: Path, header: Any, data: bytes, message: str) -> None:
        path = write(tmp_path / "x.safetensors", header, data)
        with pytest.raises(FormatError, match=message) as caught:
            read_tensors(path)
        assert str(path) in str(caught.value)

    def test_a_file_cut_anywhere(self, tmp_path: Path) -> None:
        save_file({"a": np.ones((4, 4), np.float32)}, tmp_path / "x.safetensors")
        whole = (tmp_path / "x.safetensors").read_bytes()
        for length in range(len(whole)):
            (tmp_path / "y.safetensors").write_bytes(whole[:length])
            with pytest.raises(FormatError, match=r"truncated|want at least 8"):
                read_tensors(tmp_path / "y.safetensors")

    def test_a_pickle(self, tmp_path: Path) -> None:
        torch.save({"a": torch.ones(3)}, tmp_path / "x.safetensors")
        with pytest.raises(FormatError, match=r"not safetensors.*PyTorch \.bin or \.pth"):
            read_tensors(tmp_path / "x.safetensors")

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(MissingError, match="no such file"):
            read_tensors(tmp_path / "x.safetensors")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
COUNTS = st.lists(st.integers(0, 5) | st.integers(), max_size=3)
ENTRY = st.fixed_dictionaries(
    {"dtype": st.sampled_from(sorted(ITEM_BYTES)) | JSON, "shape": COUNTS | JSON, "data_offsets": COUNTS | JSON}
)


class TestProperties:
    @settings(max_examples=300)
    @given(st.dictionaries(st.text(max_size=3), ENTRY | JSON, max_size=3), st.integers(0, 64))
    def test_any_header_is_read_or_refused(self, header: Any, size: int) -> None:
        try:
            entries = parse_header(json.dumps(header).encode(), size, ORIGIN)
        except FormatError as error:
            str(error).encode()
        else:
            sizes = [math.prod(found.shape) * ITEM_BYTES[found.dtype] for found in entries.values()]
            assert sum(sizes) == size

    @given(st.binary(max_size=64), st.integers(0, 64))
    def test_any_bytes_are_read_or_refused(self, text: bytes, size: int) -> None:
        try:
            parse_header(text, size, ORIGIN)
        except FormatError as error:
            str(error).encode()

    @given(
        st.dictionaries(
            st.text(st.characters(exclude_categories=["C", "Z"]), max_size=5),
            st.tuples(st.sampled_from(sorted(ITEM_BYTES)), st.lists(st.integers(0, 9), max_size=3)),
        )
    )
    def test_what_is_written_is_read(self, tensors: dict[str, tuple[str, list[int]]]) -> None:
        header = format_header([(name, dtype, tuple(shape)) for name, (dtype, shape) in tensors.items()], {"a": "b"})
        assert len(header) % 8 == 0
        assert int.from_bytes(header[:8], "little") == len(header) - 8
        size = sum(math.prod(shape) * ITEM_BYTES[dtype] for dtype, shape in tensors.values())
        found = parse_header(header[8:], size, ORIGIN)
        assert {name: (each.dtype, list(each.shape)) for name, each in found.items()} == tensors


class TestWrite:
    def test_exact_bytes(self, tmp_path: Path) -> None:
        header = format_header([("b", "F32", (1, 2)), ("a", "U32", ())], {"format": "mlx"})
        text = (
            b'{"__metadata__":{"format":"mlx"},'
            b'"b":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},'
            b'"a":{"dtype":"U32","shape":[],"data_offsets":[8,12]}}'
        )
        padding = b" " * (-len(text) % 8)
        assert header == (len(text) + len(padding)).to_bytes(8, "little") + text + padding
        path = tmp_path / "x.safetensors"
        path.write_bytes(header + np.array([1.5, -2], "<f4").tobytes() + np.array(7, "<u4").tobytes())
        read = load_file(path)
        assert read["b"].tolist() == [[1.5, -2.0]]
        assert read["a"] == 7
