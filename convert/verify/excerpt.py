"""A copy of a package with one of its functions alone, which is its default function then."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from convert.verify.package import read_package
from moddit.errors import MissingError


def copy_function(package: Path, function: str, copy: Path) -> Path:
    """Copy a package to `copy`, which must not exist, without all functions but one; return `copy`.

    coremltools asks Core ML for a compute plan without naming a function, so it gets that of the default one. Its own
    way to another default, `save_multifunction`, reads and writes all weights again. Here only the protobuf is written;
    files of weights become hard links where the file system has them, and keep what only other functions use.

    Raises:
        MissingError: the package has no such function.
        FormatError: the package is damaged.
    """
    contents = read_package(package)
    model, file = contents.model, contents.file
    names = sorted(model.mlProgram.functions)
    if function not in names:
        raise MissingError(f"[coreml] {package}: no function {function!r}, want one of {', '.join(names)}")
    for name in names:
        if name != function:
            del model.mlProgram.functions[name]
    kept = [item for item in model.description.functions if item.name == function]
    del model.description.functions[:]
    model.description.functions.extend(kept)
    model.description.defaultFunctionName = function
    shutil.copytree(package, copy, copy_function=_link)
    target = copy / file.relative_to(package)
    target.unlink()  # it may be the same file as the package's
    target.write_bytes(model.SerializeToString())
    return copy


def _link(source: str, target: str) -> str:
    """Make a hard link, or a copy where there can be none."""
    try:
        os.link(source, target)
    except OSError:
        return str(shutil.copy2(source, target))
    return target
