"""Finds the folder of a checkpoint: the embedded one, a local one, or a repository of the Hugging Face Hub."""

from __future__ import annotations

import importlib.resources
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from moddit.errors import MissingError

EMBEDDED: Final = "checkpoints/shapes64"  # within the package moddit
_REPOSITORY: Final = re.compile(r"[\w.-]+/[\w.-]+")
_PATTERNS: Final = ("*.json", "*.safetensors", "tokenizer/*")  # of the files a conversion may need


@dataclass(frozen=True)
class Checkpoint:
    """Where a checkpoint is."""

    folder: Path
    name: str  # for the provenance


def find_checkpoint(path: str | None) -> Checkpoint:
    """Find a checkpoint, downloading it if need be.

    Args:
        path: a folder, or the id of a repository such as "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS"; by default the
            embedded checkpoint.

    Raises:
        MissingError: there is no such folder, or no such repository can be had.
    """
    if path is None:
        return _embedded()
    if Path(path).exists() or not _REPOSITORY.fullmatch(path):
        return Checkpoint(Path(path), path)
    return _download(path)


def _embedded() -> Checkpoint:
    folder = Path(str(importlib.resources.files("moddit"))) / EMBEDDED
    if not folder.is_dir():
        raise MissingError(
            f"[source] {folder}: this installation has no embedded checkpoint; name one with --hf-path FOLDER"
        )
    return Checkpoint(folder, f"moddit/{EMBEDDED}")


def _download(repository: str) -> Checkpoint:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    try:
        folder = huggingface_hub.snapshot_download(repository, allow_patterns=list(_PATTERNS))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()
        raise MissingError(
            f"[source] {repository}: neither a folder here nor a repository that can be downloaded "
            f"({reason[0] if reason else type(error).__name__}); check the name, the network and your access"
        ) from None
    return Checkpoint(Path(folder), f"{repository}@{Path(folder).name}")  # snapshots are named by their commit
