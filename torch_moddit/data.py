"""Training data: a folder of pictures with captions; `torch_moddit.precomputed` has latents and text states.

Every dataset here is a map from an index to a dictionary of tensors, and any other that returns the same keys will do:

    latents (C, H, W)        scaled as the transformer sees them,   or  pixels (3, H, W) in -1..1, for a VAE
    text (L, D), mask (L,)   text encoder states and 1 for tokens,  or  input_ids (L,), mask (L,), for a text encoder
    labels ()                numbers of classes, for a model of classes instead of text
    resolution (2,), aspect_ratio (1,)   only for transformers with additional conditions
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import torch
from msgspec import Meta
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from moddit.bounds import LOG_BYTES, PATH, PIXELS, TEXT, Text
from moddit.errors import FormatError, InputError, MissingError, ValueRangeError
from moddit.record import Keys, Origin, decode, escape, open_regular, parse_json, read_bytes

SEEDS: Final = 1 << 63  # that torch's generators take
PICTURES: Final = (".png", ".jpg", ".jpeg", ".webp")
# Of Pillow's readers, which check little.
_PICTURE_ERRORS: Final = (
    *(OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, OverflowError, struct.error, zlib.error),
    Image.DecompressionBombError,
)

Item = dict[str, Tensor]


@dataclass(frozen=True)
class _Row:
    """A line of `metadata.jsonl`."""

    file_name: Annotated[str, Meta(min_length=1, max_length=PATH)]
    text: Text


class PictureFolder(Dataset[Item]):
    """Pictures with captions: `metadata.jsonl` with "file_name" and "text" a line, or NAME.txt beside NAME.png.

    The folder is searched for `metadata.jsonl` first, otherwise for pictures with text files, at any depth. Pictures
    are scaled to cover the wanted size, pixels, and cropped to its centre. `tell` turns a caption into what the model
    is conditioned on; `sizes` is what it is told about the size (`size_features`).

    Raises:
        ValueRangeError: too many pixels.
        MissingError: no pictures, or one without a caption or file, or a line without a name or a text.
        FormatError: a damaged `metadata.jsonl` or caption; and, when it is asked for, a damaged picture.
    """

    def __init__(
        self,
        folder: Path,
        tell: Callable[[str], Item],
        *,
        height: int,
        width: int,
        sizes: Mapping[str, Sequence[float]],
    ) -> None:
        if height * width > PIXELS:
            raise ValueRangeError(
                f"[data] height {height} and width {width} are too large, want at most {PIXELS} pixels"
            )
        self.pairs = read_captions(folder)
        self.tell = tell
        self.height, self.width = height, width
        self.sizes = {name: torch.tensor(values, dtype=torch.float32) for name, values in sizes.items()}

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Item:
        path, caption = self.pairs[index]
        picture = fit(read_picture(path), self.height, self.width)
        pixels = torch.from_numpy(np.asarray(picture, dtype=np.float32) / 127.5 - 1.0).permute(2, 0, 1)
        try:
            told = self.tell(caption)
        except InputError as error:
            raise type(error)(f"{error} (caption of {path})") from None
        return {"pixels": pixels, **told, **self.sizes}


class Batches(Sampler[list[int]]):
    """Index batches without end, in an order that depends on the seed and the position only, so that any step resumes.

    Each epoch is a new permutation; a batch may reach from one epoch into the next. Batches are taken from the number
    `first` on, each `stride` after the one before it (processes).
    """

    def __init__(self, count: int, batch: int, seed: int, *, first: int = 0, stride: int = 1) -> None:
        self.count, self.batch, self.seed = count, batch, seed
        self.first, self.stride = first, stride
        self._epoch = -1
        self._order: list[int] = []

    def __iter__(self) -> Iterator[list[int]]:
        number = self.first
        while True:
            start = number * self.batch
            yield [self._index(position) for position in range(start, start + self.batch)]
            number += self.stride

    def _index(self, position: int) -> int:
        epoch, offset = divmod(position, self.count)
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % SEEDS)
            self._order = torch.randperm(self.count, generator=generator).tolist()
            self._epoch = epoch
        return self._order[offset]


def fit(picture: Image.Image, height: int, width: int) -> Image.Image:
    """Scale a picture to cover height x width and crop its centre."""
    scale = max(width / picture.width, height / picture.height)
    size = (max(width, round(picture.width * scale)), max(height, round(picture.height * scale)))
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return picture.crop((left, top, left + width, top + height))


def read_picture(path: Path) -> Image.Image:
    """Read a picture in red, green and blue; raises FormatError if it is none, damaged, too large or unreadable."""
    try:
        with open(path, "rb", opener=open_regular) as file, Image.open(file) as picture:
            return picture.convert("RGB")
    except _PICTURE_ERRORS as error:
        reason = "of no known kind" if isinstance(error, UnidentifiedImageError) else error
        raise FormatError(f"[data] {path}: cannot read the picture ({reason}); replace it or take it out") from None


def read_captions(folder: Path) -> list[tuple[Path, str]]:
    """List the pictures of a folder with their captions, sorted by path; raises as `PictureFolder`."""
    metadata = folder / "metadata.jsonl"
    pairs = _read_metadata(metadata) if os.path.lexists(metadata) else _read_side_files(folder)
    if not pairs:
        raise MissingError(
            f"[data] {folder}: no pictures; want metadata.jsonl, or pictures with .txt files beside them"
        )
    return pairs


def _read_metadata(path: Path) -> list[tuple[Path, str]]:
    pairs = []
    text = read_bytes(path, Origin("data", str(path)), absent="want one picture a line", most=LOG_BYTES)
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        origin = Origin("data", f"{path}:{number}", 'want a JSON object with "file_name" and "text"')
        row = decode(parse_json(line, origin, strict=False), _Row, origin, Keys.ANY)
        picture = path.parent / row.file_name
        if not picture.is_file():
            raise MissingError(f"[data] {origin.where}: {escape(str(picture))} is not there")
        pairs.append((picture, row.text))
    return sorted(pairs)


def _read_side_files(folder: Path) -> list[tuple[Path, str]]:
    pairs = []
    for picture in sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES):
        path = picture.with_suffix(".txt")
        absent = f"want the caption of {picture.name} in it, or metadata.jsonl"
        content = read_bytes(path, Origin("data", str(path)), absent=absent, most=TEXT)
        try:
            pairs.append((picture, content.decode("utf-8").strip()))
        except UnicodeDecodeError as error:
            raise FormatError(f"[data] {path}: not UTF-8 ({error}); save the caption again") from None
    return pairs
