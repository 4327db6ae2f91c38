"""From pictures and captions to a dataset on disk (`torch_moddit.shards`): first the plan, then one encoder after the
other, each loaded once and alone.

What is done stays done: a shard's file is whole or absent, and the same call goes on with those that are absent.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from moddit.bins import BINS, Size
from moddit.bounds import PIXELS
from moddit.checkpoint.description import describe
from moddit.checkpoint.sources import Sources
from moddit.conditioning import Label
from moddit.contract import TEXT_ENCODER
from moddit.errors import FormatError, InputError, OutputExistsError, ShapeError, ValueRangeError
from moddit.files import exclusive, recover_all
from moddit.pictures import fit, read_picture, read_size
from moddit.signals import raise_if_stopped
from moddit.spec import ModelSpec
from torch_moddit.conditioning import tokenize
from torch_moddit.data import ignore_interrupts
from torch_moddit.pictures import to_pixels
from torch_moddit.pipeline import load_component
from torch_moddit.samples import Sample
from torch_moddit.shards import (
    LATENTS,
    MANIFEST,
    NULL,
    Bucket,
    DatasetRecord,
    read_names,
    read_record,
    shard_file,
    write_labels,
    write_latents,
    write_null,
    write_record,
    write_text,
)


@dataclass(frozen=True)
class Cut:
    """How pictures are cut."""

    sizes: tuple[Size, ...]  # height and width, pixels; a picture has the one whose aspect ratio is nearest
    crops: int = 1  # of each picture: its centre, and the others anywhere
    flip: bool = False  # each of them mirrored, too
    shard_size: int = 256  # pictures
    seed: int = 0  # of the places

    @classmethod
    def of(cls, spec: ModelSpec, sizes: Sequence[Size] = (), **others: Any) -> Cut:
        """Complete a cut by the sizes that a model was trained at, where none are given.

        Raises:
            ShapeError: a size is not made of whole patches.
            ValueRangeError: a size is too large.
        """
        for height, width in sizes:
            if height * width > PIXELS:
                raise ValueRangeError(f"[data] size {height}x{width} is too large, want at most {PIXELS} pixels")
            if not height or not width or height % spec.pixels_per_patch or width % spec.pixels_per_patch:
                raise ShapeError(f"[data] size {height}x{width}: want multiples of {spec.pixels_per_patch} pixels")
        return cls(tuple(dict.fromkeys(sizes)) or _trained_sizes(spec), **others)

    @property
    def views(self) -> int:
        """Samples of each picture."""
        return self.crops * (1 + self.flip)

    def size_for(self, height: int, width: int) -> Size:
        """Find the size of a picture, as PixArt does."""
        return min(self.sizes, key=lambda size: abs(round(size[0] / size[1], 2) - height / width))

    def views_of(self, sample: Sample, size: Size) -> Tensor:
        """Cut a picture. Shapes: -> (views, 3, H, W), -1..1. Raises FormatError if it is damaged."""
        picture = read_picture(sample.opener, sample.origin)
        chance = random.Random(f"{self.seed} {sample.name}")
        places = [0.5, *(chance.random() for _ in range(self.crops - 1))]
        pixels = torch.stack([to_pixels(fit(picture, *size, place)) for place in places])
        return torch.cat([pixels, pixels.flip(-1)]) if self.flip else pixels


@dataclass(frozen=True)
class Shard:
    """The pictures of one shard."""

    name: str
    size: Size
    samples: Sequence[Sample]


@dataclass(frozen=True)
class Plan:
    """Which pictures go into which shard."""

    shards: list[Shard]
    buckets: list[Bucket]
    source: str  # hash of all that decides what is encoded
    enlarged: int  # pictures that are smaller than their size
    skipped: dict[str, str]  # why pictures are left out, by name


def make_plan(samples: Sequence[Sample], cut: Cut, *, skip_damaged: bool, progress: bool = True) -> Plan:
    """Look at the size of every picture, and divide them.

    Raises FormatError if one is damaged, unless those are skipped, or all of them are.
    """
    sized: dict[Size, list[Sample]] = {}
    digest, skipped, enlarged = hashlib.sha256(json.dumps(asdict(cut)).encode()), {}, 0
    for sample in tqdm(samples, desc="looking at pictures", unit="", disable=None if progress else True):
        raise_if_stopped()
        try:
            height, width = read_size(sample.opener, sample.origin)
        except FormatError as error:
            if not skip_damaged:
                raise _advise(error) from None
            skipped[sample.name] = str(error)
            continue
        digest.update(json.dumps([sample.name, sample.caption, height, width]).encode())
        size = cut.size_for(height, width)
        sized.setdefault(size, []).append(sample)
        enlarged += height < size[0] or width < size[1]
    if not sized:
        raise FormatError(
            f"[data] none of {len(samples)} pictures can be read, such as: {next(iter(skipped.values()))}"
        )
    buckets = [Bucket(*size, -(-len(found) // cut.shard_size)) for size, found in sorted(sized.items())]
    shards = [
        Shard(name, size, sized[size][index * cut.shard_size : (index + 1) * cut.shard_size])
        for size, bucket in zip(sorted(sized), buckets, strict=True)
        for index, name in enumerate(bucket.names)
    ]
    return Plan(shards, buckets, digest.hexdigest(), enlarged, skipped)


@dataclass(frozen=True)
class Report:
    """What a dataset has."""

    pictures: int
    views: int  # of each picture
    sizes: int
    enlarged: int  # pictures
    empty: int  # captions
    skipped: Mapping[str, str]  # why pictures were left out, by name


@dataclass(frozen=True)
class Encoding:
    """One preparation of a dataset: from where, to where, and how."""

    sources: Sources
    output: Path
    cut: Cut
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    text_dtype: torch.dtype | str = "auto"  # of the text encoder; "auto" is that of its file
    batch_size: int = 2  # pictures or captions
    workers: int = 0  # processes that read pictures
    skip_damaged: bool = False
    progress: bool = True  # bars, where the output is a terminal

    def run(self, samples: Sequence[Sample]) -> Report:
        """Encode all that is not there yet.

        Raises:
            FormatError: a picture is damaged, unless those are skipped.
            OutputExistsError: the folder holds something else, or a dataset of other pictures, captions or settings.
            StorageError: it cannot be written, or another program writes into it.
            InputError: a caption names no class.
        """
        description = describe(self.sources)
        spec = description.spec
        labels = _find_labels(spec, samples) if spec.conditioning.KIND == Label.KIND else None
        plan = make_plan(samples, self.cut, skip_damaged=self.skip_damaged, progress=self.progress)
        with exclusive(self.output):
            recover_all(self.output)
            _begin(self.output, DatasetRecord.of(description, plan.source, plan.buckets))
            self._encode_pictures(plan, spec)
            if labels is None:
                self._encode_captions(plan, spec)
            else:
                for shard, path in self._absent(plan, Label.KIND):
                    write_labels(path, [labels[sample.name] for sample in self._kept(shard)])
        return self._report(plan)

    def _absent(self, plan: Plan, kind: str) -> list[tuple[Shard, Path]]:
        """List the shards without a file of one kind."""
        paths = [(shard, shard_file(self.output, shard.name, kind)) for shard in plan.shards]
        return [(shard, path) for shard, path in paths if not path.exists()]

    def _kept(self, shard: Shard) -> list[Sample]:
        """List the pictures of a shard that are in its file."""
        names = set(read_names(shard_file(self.output, shard.name, LATENTS))[0])
        return [sample for sample in shard.samples if sample.name in names]

    def _bar(self, plan: Plan, absent: Sequence[tuple[Shard, Path]], what: str) -> tqdm[Any]:
        total, left = (
            sum(len(shard.samples) for shard in part) for part in (plan.shards, [item[0] for item in absent])
        )
        return tqdm(total=total, initial=total - left, desc=what, unit="", disable=None if self.progress else True)

    @torch.no_grad()
    def _encode_pictures(self, plan: Plan, spec: ModelSpec) -> None:
        absent = self._absent(plan, LATENTS)
        if not absent:
            return
        # in float32, since those of Stable Diffusion XL overflow in float16
        vae = load_component(self.sources, "vae", torch.float32).to(self.device)
        with self._bar(plan, absent, "pictures") as bar:
            for shard, path in absent:
                height, width = (side // spec.vae.downscale for side in shard.size)
                means = [torch.empty(0, spec.vae.latent_channels, height, width)]
                stds = [*means]
                names: list[str] = []
                skipped: dict[str, str] = {}
                for kept, damaged in self._cut(shard):
                    if kept:
                        posterior = vae.encode(torch.cat(list(kept.values())).to(self.device)).latent_dist
                        means.append((posterior.mean * spec.vae.scaling_factor).cpu())
                        stds.append((posterior.std * spec.vae.scaling_factor).cpu())
                    names += kept
                    skipped |= damaged
                    bar.update(len(kept) + len(damaged))
                write_latents(path, torch.cat(means), torch.cat(stds), names, skipped)

    def _cut(self, shard: Shard) -> Iterator[tuple[dict[str, Tensor], dict[str, str]]]:
        """Cut the pictures of a shard, some at a time, and tell why others cannot be, by name; raises FormatError for a
        damaged one, unless those are skipped.
        """
        for found in DataLoader(
            _Views(shard, self.cut),
            batch_size=self.batch_size,
            collate_fn=dict,
            num_workers=self.workers,
            worker_init_fn=ignore_interrupts,
        ):
            raise_if_stopped()
            damaged = {name: error for name, error in found.items() if isinstance(error, FormatError)}
            if damaged and not self.skip_damaged:
                raise _advise(next(iter(damaged.values())))
            kept = {name: views for name, views in found.items() if name not in damaged}
            yield kept, {name: str(error) for name, error in damaged.items()}

    @torch.no_grad()
    def _encode_captions(self, plan: Plan, spec: ModelSpec) -> None:
        absent = self._absent(plan, spec.conditioning.KIND)
        if not absent and (self.output / NULL).exists():
            return
        tokenizer = load_component(self.sources, "tokenizer")
        encoder = load_component(self.sources, TEXT_ENCODER, self.text_dtype).to(self.device)

        def encode(captions: Sequence[str]) -> list[Tensor]:
            items = [tokenize(tokenizer, caption, spec.text_tokens) for caption in captions]
            lengths = [int(item["mask"].sum()) for item in items]
            ids, mask = (
                torch.stack([item[key] for item in items])[:, : max(lengths)].to(self.device)
                for key in ("input_ids", "mask")
            )
            states = encoder(ids, attention_mask=mask)[0].half().cpu()
            return [state[:length] for state, length in zip(states, lengths, strict=True)]

        if not (self.output / NULL).exists():
            write_null(self.output, encode([spec.conditioning.null(spec.transformer)])[0])
        with self._bar(plan, absent, "captions") as bar:
            for shard, path in absent:
                captions, states = [sample.caption for sample in self._kept(shard)], []
                for start in range(0, len(captions), self.batch_size):
                    raise_if_stopped()
                    states += encode(captions[start : start + self.batch_size])
                    bar.update(min(self.batch_size, len(captions) - start))
                write_text(path, states, spec.transformer.caption_channels)

    def _report(self, plan: Plan) -> Report:
        found = [read_names(shard_file(self.output, shard.name, LATENTS)) for shard in plan.shards]
        skipped = {name: why for _, part in found for name, why in part.items()}
        empty = sum(not sample.caption.strip() for shard in plan.shards for sample in shard.samples)
        pictures = sum(len(names) for names, _ in found)
        return Report(pictures, self.cut.views, len(plan.buckets), plan.enlarged, empty, {**plan.skipped, **skipped})


class _Views(Dataset[tuple[str, "Tensor | FormatError"]]):
    """The pictures of a shard with their names, cut; or why one is none."""

    def __init__(self, shard: Shard, cut: Cut) -> None:
        self.shard, self.cut = shard, cut

    def __len__(self) -> int:
        return len(self.shard.samples)

    def __getitem__(self, index: int) -> tuple[str, Tensor | FormatError]:
        sample = self.shard.samples[index]
        try:
            return sample.name, self.cut.views_of(sample, self.shard.size)
        except FormatError as error:
            return sample.name, error


def _advise(error: FormatError) -> FormatError:
    return FormatError(f"{error}, or leave damaged ones out with --skip-damaged")


def _trained_sizes(spec: ModelSpec) -> tuple[Size, ...]:
    """List PixArt's own sizes where the model was trained at them, or else its square."""
    side = spec.default_side
    table = BINS.get(spec.transformer.sample_size, {}) if spec.transformer.HAS_BINS else {}
    return tuple(table.values()) if table.get(1.0) == (side, side) else ((side, side),)


def _find_labels(spec: ModelSpec, samples: Sequence[Sample]) -> dict[str, int]:
    """Number the classes of pictures, by their names."""
    labels = {}
    for sample in samples:
        try:
            labels[sample.name] = spec.number(sample.caption)
        except InputError as error:
            raise type(error)(f"{error} (class of {sample.where})") from None
    return labels


def _begin(folder: Path, record: DatasetRecord) -> None:
    """Write what a dataset will be, or check that it is what was begun there."""
    if not (folder / MANIFEST).exists():
        if any(folder.iterdir()):
            raise OutputExistsError(f"[output] {folder}: exists, and is no dataset; choose another folder")
        write_record(folder, record)
        return
    found, wanted = asdict(read_record(folder)), asdict(record)
    changed = [name for name in wanted if found[name] != wanted[name]]
    if changed:
        raise OutputExistsError(
            f"[output] {folder}: has a dataset of other pictures, captions, settings or another model (another "
            f"{', '.join(changed)} in {MANIFEST}); repeat the command as it was, or choose another folder"
        )
