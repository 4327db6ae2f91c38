"""Whether the libraries for Core ML are there; says so without loading them."""

from __future__ import annotations

import importlib.util
import logging
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import version
from pathlib import Path
from typing import Final

from moddit.errors import MissingError

WRITE_MODULES: Final = ("coremltools",)
LIBRARIES: Final = ("libmilstoragepython", "libmodelpackage")  # without which coremltools writes no weights, no package
VERIFY_MODULES: Final = ("torch", "diffusers", "transformers", "tokenizers", "PIL")


def check_installed(*modules: str) -> None:
    """Raise MissingError if modules, or coremltools' native libraries, are not there, before anything is written."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingError(f"[coreml] {', '.join(missing)} not installed; pip install 'moddit[coreml]'")
    if "coremltools" in modules:
        _check_native_libraries()
    # Keep coremltools from saying on Linux that it cannot run models here, and that torch is newer than it.
    logging.getLogger("coremltools").setLevel(logging.ERROR)


def _check_native_libraries() -> None:
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
