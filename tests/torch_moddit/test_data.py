"""Training data: pictures with captions, precomputed files, the order of batches."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from moddit.errors import FormatError, InputError, MissingError, ShapeError
from tests import tiny
from torch_moddit.data import Batches, PictureFolder, Precomputed, fit, read_captions


def save_picture(path: Path, size: tuple[int, int] = (20, 16), colour: tuple[int, int, int] = (255, 0, 0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_reads_side_files_and_metadata(tmp_path: Path) -> None:
    save_picture(tmp_path / "b.png")
    save_picture(tmp_path / "deep" / "a.jpg")
    (tmp_path / "b.txt").write_text("a red square\n")
    (tmp_path / "deep" / "a.txt").write_text("a circle")
    assert [caption for _, caption in read_captions(tmp_path)] == ["a red square", "a circle"]
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "deep/a.jpg", "text": "from metadata"}) + "\n\n")
    assert read_captions(tmp_path) == [(tmp_path / "deep/a.jpg", "from metadata")]


def test_pictures_become_tensors(tmp_path: Path) -> None:
    save_picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("A red Circle")
    folder = PictureFolder(
        tmp_path, tiny.make_tokenizer(), height=8, width=12, max_tokens=tiny.MAX_TOKENS, with_conditions=True
    )
    item = folder[0]
    assert item["pixels"].shape == (3, 8, 12)
    assert item["pixels"][:, 0, 0].tolist() == [1.0, -1.0, -1.0]
    assert item["input_ids"].tolist()[:5] == [3, 6, 9, 1, 0]  # lower case, </s>, padding
    assert item["mask"].tolist()[:5] == [1, 1, 1, 1, 0]
    assert item["resolution"].tolist() == [8, 12]
    assert item["aspect_ratio"].tolist() == pytest.approx([8 / 12])
    assert folder.null()["input_ids"].tolist()[:2] == [1, 0]


@pytest.mark.parametrize("size", [(30, 10), (10, 30), (7, 5), (24, 16)])
def test_pictures_are_covered_and_cropped(size: tuple[int, int]) -> None:
    assert fit(Image.new("RGB", size), 16, 24).size == (24, 16)


def test_refuses_incomplete_folders(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no pictures"):
        read_captions(tmp_path)
    save_picture(tmp_path / "a.png")
    with pytest.raises(MissingError, match=r"a\.png: no caption"):
        read_captions(tmp_path)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "lost.png", "text": "x"}\n')
    with pytest.raises(MissingError, match=r"jsonl:1: .*lost\.png is not there"):
        read_captions(tmp_path)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.png"}\n')
    with pytest.raises(MissingError, match="jsonl:1: field 'text' is missing; want a JSON object"):
        read_captions(tmp_path)
    for line in (
        "{",
        "[]",
        '{"file_name": 5, "text": "x"}',
        '{"file_name": "a.png", "text": null}',
        '{"file_name": "a\\u0000", "text": ""}',
    ):
        (tmp_path / "metadata.jsonl").write_text(line + "\n")
        with pytest.raises(InputError, match="jsonl:1"):
            read_captions(tmp_path)


def tensors(count: int) -> dict[str, torch.Tensor]:
    return {
        "latents": torch.randn(count, 4, 2, 2).half(),
        "text": torch.randn(count, 5, 3).half(),
        "mask": torch.ones(count, 5, dtype=torch.int64),
    }


def test_reads_precomputed_files(tmp_path: Path) -> None:
    first, second = tensors(2), tensors(3)
    save_file(first, tmp_path / "0.safetensors")
    save_file(second, tmp_path / "1.safetensors")
    save_file({"text": torch.zeros(5, 3), "mask": torch.ones(5)}, tmp_path / "null.safetensors")
    data = Precomputed(tmp_path)
    assert len(data) == 5
    assert torch.equal(data[2]["latents"], second["latents"][0].float())
    null = data.null()
    assert null is not None
    assert null["text"].shape == (5, 3)


def test_reads_precomputed_numpy(tmp_path: Path) -> None:
    values = tensors(4)
    for name, value in values.items():
        np.save(tmp_path / f"{name}.npy", value.numpy())
    data = Precomputed(tmp_path)
    assert torch.equal(data[3]["text"], values["text"][3].float())
    assert data.null() is None


def test_refuses_damaged_precomputed_files(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="missing"):
        Precomputed(tmp_path)
    save_file({"latents": torch.zeros(1, 4, 2, 2)}, tmp_path / "0.safetensors")
    with pytest.raises(MissingError, match="'mask', 'text'"):
        Precomputed(tmp_path)
    save_file({**tensors(2), "text": torch.zeros(1, 5, 3)}, tmp_path / "0.safetensors")
    with pytest.raises(ShapeError, match="different lengths"):
        Precomputed(tmp_path)
    (tmp_path / "0.safetensors").write_bytes(b"nothing")
    with pytest.raises(FormatError, match="truncated"):
        Precomputed(tmp_path)


def test_batches_resume_anywhere_and_cover_every_epoch() -> None:
    whole = list(itertools.islice(Batches(10, 4, seed=3), 10))
    assert list(itertools.islice(Batches(10, 4, seed=3, first=6), 4)) == whole[6:]
    flat = list(itertools.chain.from_iterable(whole))
    assert sorted(flat[:10]) == sorted(flat[10:20]) == list(range(10))
    assert flat[:10] != flat[10:20]
    assert flat != list(itertools.chain.from_iterable(itertools.islice(Batches(10, 4, seed=4), 10)))


def test_processes_share_the_batches() -> None:
    whole = list(itertools.islice(Batches(10, 4, seed=3), 6))
    shares = [list(itertools.islice(Batches(10, 4, seed=3, first=rank, stride=2), 3)) for rank in (0, 1)]
    assert [batch for pair in zip(*shares, strict=True) for batch in pair] == whole
