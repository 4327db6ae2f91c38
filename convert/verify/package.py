"""The files of an .mlpackage: its manifest, and the model that the manifest names; copies with one function alone."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from coremltools.proto import Model_pb2
from google.protobuf.message import DecodeError

from moddit.errors import FormatError, MissingError, UnsupportedError

_MODEL_PATH: Final = "@model_path"  # in the program, the folder of the model's file
_ADVICE: Final = "write or copy the package again"


@dataclass(frozen=True)
class PackageFiles:
    """An .mlpackage whose model has been read."""

    path: Path
    file: Path  # of the model
    model: Any  # Model_pb2.Model, with an ML program

    def find_file(self, name: str) -> Path:
        """Give the path of a file that the program names; raise FormatError if it is not below the model's folder."""
        parts = Path(name).parts
        if len(parts) < 2 or parts[0] != _MODEL_PATH or ".." in parts:
            raise FormatError(
                f"[coreml] {self.path}: file of weights is named {name!r}, want {_MODEL_PATH}/...; {_ADVICE}"
            )
        return self.file.parent.joinpath(*parts[1:])


def read_package(path: Path) -> PackageFiles:
    """Read the manifest and the model of a package.

    Raises:
        MissingError: the package, its manifest or its model is absent.
        FormatError: one of them is damaged.
        UnsupportedError: the model is not an ML program.
    """
    file = path / "Data" / _find_model(path)
    model = Model_pb2.Model()
    try:
        model.ParseFromString(_read(file))
    except DecodeError as error:
        raise FormatError(f"[coreml] {file}: not a Core ML model ({error}); {_ADVICE}") from None
    kind = model.WhichOneof("Type")
    if kind != "mlProgram":
        raise UnsupportedError(f"[coreml] {file}: kind of model, got {kind}, want mlProgram")
    return PackageFiles(path, file, model)


def _find_model(path: Path) -> Path:
    where = f"[coreml] {path / 'Manifest.json'}"
    try:
        manifest = json.loads(_read(path / "Manifest.json"))
        name = manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"]
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where}: not JSON ({error}); {_ADVICE}") from None
    except (KeyError, TypeError) as error:
        raise FormatError(f"{where}: does not name a model ({error!r}); {_ADVICE}") from None
    if not isinstance(name, str) or Path(name).is_absolute() or ".." in Path(name).parts:
        raise FormatError(f"{where}: path of the model, got {name!r}, want one inside the package; {_ADVICE}")
    return Path(name)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise MissingError(f"[coreml] {path}: no such file; {_ADVICE}") from None
    except OSError as error:
        raise FormatError(f"[coreml] {path}: cannot be read ({error.strerror}); {_ADVICE}") from None


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
