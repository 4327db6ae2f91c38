"""Training data: pictures with captions, and the order of batches."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset

from moddit.errors import FormatError, MissingError, ValueRangeError
from tests import tiny
from torch_moddit.conditioning import tokenize
from torch_moddit.data import Batches, Item, PictureFolder, Stream, collate, count_buckets

TELL = partial(tokenize, tiny.make_tokenizer(), max_tokens=tiny.MAX_TOKENS)


def save_picture(path: Path, size: tuple[int, int] = (20, 16), colour: tuple[int, int, int] = (255, 0, 0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


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


def test_refuses_sizes_that_no_memory_holds(tmp_path: Path) -> None:
    with pytest.raises(ValueRangeError, match="height 16384 and width 16384 are too large"):
        PictureFolder(tmp_path, TELL, height=16_384, width=16_384, sizes={})


def replace_by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


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
    whole = list(itertools.islice(Batches([10], 4, seed=3), 10))
    assert list(itertools.islice(Batches([10], 4, seed=3, first=6), 4)) == whole[6:]
    flat = list(itertools.chain.from_iterable(whole))
    assert sorted(flat[:10]) == sorted(flat[10:20]) == list(range(10))
    assert flat[:10] != flat[10:20]
    assert flat != list(itertools.chain.from_iterable(itertools.islice(Batches([10], 4, seed=4), 10)))


def test_processes_share_the_batches() -> None:
    whole = list(itertools.islice(Batches([10], 4, seed=3), 6))
    shares = [list(itertools.islice(Batches([10], 4, seed=3, first=rank, stride=2), 3)) for rank in (0, 1)]
    assert [batch for pair in zip(*shares, strict=True) for batch in pair] == whole


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any), st.integers(1, 5), st.integers(0, 40))
def test_batches_are_of_one_bucket_and_cover_all_alike(buckets: list[int], batch: int, first: int) -> None:
    epochs = 3 * batch  # after which whole batches have covered every bucket three times
    count = epochs * sum(buckets) // batch
    whole = list(itertools.islice(Batches(buckets, batch, seed=3), count))
    starts = list(itertools.accumulate(buckets, initial=0))
    places = [{sum(index >= start for start in starts[1:]) for index in indices} for indices in whole]
    assert all(len(found) == 1 for found in places)
    seen = Counter(itertools.chain.from_iterable(whole))
    assert seen == dict.fromkeys(range(sum(buckets)), epochs)
    assert (
        list(itertools.islice(Batches(buckets, batch, seed=3, first=first), 5))
        == (list(itertools.islice(Batches(buckets, batch, seed=3), first + 5))[first:])
    )


def test_batches_of_buckets_are_mixed() -> None:
    buckets = [int(indices[0] >= 300) for indices in itertools.islice(Batches([300, 100], 4, seed=0), 100)]
    assert [sum(buckets[start : start + 20]) for start in range(0, 100, 20)] == pytest.approx([5] * 5, abs=1)
    assert buckets != [int(indices[0] >= 300) for indices in itertools.islice(Batches([300, 100], 4, seed=1), 100)]


class Numbers(IterableDataset[Item]):
    """So many samples, without saying so."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[Item]:
        return iter({"latents": torch.tensor(index)} for index in range(self.count))


def take(count: int, **places: int) -> list[int]:
    stream = Stream(Numbers(10), 4, **{"first": 0, "stride": 1, **places})
    return [int(item["latents"]) for item in itertools.islice(stream, count)]


def test_streams_begin_again_and_resume() -> None:
    whole = take(48)
    assert whole == [index % 10 for index in range(48)]
    assert take(8, first=6) == whole[24:32]
    assert take(8, first=1, stride=2) == whole[4:8] + whole[12:16]
    assert count_buckets(Numbers(10)) is None
    with pytest.raises(MissingError, match="gives no samples"):
        next(iter(Stream(Numbers(0), 4, first=0, stride=1)))
    with pytest.raises(MissingError, match="the dataset is empty"):
        count_buckets([])


def test_texts_of_a_batch_are_padded_to_the_longest() -> None:
    items = [
        {"latents": torch.ones(2), "text": torch.ones(length, 3), "mask": torch.ones(length), "labels": torch.tensor(1)}
        for length in (2, 4)
    ]
    batch = collate(items)
    assert batch["text"].shape == (2, 4, 3)
    assert batch["mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch["text"][0, 2:].abs().sum() == 0
    assert batch["labels"].tolist() == [1, 1]
