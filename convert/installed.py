"""Whether the libraries for Core ML are there; says so without loading them."""

from __future__ import annotations

import importlib.util
import logging
from typing import Final

from convert.coreml.native import check_native_libraries
from moddit.errors import MissingError

WRITE_MODULES: Final = ("coremltools",)
VERIFY_MODULES: Final = ("torch", "diffusers", "transformers", "tokenizers", "PIL")


def check_installed(*modules: str) -> None:
    """Raise MissingError if modules, or coremltools' native libraries, are not there, before anything is written."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingError(f"[coreml] {', '.join(missing)} not installed; pip install 'moddit[coreml]'")
    if "coremltools" in modules:
        check_native_libraries()
    # Keep coremltools from saying on Linux that it cannot run models here, and that torch is newer than it.
    logging.getLogger("coremltools").setLevel(logging.ERROR)
