"""The native libraries of coremltools, without which it can be imported but writes no package."""

from __future__ import annotations

import importlib.util
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import version
from pathlib import Path
from typing import Final

from moddit.errors import MissingError

LIBRARIES: Final = ("libmilstoragepython", "libmodelpackage")  # write the weights, and the package


def check_native_libraries() -> None:
    """Raise MissingError if coremltools, which is not loaded, has no native libraries, as where pip built it itself."""
    spec = importlib.util.find_spec("coremltools")
    folders = [Path(folder) for folder in (spec.submodule_search_locations if spec else None) or ()]
    for name in LIBRARIES:
        if not any((folder / f"{name}{suffix}").exists() for folder in folders for suffix in EXTENSION_SUFFIXES):
            raise incomplete(name)


def incomplete(library: str) -> MissingError:
    """Say that a native library is absent, or is one of another Python or system."""
    return MissingError(
        f"[coreml] coremltools {version('coremltools')} is installed without its native library {library}, as where it "
        "has no wheel for this Python or system; make an environment of Python 3.11, 3.12 or 3.13 and "
        "pip install 'moddit[coreml]' there"
    )
