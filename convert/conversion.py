"""From a checkpoint to a bundle, as one call."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import numpy as np

import moddit
from convert.backends import Write
from convert.output import BUNDLE, is_bundle
from moddit.checkpoint.description import Description, describe
from moddit.checkpoint.hub import Checkpoint
from moddit.checkpoint.sources import file_state
from moddit.errors import FormatError, MissingError
from moddit.files import check_folder, new_folder, recover
from moddit.manifest import Manifest, Provenance, fingerprint, hash_file, write_manifest

R = TypeVar("R")
Progress = Callable[[str, int], Callable[[int], object]]  # (what, bytes in all) -> told how many more are done


@dataclass(frozen=True)
class Conversion:
    """A finished conversion."""

    out: Path
    description: Description
    manifest: Manifest
    notes: tuple[str, ...]  # of checkpoint and backend


def check_out(out: Path, *, overwrite: bool) -> None:
    """Raise OutputExistsError if a bundle may not be written to `out`, once what a dead writer left is put right."""
    recover(out)
    check_folder(out, kind=BUNDLE, may_replace=is_bundle if overwrite else None)


def convert(
    checkpoint: Checkpoint,
    out: Path,
    write: Write,
    report: Callable[[Conversion], R],
    *,
    overwrite: bool,
    progress: Progress,
) -> R:
    """Convert a checkpoint to a bundle at `out`, replacing one there if `overwrite`.

    `out` is written whole or not at all, whatever happens on the way, and an old bundle is replaced at the very end.
    `write` puts everything but the manifest into an empty folder, and is told how to report bytes of the source;
    `report` makes what is returned, before the bundle appears: nothing can fail afterwards; `progress` makes a counter
    of bytes for each of the two passes, converting and hashing the source.

    Raises:
        OutputExistsError: `out` exists, and is not to be replaced.
        InputError: the checkpoint cannot be used.
        StorageError: `out` cannot be written.
    """
    check_out(out, overwrite=overwrite)
    description = describe(checkpoint.sources)
    with new_folder(out, kind=BUNDLE, may_replace=is_bundle if overwrite else None) as folder:
        counter = progress("converting", sum(part.nbytes for part in description.parts.values()))
        written = write(description, folder, counter)
        counter = progress("hashing", sum(description.states[path][1] for path in description.files.values()))
        provenance = Provenance(
            source=checkpoint.name,
            source_sha256=hash_source(description.files, counter, description.states),
            tool_versions={**_versions(), **written.tool_versions},
            created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )
        manifest = Manifest(
            fingerprint(description.spec, written.policy, written.components),
            written.backend,
            description.spec,
            written.policy,
            written.components,
            written.graphs,
            provenance,
        )
        write_manifest(folder, manifest)
        return report(Conversion(out, description, manifest, (*description.notes, *written.notes)))


def _versions() -> dict[str, str]:
    return {"moddit": moddit.__version__, "numpy": np.__version__, "python": platform.python_version()}


def hash_source(
    files: Mapping[str, Path], advance: Callable[[int], object], states: Mapping[Path, tuple[int, int, int]]
) -> str:
    """Hash a checkpoint: SHA-256 of the lines that `sha256sum` prints for its files, sorted by name.

    Args:
        files: by the names under which they count.
        advance: told how many more bytes are done.
        states: of the files when they were read, which the hash has to be of.

    Raises:
        FormatError, MissingError: a file cannot be read, or has changed.
    """
    lines = []
    for name, path in sorted(files.items()):
        try:
            digest = hash_file(path, advance)
        except FileNotFoundError:
            raise MissingError(f"[source] {path}: the file has gone; start again") from None
        except OSError as error:
            raise FormatError(f"[source] {path}: cannot be read ({error.strerror})") from None
        if file_state(path) != states[path]:
            raise FormatError(f"[source] {path}: has changed during the conversion; start again")
        lines.append(f"{digest}  {name}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()
