"""Finds checkpoints: the embedded one, local ones, and repositories of the Hugging Face Hub."""

from __future__ import annotations

import importlib.resources
import os
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from moddit.checkpoint.sources import WEIGHTED, LoraSource, Sources
from moddit.errors import FormatError, MissingError, UnsupportedError
from moddit.paths import expand

EMBEDDED: Final = "checkpoints/shapes64"  # within the package moddit
_REPOSITORY: Final = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_ALWAYS: Final = ("*.json", "tokenizer/*")  # of the files a conversion may need
_CONFIGURATIONS: Final = ("model_index.json", "config.json", "*/config.json", "scheduler/*_config.json")
_KINDS: Final = ("safetensors", "bin")  # of weight files, the better first
_SUFFIXES: Final = tuple(f".{kind}" for kind in _KINDS)
_VARIANTS: Final = tuple(f"*.*.{kind}" for kind in _KINDS)  # "model.fp16.bin", "model.fp16-00001-of-00002.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is here."""

    sources: Sources
    name: str  # for the provenance


@dataclass(frozen=True)
class Survey(Checkpoint):
    """A checkpoint of which the configuration files are here."""

    # of the folders that the Hub keeps the whole of: bytes of what a conversion downloads, by the names of the files
    listings: Mapping[Path, Mapping[str, int]]


Get = Callable[[str, str | None, str | None], tuple[Path, str]]  # id, revision, variant -> folder, name


def find_checkpoint(
    path: str | None,
    *,
    base: str | None = None,
    revision: str | None = None,
    variant: str | None = None,
    loras: Sequence[LoraSource] = (),
    image_size: int | None = None,
    max_sequence_length: int | None = None,
) -> Checkpoint:
    """Find a checkpoint, downloading it if need be.

    Args:
        path: a folder or file, or the id of a repository such as "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", which may
            end in "@" and a revision; by default the embedded checkpoint.
        base: likewise, a pipeline for the components that the first has not.
        revision: of the repository `path`: a branch, tag or commit.
        variant: of the weight files, such as "fp16".
        loras: adapters to merge into the transformer.
        image_size: pixels that a transformer in the original layout was trained at.
        max_sequence_length: text tokens, instead of the pipeline's own limit.

    Raises:
        MissingError: there is no such folder, or no such repository can be had.
        FormatError, UnsupportedError: a path or revision of a form that is not understood.
    """
    main = _embedded() if path is None else _find(path, revision, variant, _download)
    other = None if base is None else _find(base, None, variant, _download)
    sources = Sources(main[0], other[0] if other else None, variant, tuple(loras), image_size, max_sequence_length)
    names = [main[1], *([f"base {other[1]}"] if other else []), *(f"lora {lora}" for lora in loras)]
    return Checkpoint(sources, ", ".join(names))


def survey_checkpoint(path: str, *, base: str | None, revision: str | None, variant: str | None) -> Survey:
    """Find a checkpoint, downloading nothing but its configuration; arguments and errors as of `find_checkpoint`."""
    listings: dict[Path, Mapping[str, int]] = {}

    def look_at(repository: str, revision: str | None, variant: str | None) -> tuple[Path, str]:
        folder = _snapshot(repository, revision, _CONFIGURATIONS, None)
        listed = _list(repository, folder.name, variant)
        if listed is not None:
            listings[folder] = listed
        return folder, f"{repository}@{folder.name}"

    main = _find(path, revision, variant, look_at)
    other = None if base is None else _find(base, None, variant, look_at)
    return Survey(Sources(main[0], other[0] if other else None, variant), main[1], listings)


def _embedded() -> tuple[Path, str]:
    folder = Path(str(importlib.resources.files("moddit"))) / EMBEDDED
    if not folder.is_dir():
        raise MissingError(
            f"[source] {folder}: this installation has no embedded checkpoint; name one with --hf-path FOLDER"
        )
    return folder, f"moddit/{EMBEDDED}"


def _find(text: str, revision: str | None, variant: str | None, get: Get) -> tuple[Path, str]:
    """Find a place, got from the Hub if need be, and name it for the provenance."""
    path = _local_path(text)
    match = _REPOSITORY.fullmatch(text)
    if os.path.lexists(path) or match is None:
        if revision is not None:
            raise UnsupportedError(
                f"[source] {text}: a place here, not an id of the Hub; leave out --revision {revision}"
            )
        return path, text
    if revision is not None and match["revision"] is not None:
        raise FormatError(f"[source] {text}: got a second revision {revision!r}; name one of the two")
    return get(match["id"], revision or match["revision"], variant)


def _local_path(text: str) -> Path:
    parts = urlsplit(text)
    if "://" in text:
        if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
            raise UnsupportedError(
                f"[source] {text}: a URL; want a folder, a file or an id of the Hub such as owner/name"
            )
        text = unquote(parts.path)
    return expand(text)


def _download(repository: str, revision: str | None, variant: str | None) -> tuple[Path, str]:
    """Download what a conversion reads."""
    folders: list[Path] = []

    def take(allowed: tuple[str, ...], variant: str | None) -> Collection[str]:
        folders.append(_snapshot(repository, revision, allowed, variant))
        return [path.relative_to(folders[-1]).as_posix() for path in folders[-1].rglob("*") if path.is_file()]

    _take_what_is_read(variant, take)
    return folders[-1], f"{repository}@{folders[-1].name}"  # snapshots are named by their commit


def _list(repository: str, commit: str, variant: str | None) -> Mapping[str, int] | None:
    """List what `_download` would download, bytes by name; None if the Hub cannot be asked."""
    import huggingface_hub
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined] # of the library that it asks with

    try:
        found = huggingface_hub.HfApi().model_info(repository, revision=commit, files_metadata=True).siblings
    except (HTTPError, OSError):
        return None
    sizes = {item.rfilename: item.size or 0 for item in found or ()}
    taken: set[str] = set()

    def take(allowed: tuple[str, ...], variant: str | None) -> Collection[str]:
        ignored = _ignored(variant) or ()
        taken.update(name for name in sizes if _matches(name, allowed) and not _matches(name, ignored))
        return taken

    _take_what_is_read(variant, take)
    return {name: sizes[name] for name in sorted(taken)}


def _take_what_is_read(variant: str | None, take: Callable[[tuple[str, ...], str | None], Collection[str]]) -> None:
    """Take the files that a conversion reads: of the kinds of weights, for each component the first that it has.

    Args:
        variant: of the weights, as far as there are any.
        take: takes a repository's files by patterns, those of variants only of the one that is named, and gives the
            names of all that were taken.
    """
    first, *others = [(kind, name) for name in dict.fromkeys((variant, None)) for kind in _KINDS]
    names = take((*_ALWAYS, *_patterns("", *first)), first[1])
    for kind, name in others:
        bare = [place for place in WEIGHTED if _has(names, place) and not _has(names, place, _SUFFIXES)]
        patterns = tuple(pattern for place in bare for pattern in _patterns(f"{place}/", kind, name))
        if patterns:
            names = take(patterns, name)


def _has(names: Collection[str], folder: str, suffixes: tuple[str, ...] = ("",)) -> bool:
    """Say whether some names are of a folder, and end so."""
    return any(name.startswith(f"{folder}/") and name.endswith(suffixes) for name in names)


def _patterns(folder: str, kind: str, variant: str | None) -> tuple[str, ...]:
    if variant is None:
        return (f"{folder}*.{kind}",)
    return (f"{folder}*.{variant}.{kind}", f"{folder}*.{variant}-*.{kind}")


def has_weights(folder: Path) -> bool:
    """Say whether a component's folder has files of weights."""
    return any(path.suffix in _SUFFIXES for path in folder.iterdir())


def _matches(name: str, patterns: Iterable[str]) -> bool:
    """Say whether a file would be taken by one of the patterns that the Hub's client is given."""
    return any(fnmatch(name, pattern) for pattern in patterns)


def _ignored(variant: str | None) -> list[str] | None:
    return list(_VARIANTS) if variant is None else None


def _snapshot(repository: str, revision: str | None, allowed: tuple[str, ...], variant: str | None) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    try:
        folder = huggingface_hub.snapshot_download(
            repository,
            revision=revision,
            allow_patterns=list(allowed),
            ignore_patterns=_ignored(variant),
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()
        raise MissingError(
            f"[source] {repository}: neither a folder here nor a repository that can be downloaded "
            f"({reason[0] if reason else type(error).__name__}); check the name, the network and your access"
        ) from None
    return Path(folder)
