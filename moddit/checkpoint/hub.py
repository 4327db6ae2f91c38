"""Finds checkpoints: the embedded one, local ones, and repositories of the Hugging Face Hub."""

from __future__ import annotations

import importlib.resources
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from moddit.checkpoint.sources import WEIGHTED, LoraSource, Sources
from moddit.errors import FormatError, MissingError, UnsupportedError
from moddit.paths import expand

EMBEDDED: Final = "checkpoints/shapes64"  # within the package moddit
_REPOSITORY: Final = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_ALWAYS: Final = ("*.json", "tokenizer/*")  # of the files a conversion may need
_KINDS: Final = ("safetensors", "bin")  # of weight files, the better first
_VARIANTS: Final = tuple(f"*.*.{kind}" for kind in _KINDS)  # "model.fp16.bin", "model.fp16-00001-of-00002.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is here."""

    sources: Sources
    name: str  # for the provenance


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
    main = _embedded() if path is None else _find(path, revision, variant)
    other = None if base is None else _find(base, None, variant)
    sources = Sources(main[0], other[0] if other else None, variant, tuple(loras), image_size, max_sequence_length)
    names = [main[1], *([f"base {other[1]}"] if other else []), *(f"lora {lora}" for lora in loras)]
    return Checkpoint(sources, ", ".join(names))


def _embedded() -> tuple[Path, str]:
    folder = Path(str(importlib.resources.files("moddit"))) / EMBEDDED
    if not folder.is_dir():
        raise MissingError(
            f"[source] {folder}: this installation has no embedded checkpoint; name one with --hf-path FOLDER"
        )
    return folder, f"moddit/{EMBEDDED}"


def _find(text: str, revision: str | None, variant: str | None) -> tuple[Path, str]:
    """Find a place, downloaded if need be, and name it for the provenance."""
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
    return _download(match["id"], revision or match["revision"], variant)


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
    """Download what a conversion reads: of the kinds of weights, for each component the first that it has."""
    first, *others = [(kind, name) for name in dict.fromkeys((variant, None)) for kind in _KINDS]
    folder = _snapshot(repository, revision, (*_ALWAYS, *_patterns("", *first)), first[1])
    for kind, name in others:
        bare = [place for place in WEIGHTED if (folder / place).is_dir() and not _has_weights(folder / place)]
        patterns = tuple(pattern for place in bare for pattern in _patterns(f"{place}/", kind, name))
        if patterns:
            folder = _snapshot(repository, revision, patterns, name)
    return folder, f"{repository}@{folder.name}"  # snapshots are named by their commit


def _patterns(folder: str, kind: str, variant: str | None) -> tuple[str, ...]:
    if variant is None:
        return (f"{folder}*.{kind}",)
    return (f"{folder}*.{variant}.{kind}", f"{folder}*.{variant}-*.{kind}")


def _has_weights(folder: Path) -> bool:
    return any(path.suffix.removeprefix(".") in _KINDS for path in folder.iterdir())


def _snapshot(repository: str, revision: str | None, allowed: tuple[str, ...], variant: str | None) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    try:
        folder = huggingface_hub.snapshot_download(
            repository,
            revision=revision,
            allow_patterns=list(allowed),
            ignore_patterns=list(_VARIANTS) if variant is None else None,
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()
        raise MissingError(
            f"[source] {repository}: neither a folder here nor a repository that can be downloaded "
            f"({reason[0] if reason else type(error).__name__}); check the name, the network and your access"
        ) from None
    return Path(folder)
