"""Training data: pictures with captions, encoded in every step, and the order of batches.

`torch_moddit.shards` has what was encoded before.

Every dataset here is a map from an index to a dictionary of tensors, and any other that returns the same keys will do:

    latents (C, H, W)        scaled as the transformer sees them; with std (C, H, W), a posterior to draw from
    pixels (3, H, W)         instead, in -1..1, for a VAE
    text (L, D), mask (L,)   text encoder states and 1 for tokens,  or  input_ids (L,), mask (L,), for a text encoder
    labels ()                numbers of classes, for a model of classes instead of text
    resolution (2,), aspect_ratio (1,)   only for transformers with additional conditions

Texts of a batch may differ in length. Where pictures differ in size, a dataset has `buckets`: how many samples of each
size it has, one size after the other. An IterableDataset, which has no length, gives the same dictionaries.
"""

from __future__ import annotations

import bisect
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, default_collate

from moddit.bounds import PIXELS
from moddit.errors import InputError, MissingError, UnsupportedError, ValueRangeError
from moddit.pictures import fit, read_picture
from torch_moddit.pictures import to_pixels
from torch_moddit.samples import list_samples

SEEDS: Final = 1 << 63  # that torch's generators take
_TEXTS: Final = frozenset({"text", "mask", "input_ids"})  # one entry a token

Item = dict[str, Tensor]


class PictureFolder(Dataset[Item]):
    """Pictures with captions of a folder (`torch_moddit.samples`), scaled to cover a size and cropped to its centre.

    `tell` turns a caption into what the model is conditioned on; `sizes` is what it is told about the size
    (`size_features`). `are_classes` and `column` are `list_samples`'.

    Raises:
        ValueRangeError: too many pixels.
        MissingError, FormatError: as `list_samples`; and, when it is asked for, a damaged picture.
    """

    def __init__(
        self,
        folder: Path,
        tell: Callable[[str], Item],
        *,
        height: int,
        width: int,
        sizes: Mapping[str, Sequence[float]],
        are_classes: bool = False,
        column: str | None = None,
    ) -> None:
        if height * width > PIXELS:
            raise ValueRangeError(
                f"[data] height {height} and width {width} are too large, want at most {PIXELS} pixels"
            )
        self.samples = list_samples(folder, are_classes=are_classes, column=column)
        self.tell = tell
        self.height, self.width = height, width
        self.sizes = {name: torch.tensor(values, dtype=torch.float32) for name, values in sizes.items()}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Item:
        sample = self.samples[index]
        pixels = to_pixels(fit(read_picture(sample.opener, sample.origin), self.height, self.width))
        try:
            told = self.tell(sample.caption)
        except InputError as error:
            raise type(error)(f"{error} (caption of {sample.where})") from None
        return {"pixels": pixels, **told, **self.sizes}


class Batches(Sampler[list[int]]):
    """Index batches without end, each of one bucket, in an order that depends on the seed and the position only, so
    that any step resumes.

    In each epoch every bucket has a new permutation, and its batches lie as evenly as they can among the others'; a
    batch may reach from one epoch into the next. Batches are taken from the number `first` on, each `stride` after the
    one before it (processes).

    Args:
        buckets: number of samples of each picture size, one size after the other.
        batch: samples of a batch.
        seed: of the order.
        first: number of the first batch.
        stride: from one batch to the next.
    """

    def __init__(self, buckets: Sequence[int], batch: int, seed: int, *, first: int = 0, stride: int = 1) -> None:
        self.buckets, self.batch, self.seed = buckets, batch, seed
        self.first, self.stride = first, stride
        self._starts = [sum(buckets[:index]) for index in range(len(buckets))]
        self._permutations: dict[int, tuple[int, Tensor]] = {}  # the last of each bucket, with its epoch

    def __iter__(self) -> Iterator[list[int]]:
        number, begin, plan = self.first, 0, self._plan(0)
        while True:
            if number >= begin + len(plan):
                epoch = self._epoch(number)
                begin, plan = self._count(epoch), self._plan(epoch)
            bucket, place = plan[number - begin]
            positions = range(place * self.batch, (place + 1) * self.batch)
            yield [self._index(bucket, position) for position in positions]
            number += self.stride

    def _count(self, epoch: int) -> int:
        """Count the batches before an epoch."""
        return sum(count * epoch // self.batch for count in self.buckets)

    def _epoch(self, number: int) -> int:
        """Find the epoch that a batch is in."""
        most = (number + len(self.buckets)) * self.batch // sum(self.buckets) + 1
        return bisect.bisect_right(range(most + 1), number, key=self._count) - 1

    def _plan(self, epoch: int) -> list[tuple[int, int]]:
        """List the batches of an epoch: its bucket, and its number among all of that bucket."""
        generator, places = self._generator(epoch, len(self.buckets)), []
        for bucket, count in enumerate(self.buckets):
            numbers = range(count * epoch // self.batch, count * (epoch + 1) // self.batch)
            shifts = torch.rand(len(numbers), generator=generator).tolist()
            places += [((index + shift) / len(numbers), bucket, numbers[index]) for index, shift in enumerate(shifts)]
        return [(bucket, number) for _, bucket, number in sorted(places)]

    def _index(self, bucket: int, position: int) -> int:
        count = self.buckets[bucket]
        epoch, offset = divmod(position, count)
        known = self._permutations.get(bucket)
        if known is None or known[0] != epoch:
            known = epoch, torch.randperm(count, generator=self._generator(epoch, bucket))
            self._permutations[bucket] = known
        return self._starts[bucket] + int(known[1][offset])

    def _generator(self, epoch: int, stream: int) -> torch.Generator:
        return torch.Generator().manual_seed((self.seed * 1_000_003 + epoch + (stream << 40)) % SEEDS)


class Stream(IterableDataset[Item]):
    """Samples of a dataset without a length, again from its start where it ends; batches are taken as `Batches` does,
    and what lies before them is read and dropped.
    """

    def __init__(self, dataset: IterableDataset[Item], batch: int, *, first: int, stride: int) -> None:
        self.dataset, self.batch = dataset, batch
        self.first, self.stride = first, stride

    def __iter__(self) -> Iterator[Item]:
        """Raises MissingError if the dataset ends before it has begun."""
        for position, item in enumerate(self._repeat()):
            after = position // self.batch - self.first
            if after >= 0 and after % self.stride == 0:
                yield item

    def _repeat(self) -> Iterator[Item]:
        while True:
            is_empty = True
            for item in self.dataset:
                is_empty = False
                yield item
            if is_empty:
                raise MissingError("[data] the dataset gives no samples (any more); want one that begins again")


class Part(Dataset[Item]):
    """Some samples of a dataset: a range of each of its buckets."""

    def __init__(self, dataset: Dataset[Item], ranges: Sequence[range]) -> None:
        self.dataset, self.ranges = dataset, ranges
        self.buckets = list(map(len, ranges))
        self._ends = list(accumulate(self.buckets))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Item:
        bucket = self.bucket(index)
        return self.dataset[self.ranges[bucket][index - self._ends[bucket]]]  # counted from the range's end

    def bucket(self, index: int) -> int:
        """Find the bucket of a sample."""
        return bisect.bisect_right(self._ends, index)


def hold_out(dataset: Dataset[Item], share: float) -> tuple[Dataset[Item], Part | None]:
    """Divide a dataset into what is trained on and what is held out: of each bucket this share at its end.

    It is rounded down to samples, and then up to whole pictures, where a dataset says which is the first view of one
    (`first_view`); a bucket that would be held out whole is trained on.

    Raises:
        UnsupportedError: the dataset has no length.
        ValueRangeError: that is no sample.
    """
    if not share:
        return dataset, None
    buckets = count_buckets(dataset)
    if buckets is None:
        raise UnsupportedError("[data] a dataset without a length has no end to hold out; want validation_share 0")
    first_view = getattr(dataset, "first_view", int)
    trained, held = [], []
    for end, count in zip(accumulate(buckets), buckets, strict=True):
        start = end - count
        middle = first_view(end - int(share * count)) if int(share * count) else end
        middle = middle if middle > start else end
        trained.append(range(start, middle))
        held.append(range(middle, end))
    if not any(map(len, held)):
        raise ValueRangeError(
            f"[data] validation_share {share} of {max(buckets)} samples, the most of one picture size, is none; want a "
            "larger share"
        )
    return Part(dataset, trained), Part(dataset, held)


def count_buckets(dataset: Any) -> list[int] | None:
    """Count the samples of each picture size, or None for a dataset without a length; raises MissingError if it is
    empty.
    """
    if isinstance(dataset, IterableDataset):
        return None
    buckets = list(getattr(dataset, "buckets", None) or [len(dataset)])
    if not sum(buckets):
        raise MissingError("[data] the dataset is empty; want one sample at least")
    return buckets


def load_batches(
    dataset: Dataset[Item],
    buckets: Sequence[int] | None,
    batch_size: int,
    seed: int,
    *,
    first: int,
    stride: int,
    workers: int,
    pin_memory: bool,
) -> Iterator[Item]:
    """Read batches without end; an error says no more than it did in the process that read the data.

    Args:
        dataset: see the module's docstring.
        buckets: as `count_buckets`.
        batch_size: samples of a batch.
        seed: of their order.
        first: number of the first batch.
        stride: from one batch to the next.
        workers: processes that read.
        pin_memory: as `DataLoader`.
    """
    load = partial(
        DataLoader[Item],
        collate_fn=collate,
        worker_init_fn=ignore_interrupts,
        pin_memory=pin_memory,
        generator=torch.Generator().manual_seed(seed % SEEDS),
    )
    if isinstance(dataset, IterableDataset):  # which each of several workers would read from its start
        stream = Stream(dataset, batch_size, first=first, stride=stride)
        loader = load(stream, batch_size=batch_size, num_workers=min(workers, 1))
    else:
        assert buckets is not None
        batches = Batches(buckets, batch_size, seed, first=first, stride=stride)
        loader = load(dataset, batch_sampler=batches, num_workers=workers)
    try:
        yield from loader
    except InputError as error:
        kind = type(error)
        raise kind(str(error).rpartition(f"{kind.__module__}.{kind.__qualname__}: ")[2].strip()) from None


def collate(items: Sequence[Item]) -> Item:
    """Make a batch, with texts padded by zeros to the longest."""
    batch: Item = default_collate([{key: item[key] for key in item.keys() - _TEXTS} for item in items])
    texts = items[0].keys() & _TEXTS
    return batch | {key: pad_sequence([item[key] for item in items], batch_first=True) for key in texts}


def ignore_interrupts(_: int) -> None:
    """Leave Ctrl-C, which a terminal sends to every process of the program, to the one that ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
