"""Paths as people write them on a command line."""

from __future__ import annotations

from pathlib import Path

from moddit.errors import MissingError


def expand(path: str) -> Path:
    """Replace a leading `~` or `~user` by that user's home folder; shells leave it as it is behind `--option=`.

    A file whose own name begins with `~` is written `./~name`. Raises MissingError if there is no such user, or nobody
    knows where the home folder is.
    """
    if not path.startswith("~"):  # Path drops a leading ./, after which it would be one
        return Path(path)
    try:
        return Path(path).expanduser()
    except RuntimeError:
        user = Path(path).parts[0]
        raise MissingError(
            f"[path] {path}: cannot find the home folder of {user}, want ~ or ~USER of a user of this machine; "
            f"write ./{user} if that is a file's own name"
        ) from None
