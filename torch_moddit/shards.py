"""Datasets that were encoded before (`torch_moddit.prepare`): latents and text states on disk, read row by row.

A folder of

    dataset.json                      which encoders made it, and how many shards of each picture size there are
    HxW-NNNNN.latents.safetensors     latents, std (n V, C, h, w): mean and deviation of the VAE's posterior, times its
                                      scaling_factor, of n pictures in V views (crops, mirrored) each, one picture after
                                      the other; the metadata have their names
    HxW-NNNNN.text.safetensors        text (T, D): states of n captions, one after the other, without padding;
                                      ends (n,): where each one ends
    HxW-NNNNN.label.safetensors       instead, for a model of classes: labels (n,)
    null.safetensors                  text (L, D): states of the empty caption

Numbers are float16, integers int64. H and W are pixels, n may differ from file to file, and std may be left out.
Memory holds one number for each picture, whatever the size: rows are read when they are asked for.
"""

from __future__ import annotations

import bisect
import hashlib
import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import torch
from msgspec import Meta
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import Dataset

from moddit.bounds import FILES, TEXT_TOKENS, Scale, Sha256, Side
from moddit.checkpoint.description import Description
from moddit.checkpoint.safetensors import FileTensor, read_tensors
from moddit.checkpoint.stored import StoredTensor
from moddit.conditioning import Label
from moddit.contract import TEXT_ENCODER
from moddit.errors import FormatError, MissingError, ShapeError, ValueRangeError
from moddit.files import new_file
from moddit.models.config import ComponentSpec
from moddit.models.transformer import TransformerSpec
from moddit.record import Keys, Origin, decode, read_json
from torch_moddit.data import Item
from torch_moddit.tensorfiles import dump_tensors

MANIFEST: Final = "dataset.json"
NULL: Final = "null.safetensors"
LATENTS: Final = "latents"  # what a file holds, in its name; or the kind of a conditioning
VERSION: Final = 1
SHARDS: Final = 99_999  # of one picture size
_ADVICE: Final = "prepare the data again"


@dataclass(frozen=True)
class Bucket:
    """The shards of one picture size."""

    height: Side  # pixels
    width: Side
    shards: Annotated[int, Meta(ge=1, le=SHARDS)]

    @property
    def names(self) -> list[str]:
        return [f"{self.height}x{self.width}-{index:05d}" for index in range(self.shards)]


@dataclass(frozen=True)
class Encoders:
    """Which VAE and which text encoder: a hash of their dimensions and of the first row of each weight."""

    vae: Sha256
    text_encoder: Sha256 | None  # of a model of classes

    @classmethod
    def of(cls, description: Description) -> Encoders:
        """Tell the encoders of a checkpoint from others; raises FormatError if a weight cannot be read."""
        spec, parts = description.spec, description.parts
        text = _digest(spec.conditioning, parts[TEXT_ENCODER].tensors) if TEXT_ENCODER in parts else None
        return cls(_digest(spec.vae, parts["vae"].tensors), text)


@dataclass(frozen=True)
class DatasetRecord:
    """What `dataset.json` says."""

    version: int
    encoders: Encoders
    scaling_factor: Scale
    text_tokens: Annotated[int, Meta(ge=0, le=TEXT_TOKENS)]  # that a text was cut to
    source: Sha256  # of names, captions and sizes of the pictures, and how they were cut
    buckets: Annotated[tuple[Bucket, ...], Meta(min_length=1, max_length=FILES)]

    @classmethod
    def of(cls, description: Description, source: str, buckets: Sequence[Bucket]) -> DatasetRecord:
        """Describe a dataset that the encoders of a checkpoint make."""
        spec = description.spec
        encoders, scale = Encoders.of(description), spec.vae.scaling_factor
        return cls(VERSION, encoders, scale, spec.text_tokens, source, tuple(buckets))


def read_record(folder: Path) -> DatasetRecord:
    """Read `dataset.json`; raises MissingError or FormatError."""
    origin = Origin("data", str(folder / MANIFEST), _ADVICE)
    absent = "want a folder that `python -m torch_moddit.prepare` has made"
    record = decode(read_json(folder / MANIFEST, origin, absent=absent), DatasetRecord, origin, Keys.EXACT)
    if record.version != VERSION:
        raise FormatError(f"{origin}: version is {record.version}, want {VERSION}{origin.end}")
    return record


def write_record(folder: Path, record: DatasetRecord) -> None:
    """Write `dataset.json`; raises StorageError."""
    with new_file(folder / MANIFEST, overwrite=False) as file:
        file.write((json.dumps(asdict(record), indent=2) + "\n").encode())


def shard_file(folder: Path, name: str, kind: str) -> Path:
    """Name the file of a shard that has its latents, or what one kind of conditioning tells."""
    return folder / f"{name}.{kind}.safetensors"


def write_latents(
    path: Path, latents: Tensor, std: Tensor | None, names: Sequence[str], skipped: Mapping[str, str]
) -> None:
    """Write the latents of a shard.

    Shapes: latents, std (n V, C, h, w)

    Args:
        path: of the file, which is there whole or not at all.
        latents: see the module's docstring.
        std: likewise.
        names: of the n pictures.
        skipped: why others were left out, by name.

    Raises:
        ValueRangeError: a number is not finite in float16.
        StorageError: the file cannot be written.
    """
    tensors = {"latents": latents} | ({} if std is None else {"std": std})
    metadata = {"names": json.dumps(list(names)), "skipped": json.dumps(dict(skipped))}
    _write(path, {name: tensor.half() for name, tensor in tensors.items()}, metadata)


def write_text(path: Path, states: Sequence[Tensor], width: int) -> None:
    """Write the text states of a shard, each (L, width); raises as `write_latents`."""
    ends = torch.tensor(list(accumulate(map(len, states))), dtype=torch.int64)
    _write(path, {"text": torch.cat([torch.empty(0, width), *states]).half(), "ends": ends}, {})


def write_labels(path: Path, labels: Sequence[int]) -> None:
    """Write the classes of a shard; raises StorageError."""
    _write(path, {"labels": torch.tensor(labels, dtype=torch.int64)}, {})


def write_null(folder: Path, state: Tensor) -> None:
    """Write the states (L, D) of the empty caption; raises as `write_latents`."""
    _write(folder / NULL, {"text": state.half()}, {})


def read_names(path: Path) -> tuple[list[str], dict[str, str]]:
    """Read which pictures the latents of a shard are of, and why others were left out; raises FormatError."""
    read_tensors(path)  # the library says less of a damaged file
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        names, skipped = json.loads(metadata["names"]), json.loads(metadata["skipped"])
        return [str(name) for name in names], {str(name): str(why) for name, why in skipped.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"[data] {path}: metadata are damaged ({error}); remove it, and {_ADVICE}") from None


class Shards(Dataset[Item]):
    """The samples of a folder (see the module's docstring): each view of each picture is one.

    Args:
        folder: that `torch_moddit.prepare` has made.
        spec: of the transformer that they are for.
        encoders: of its model, which have to be those that made the folder; None to go by the shapes alone.

    Raises:
        MissingError: the folder is no dataset, or not complete.
        FormatError: a file is damaged, or holds something else.
        ShapeError: a tensor does not fit the transformer, or others.
        ValueRangeError: other encoders made it; a label is none; and, when it is asked for, a number is not finite.
    """

    def __init__(self, folder: Path, spec: TransformerSpec, encoders: Encoders | None = None) -> None:
        record = read_record(folder)
        if encoders is not None:
            _compare(folder, record.encoders, encoders)
        _check_files(folder, record, spec)
        shards = [_read_bucket(folder, bucket, spec) for bucket in record.buckets]
        self.buckets = [sum(map(len, part)) for part in shards]
        self._shards = [shard for part in shards for shard in part]
        self._ends = list(accumulate(map(len, self._shards)))
        if not self._ends[-1]:
            raise MissingError(f"[data] {folder}: has no pictures, all were left out; {_ADVICE}")
        self.null = _read_null(folder, spec)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Item:
        shard, within = self._find(index)
        return shard.item(within)

    def first_view(self, index: int) -> int:
        """Find the first view of the picture that a sample is of."""
        shard, within = self._find(index)
        return index - within % (len(shard) // len(shard.numbers))

    def _find(self, index: int) -> tuple[_Shard, int]:
        place = bisect.bisect_right(self._ends, index)
        shard = self._shards[place]
        return shard, index - self._ends[place] + len(shard)


@dataclass(frozen=True)
class _Shard:
    """The files of one shard, whose rows are read when they are asked for."""

    views: Mapping[str, FileTensor]  # latents and std, (n V, C, h, w)
    text: FileTensor | None  # (T, D)
    numbers: Tensor  # (n,) ends of the texts, or labels
    sizes: Item  # what a transformer is told about the size

    @classmethod
    def read(cls, folder: Path, name: str, bucket: Bucket, spec: TransformerSpec) -> _Shard:
        views = _read_views(shard_file(folder, name, LATENTS), spec)
        path = shard_file(folder, name, spec.CONDITIONING)
        if spec.CONDITIONING == Label.KIND:
            text, numbers = None, _read_labels(path, spec)
        else:
            text, numbers = _read_text(path, spec)
        rows, count = views["latents"].shape[0], len(numbers)
        if rows % max(count, 1) or (rows == 0) != (count == 0):
            raise ShapeError(f"{_where(views['latents'])} has {rows} rows for {count} captions; {_ADVICE}")
        sizes = spec.size_features(bucket.height, bucket.width)
        return cls(views, text, numbers, {name: torch.tensor(values) for name, values in sizes.items()})

    def __len__(self) -> int:
        return self.views["latents"].shape[0]

    def item(self, index: int) -> Item:
        row = index * len(self.numbers) // len(self)
        item = {name: _rows(tensor, index, index + 1)[0] for name, tensor in self.views.items()}
        if self.text is None:
            return {**item, "labels": self.numbers[row], **self.sizes}
        start = int(self.numbers[row - 1]) if row else 0
        return {**item, **_told(_rows(self.text, start, int(self.numbers[row]))), **self.sizes}


def _read_bucket(folder: Path, bucket: Bucket, spec: TransformerSpec) -> list[_Shard]:
    """Read the shards of one size, whose samples may come into one batch."""
    shards = [_Shard.read(folder, name, bucket, spec) for name in bucket.names]
    first, *others = [{name: tensor.shape[1:] for name, tensor in shard.views.items()} for shard in shards]
    for shard, shapes in zip(shards[1:], others, strict=True):
        if shapes != first:
            path = shard.views["latents"].path
            raise ShapeError(
                f"[data] {path}: has samples of shapes {shapes}, want {first} as in its first shard; {_ADVICE}"
            )
    return shards


def _read_views(path: Path, spec: TransformerSpec) -> dict[str, FileTensor]:
    found = _read_file(path, {"latents"}, {"std"})
    _check(found["latents"], "F16", (None, spec.latent_channels, None, None))
    _, _, height, width = found["latents"].shape
    if not height or not width or height % spec.patch_size or width % spec.patch_size:
        raise ShapeError(f"{_where(found['latents'])} is {height} x {width}, want multiples of {spec.patch_size}")
    if "std" in found:
        _check(found["std"], "F16", found["latents"].shape)
    return found


def _read_labels(path: Path, spec: TransformerSpec) -> Tensor:
    found = _read_file(path, {"labels"})["labels"]
    labels = _read_integers(found)
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) > spec.num_classes):  # which stands for no class
        raise ValueRangeError(
            f"{_where(found)} has values {int(labels.min())}..{int(labels.max())}, want numbers of classes, "
            f"0..{spec.num_classes}"
        )
    return labels


def _read_text(path: Path, spec: TransformerSpec) -> tuple[FileTensor, Tensor]:
    found = _read_file(path, {"text", "ends"})
    text = found["text"]
    _check(text, "F16", (None, spec.caption_channels))
    ends = _read_integers(found["ends"])
    lengths = torch.diff(ends, prepend=ends.new_zeros(1))
    if bool((lengths < 1).any()) or bool((lengths > TEXT_TOKENS).any()) or int(lengths.sum()) != text.shape[0]:
        raise FormatError(f"{_where(found['ends'])} does not divide the {text.shape[0]} rows of 'text'; {_ADVICE}")
    return text, ends


def _read_null(folder: Path, spec: TransformerSpec) -> Item:
    """Read the empty caption, or tell the class that is none."""
    if spec.CONDITIONING == Label.KIND:
        return {"labels": torch.tensor(spec.num_classes)}
    text = _read_file(folder / NULL, {"text"})["text"]
    _check(text, "F16", (None, spec.caption_channels))
    return _told(_rows(text, 0, text.shape[0]))


def _told(text: Tensor) -> Item:
    """Shapes: text (L, D)."""
    return {"text": text, "mask": torch.ones(len(text), dtype=torch.int64)}


def _read_file(path: Path, names: Set[str], others: Set[str] = frozenset()) -> dict[str, FileTensor]:
    """Read the header of a file that has some tensors, and may have others."""
    found = read_tensors(path)
    if not names <= found.keys() <= names | others:
        raise FormatError(f"[data] {path}: has the tensors {sorted(found)}, want {sorted(names)}; {_ADVICE}")
    return found


def _read_integers(tensor: FileTensor) -> Tensor:
    _check(tensor, "I64", (None,))
    return torch.from_numpy(tensor.read())


def _rows(tensor: FileTensor, first: int, last: int) -> Tensor:
    rows = tensor.read(first, last)
    if not np.isfinite(rows).all():
        raise ValueRangeError(f"{_where(tensor)} is not finite (NaN or infinity) in rows {first}..{last}; {_ADVICE}")
    return torch.from_numpy(rows)


def _check(tensor: FileTensor, dtype: str, shape: Sequence[int | None]) -> None:
    """Check type and shape, in which None is any size."""
    if tensor.dtype != dtype:
        raise FormatError(f"{_where(tensor)} is {tensor.dtype}, want {dtype}; {_ADVICE}")
    found = tensor.shape
    if len(found) != len(shape) or any(want not in (None, has) for has, want in zip(found, shape, strict=True)):
        sizes = ", ".join("any" if want is None else str(want) for want in shape)
        raise ShapeError(f"{_where(tensor)} has shape {tensor.shape}, want ({sizes})")


def _where(tensor: FileTensor) -> str:
    return f"[data] {tensor.path}: tensor {tensor.name!r}"


def _compare(folder: Path, found: Encoders, wanted: Encoders) -> None:
    for name, made, has in zip(asdict(found), asdict(found).values(), asdict(wanted).values(), strict=True):
        if made != has:
            raise ValueRangeError(
                f"[data] {folder / MANIFEST}: made by another {name} ({str(made)[:12]}) than this model's "
                f"({str(has)[:12]}); prepare the data with this model, or train the one that they were made for"
            )


def _check_files(folder: Path, record: DatasetRecord, spec: TransformerSpec) -> None:
    """Raise MissingError unless all shards are there."""
    kinds = (LATENTS, spec.CONDITIONING)
    files = [shard_file(folder, name, kind) for bucket in record.buckets for name in bucket.names for kind in kinds]
    absent = [path.name for path in files if not path.exists()]
    if absent:
        raise MissingError(
            f"[data] {folder}: {len(absent)} of {len(files)} files are not there yet, such as {absent[0]}; repeat the "
            "command that prepares it"
        )


def _digest(spec: ComponentSpec, tensors: Mapping[str, StoredTensor]) -> str:
    digest = hashlib.sha256(json.dumps(spec.to_json(), sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
        digest.update(tensor.read(0, 1).tobytes())
    return digest.hexdigest()


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise ValueRangeError(f"[data] {path}: {name} is not finite in float16; compute it in another precision")
    with new_file(path, overwrite=False) as file:
        dump_tensors(file, tensors, metadata)
