"""Training data: pictures with captions, precomputed files, the order of batches."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from PIL import Image
from torch.utils.data import DataLoader

from moddit.errors import FormatError, InputError, MissingError, ValueRangeError
from tests import tiny
from torch_moddit.conditioning import tokenize
from torch_moddit.data import Batches, PictureFolder, fit, read_captions

TELL = partial(tokenize, tiny.make_tokenizer(), max_tokens=tiny.MAX_TOKENS)


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
    sizes = {"resolution": (8, 12), "aspect_ratio": (8 / 12,)}
    folder = PictureFolder(tmp_path, TELL, height=8, width=12, sizes=sizes)
    item = folder[0]
    assert item["pixels"].shape == (3, 8, 12)
    assert item["pixels"][:, 0, 0].tolist() == [1.0, -1.0, -1.0]
    assert item["input_ids"].tolist()[:5] == [3, 6, 9, 1, 0]  # lower case, </s>, padding
    assert item["mask"].tolist()[:5] == [1, 1, 1, 1, 0]
    assert item["resolution"].tolist() == [8, 12]
    assert item["aspect_ratio"].tolist() == pytest.approx([8 / 12])
    assert TELL("")["input_ids"].tolist()[:2] == [1, 0]


@pytest.mark.parametrize("size", [(30, 10), (10, 30), (7, 5), (24, 16)])
def test_pictures_are_covered_and_cropped(size: tuple[int, int]) -> None:
    assert fit(Image.new("RGB", size), 16, 24).size == (24, 16)


def test_refuses_sizes_that_no_memory_holds(tmp_path: Path) -> None:
    with pytest.raises(ValueRangeError, match="height 16384 and width 16384 are too large"):
        PictureFolder(tmp_path, TELL, height=16_384, width=16_384, sizes={})


def test_refuses_incomplete_folders(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no pictures"):
        read_captions(tmp_path)
    save_picture(tmp_path / "a.png")
    with pytest.raises(MissingError, match=r"a\.txt: no such file; want the caption of a\.png in it"):
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


def replace_by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("name", ["a.txt", "metadata.jsonl"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b"\xff red square"),
        lambda path: path.write_bytes(b"x" * 200_000),
        lambda path: path.mkdir(),
        lambda path: os.mkfifo(path),
        lambda path: path.symlink_to(path.name),
    ],
)
def test_captions_that_are_no_text_are_refused_at_once(
    name: str, spoil: Callable[[Path], object], tmp_path: Path
) -> None:
    save_picture(tmp_path / "a.png")
    spoil(tmp_path / name)
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        read_captions(tmp_path)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no picture"),
        lambda path: path.write_bytes(path.read_bytes()[:60]),
        lambda path: path.write_bytes(path.read_bytes().replace(b"IDAT", b"IDOT")),
        replace_by_fifo,
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_picture_is_named(workers: int, spoil: Callable[[Path], object], tmp_path: Path) -> None:
    save_picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a red square")
    spoil(tmp_path / "a.png")
    folder = PictureFolder(tmp_path, TELL, height=8, width=8, sizes={})
    with pytest.raises(FormatError, match=r"a\.png: cannot read the picture"):
        next(iter(DataLoader(folder, num_workers=workers)))


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
