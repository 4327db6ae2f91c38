"""Files that a verification leaves in a bundle, which may come from anywhere."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from moddit.files import storage_errors


def leave_file(path: Path, content: bytes) -> None:
    """Write a file whole, in the place of one or of a link of that name; nothing is written through a link.

    Raises:
        StorageError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    with storage_errors(path):
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
                file.write(content)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
