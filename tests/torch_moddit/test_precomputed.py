"""Latents and text states from files, held against the transformer that they are for."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from moddit.errors import FormatError, InputError, MissingError, ShapeError, ValueRangeError
from tests import tiny
from torch_moddit.architectures import dense
from torch_moddit.precomputed import Precomputed

TOKENS = 5
FILE = "0.safetensors"


SPEC = dense(tiny.make_transformer(), 1000).spec


def tensors(count: int) -> dict[str, torch.Tensor]:
    return {
        "latents": torch.randn(count, 4, 2, 2).half(),
        "text": torch.randn(count, TOKENS, tiny.TEXT_WIDTH).half(),
        "mask": torch.ones(count, TOKENS, dtype=torch.int64),
    }


def null() -> dict[str, torch.Tensor]:
    return {"text": torch.zeros(TOKENS, tiny.TEXT_WIDTH), "mask": torch.ones(TOKENS)}


def test_reads_files(tmp_path: Path) -> None:
    first, second = tensors(2), tensors(3)
    save_file(first, tmp_path / FILE)
    save_file(second, tmp_path / "1.safetensors")
    save_file(null(), tmp_path / "null.safetensors")
    data = Precomputed(tmp_path, SPEC)
    assert len(data) == 5
    assert torch.equal(data[2]["latents"], second["latents"][0].float())
    found = data.null()
    assert found is not None
    assert found["text"].shape == (TOKENS, tiny.TEXT_WIDTH)


def test_reads_arrays_of_numpy(tmp_path: Path) -> None:
    values = tensors(4)
    for name, value in values.items():
        np.save(tmp_path / f"{name}.npy", np.asfortranarray(value.numpy()))
    data = Precomputed(tmp_path, SPEC)
    assert torch.equal(data[3]["text"], values["text"][3].float())
    assert data.null() is None
    for name, value in null().items():
        np.save(tmp_path / f"null_{name}.npy", value.numpy())
    assert (Precomputed(tmp_path, SPEC).null() or {}).keys() == {"text", "mask"}


def test_conditions_are_there_where_the_transformer_has_them(tmp_path: Path) -> None:
    conditions = {"resolution": torch.full((2, 2), 512.0), "aspect_ratio": torch.ones(2, 1)}
    spec = dense(tiny.make_transformer("alpha-micro"), 1000).spec
    save_file(tensors(2) | conditions, tmp_path / FILE)
    assert Precomputed(tmp_path, spec)[0]["resolution"].tolist() == [512, 512]
    assert Precomputed(tmp_path, SPEC)[0].keys() == {"latents", "text", "mask"}
    save_file(tensors(2), tmp_path / FILE)
    with pytest.raises(MissingError, match=r"0\.safetensors: missing \['aspect_ratio', 'resolution'\]"):
        Precomputed(tmp_path, spec)


WRONG: list[tuple[dict[str, Any], type[InputError], str]] = [
    (
        {"latents": torch.zeros(2, 3, 2, 2)},
        ShapeError,
        r"'latents' has shape \(2, 3, 2, 2\), want .*\(any, 4, any, any\)",
    ),
    ({"latents": torch.zeros(2, 4, 2)}, ShapeError, "'latents' has shape"),
    ({"latents": torch.zeros(0, 4, 2, 2)}, ShapeError, "'latents' has shape"),
    ({"latents": torch.zeros(2, 4, 3, 2)}, ShapeError, "'latents' is 3 x 2, want multiples of 2"),
    ({"latents": torch.zeros(2, 4, 2, 2, dtype=torch.int32)}, FormatError, "'latents' is int32, want float16"),
    ({"latents": torch.full((2, 4, 2, 2), torch.nan)}, ValueRangeError, "'latents' is not finite"),
    ({"text": torch.zeros(1, TOKENS, tiny.TEXT_WIDTH)}, ShapeError, r"want \(n, L, 32\) = \(2, any, 32\)"),
    ({"text": torch.zeros(2, TOKENS, 3)}, ShapeError, "'text' has shape"),
    ({"text": torch.full((2, TOKENS, tiny.TEXT_WIDTH), torch.inf)}, ValueRangeError, "'text' is not finite"),
    ({"mask": torch.ones(2, TOKENS + 1)}, ShapeError, "'mask' has shape"),
    ({"mask": torch.ones(2, TOKENS, dtype=torch.float64)}, FormatError, "'mask' is float64"),
    ({"more": torch.ones(2)}, MissingError, r"unknown \['more'\]"),
]


@pytest.mark.parametrize(("change", "error", "message"), WRONG)
def test_what_does_not_fit_is_refused(
    change: dict[str, Any], error: type[InputError], message: str, tmp_path: Path
) -> None:
    save_file(tensors(2) | change, tmp_path / FILE)
    with pytest.raises(error, match=rf"\[data\] .*0\.safetensors: .*{message}"):
        Precomputed(tmp_path, SPEC)


def test_files_hold_rows_of_one_kind(tmp_path: Path) -> None:
    save_file(tensors(2), tmp_path / FILE)
    save_file(tensors(2) | {"latents": torch.zeros(2, 4, 4, 2).half()}, tmp_path / "1.safetensors")
    with pytest.raises(ShapeError, match=r"1\.safetensors: .* want \(4, 2, 2\) of torch\.float16 as in 0\.safetensors"):
        Precomputed(tmp_path, SPEC)


@pytest.mark.parametrize(
    "change", [{"text": torch.zeros(TOKENS, 3)}, {"mask": torch.ones(9)}, {"latents": torch.ones(2)}]
)
def test_an_empty_caption_that_does_not_fit_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    save_file(tensors(2), tmp_path / FILE)
    save_file(null() | change, tmp_path / "null.safetensors")
    with pytest.raises(InputError, match=r"null\.safetensors"):
        Precomputed(tmp_path, SPEC)


def test_folders_that_lack_something_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"no \*\.safetensors and no \*\.npy"):
        Precomputed(tmp_path, SPEC)
    np.save(tmp_path / "latents.npy", np.zeros((2, 4, 2, 2), np.float32))
    with pytest.raises(MissingError, match=r"has no text\.npy, mask\.npy"):
        Precomputed(tmp_path, SPEC)
    save_file(null(), tmp_path / "null.safetensors")
    with pytest.raises(MissingError, match=r"no data beside null\.safetensors"):
        Precomputed(tmp_path, SPEC)
    save_file({"latents": torch.zeros(1, 4, 2, 2)}, tmp_path / FILE)
    with pytest.raises(MissingError, match=r"missing \['mask', 'text'\]"):
        Precomputed(tmp_path, SPEC)


def _make_bomb(path: Path) -> None:
    """Claim a terabyte."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": (1 << 38, 4, 2, 2)}
        )


@pytest.mark.parametrize("name", [FILE, "mask.npy"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"nothing at all"),
        lambda path: path.write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape':"),
        lambda path: path.mkdir(),
        lambda path: os.mkfifo(path),
        lambda path: path.symlink_to(path.name),
        lambda path: path.symlink_to("/dev/zero"),
        _make_bomb,
    ],
)
def test_files_that_are_none_are_refused_at_once(name: str, spoil: Callable[[Path], object], tmp_path: Path) -> None:
    save_file(tensors(2), tmp_path / FILE)
    if name != FILE:
        (tmp_path / FILE).unlink()
        for other, value in tensors(2).items():
            np.save(tmp_path / f"{other}.npy", value.numpy())
    (tmp_path / name).unlink()
    spoil(tmp_path / name)
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        Precomputed(tmp_path, SPEC)
