"""Bundles for Core ML, made as a user makes them: a diffusers folder, then `python -m convert`."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final, Protocol

from convert.verify.report import Report
from convert.verify.verification import verify_bundle
from moddit.manifest import describe_file, fingerprint, read_manifest, write_manifest
from tests.convert.checkpoints import convert
from tests.tiny import MAX_TOKENS

PLAN: Final = [[10, 8, 8, 4], [5, 5, 5, 5], [10, 7, 7, 1]]  # [layers][regions]; two regions share a row
# A width that every compression fits.
HEADS: Final = {"num_attention_heads": 2, "attention_head_dim": 48}
WIDE: Final = {**HEADS, "cross_attention_dim": 96}


class Sources(Protocol):
    def __call__(self, kind: str = "sigma", *, routed: bool = True) -> Path: ...


def to_coreml(source: Path, out: Path, *options: str) -> int:
    """Run the command, for texts of MAX_TOKENS, since graphs are padded to the longest; return its exit status."""
    text = ("--max-sequence-length", str(MAX_TOKENS)) if (source / "text_encoder").exists() else ()
    with quick_garbage():
        return convert(source, out, "--to", "coreml", *text, *options)


def make_bundle(source: Path, out: Path, *options: str) -> Path:
    """Convert without running the packages."""
    assert to_coreml(source, out, "--no-verify", *options) == 0
    return out


def copy_bundle(bundle: Path, out: Path) -> Path:
    """Copy a bundle, to be changed."""
    return Path(shutil.copytree(bundle, out))


def refresh_manifest(folder: Path) -> None:
    """Measure and hash every file again."""
    manifest = read_manifest(folder)
    components = {
        name: replace(component, files=tuple(describe_file(folder, info.path) for info in component.files))
        for name, component in manifest.components.items()
    }
    found = fingerprint(manifest.spec, manifest.tokens, components)
    write_manifest(folder, replace(manifest, fingerprint=found, components=components))


def verify(folder: Path) -> Report:
    """Verify every function, without a picture."""
    return verify_bundle(folder, read_manifest(folder), None)


@contextmanager
def quick_garbage() -> Iterator[None]:
    """Spare coremltools, which collects garbage at every save, the second it takes with all of torch loaded."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
