"""A folder that appears whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from moddit.errors import OutputExistsError, StorageError
from moddit.graphs import Graphs
from moddit.manifest import FORMAT, MANIFEST_NAME, Component
from moddit.routing import RoutingPlan

_FULL: Final = {errno.ENOSPC, errno.EDQUOT}


@dataclass(frozen=True)
class Written:
    """What a backend has put into a bundle's folder, for the manifest."""

    backend: str
    components: Mapping[str, Component]
    plan: RoutingPlan | None  # that the bundle runs
    graphs: Graphs | None = None
    tool_versions: Mapping[str, str] = field(default_factory=dict)  # beside those of moddit, numpy and Python
    notes: tuple[str, ...] = ()  # what a user should know, one sentence each

    def with_note(self, note: str) -> Written:
        """Add a note."""
        return replace(self, notes=(*self.notes, note))


@contextmanager
def new_folder(out: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give an empty folder beside `out`, which becomes `out` when the block ends and is removed when it fails.

    Only a bundle or an empty folder is ever replaced. It is moved aside first and deleted last, so that there is a
    whole bundle under one of the two names at every moment.

    Raises:
        OutputExistsError: `out` exists, and may not be replaced.
        StorageError: it cannot be written, or the disk is full.
    """
    out = Path(os.path.abspath(out))
    check_free(out, overwrite=overwrite)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        with storage_errors(out):
            out.parent.mkdir(parents=True, exist_ok=True)
            partial.mkdir()
        yield partial
        with storage_errors(out):
            _move(partial, out, overwrite=overwrite)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_free(out: Path, *, overwrite: bool) -> None:
    """Raise OutputExistsError if `out` is there and may not be replaced."""
    if not os.path.lexists(out):
        return
    if not overwrite:
        raise OutputExistsError(f"[output] {out}: exists already; choose another --out, or replace it with --overwrite")
    if not _is_replaceable(out):
        raise OutputExistsError(
            f"[output] {out}: exists and is not a bundle, so it is not replaced; choose another --out, or remove it"
        )


def check_space(folder: Path, needed: int) -> None:
    """Raise StorageError if the disk of `folder` has less than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"[output] {folder.parent}: not enough space, got {free:,} bytes free, want {needed:,}; "
            "free some, or choose another disk with --out"
        )


@contextmanager
def storage_errors(out: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write into StorageError."""
    try:
        yield
    except OSError as error:
        what = "disk is full" if error.errno in _FULL else f"cannot be written ({error.strerror})"
        raise StorageError(
            f"[output] {out}: {what}; nothing was kept, make room or choose another place with --out"
        ) from error


def _is_replaceable(out: Path) -> bool:
    if out.is_symlink() or not out.is_dir():
        return False
    if not any(out.iterdir()):
        return True
    try:
        manifest = json.loads((out / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(manifest, dict) and manifest.get("format") == FORMAT


def _move(partial: Path, out: Path, *, overwrite: bool) -> None:
    check_free(out, overwrite=overwrite)  # somebody may have made it meanwhile
    if not out.exists():
        partial.rename(out)
        return
    old = out.with_name(f".{out.name}.old-{os.getpid()}")
    out.rename(old)
    try:
        partial.rename(out)
    except BaseException:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
