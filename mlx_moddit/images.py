"""Picture files: writing them whole or not at all, and reading back how they were made."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from PIL import Image, PngImagePlugin, UnidentifiedImageError

from moddit.errors import FormatError, MissingError
from moddit.files import check_file, new_file, storage_errors
from moddit.metadata import Metadata
from moddit.record import escape, open_regular

CHUNK: Final = "moddit"
CHUNK_FOR_PEOPLE: Final = "parameters"


def check_outputs(paths: Sequence[Path], *, overwrite: bool) -> None:
    """Check that all files can be written, before any work is done for them; makes their folders.

    Raises:
        OutputExistsError: a file is there already, and `overwrite` is off.
        StorageError: a folder cannot be made or written to.
    """
    for path in paths:
        with storage_errors(path):  # a folder that may not be searched, or a name that is too long
            check_file(path, overwrite=overwrite)
    for folder, path in {path.parent: path for path in paths}.items():
        with storage_errors(path):
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise PermissionError("no permission, or a read-only disk")


def save_picture(path: Path, image: Image.Image, metadata: Metadata, *, overwrite: bool) -> None:
    """Write a PNG that tells how it was made; otherwise as `save_image`."""
    text = PngImagePlugin.PngInfo()
    text.add_text(CHUNK, json.dumps(metadata.to_json(), sort_keys=True))
    text.add_itxt(CHUNK_FOR_PEOPLE, metadata.describe())
    save_image(path, image, text, overwrite=overwrite)


def save_image(path: Path, image: Image.Image, text: PngImagePlugin.PngInfo | None = None, *, overwrite: bool) -> None:
    """Write a PNG, which appears under its name when it is complete; an interruption leaves nothing behind.

    Raises:
        OutputExistsError: the file has appeared since `check_outputs`, and `overwrite` is off.
        StorageError: it cannot be written.
    """
    with new_file(path, overwrite=overwrite) as file:
        image.save(file, format="PNG", pnginfo=text)


def read_metadata(path: Path) -> Metadata:
    """Read how a picture was made.

    Raises:
        MissingError: no such file, or a PNG that moddit did not write (or whose text another program dropped).
        FormatError: not a PNG, or metadata that this version cannot read.
    """
    try:
        with open(path, "rb", opener=open_regular) as file, Image.open(file) as image:
            text = image.text.get(CHUNK) if isinstance(image, PngImagePlugin.PngImageFile) else None
            kind = image.format
    except FileNotFoundError:
        raise MissingError(f"[metadata] {escape(str(path))}: no such file") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise FormatError(f"[metadata] {escape(str(path))}: cannot read the picture ({escape(str(error))})") from None
    if text is None:
        raise MissingError(
            f"[metadata] {escape(str(path))}: a {kind} without moddit's settings; want a PNG as moddit wrote it"
        )
    return Metadata.from_text(text, str(path))
