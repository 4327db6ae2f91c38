"""Files and folders that appear whole or not at all, whatever stops the program.

    with new_file(path, overwrite=False) as file: ...       a file object; the file is there when the block has ended
    with new_folder(path, kind="bundle", may_replace=is_bundle) as folder: ...  an empty folder, which becomes `path`

What is being written lies beside its target under a name of its own, `.NAME.TOKEN.partial`, and its writer locks it.
At the end it is renamed. A folder that is replaced is first moved aside (`.old`), so that at every moment one of the
two is whole; the renames of a swap are done under a lock of the parent folder, and signals wait until it is over.
What a writer leaves that dies in between (SIGKILL, a power cut) is put right by the next one, or by `recover`: a
target that was moved aside comes back, everything else of a dead writer is removed. A writer is dead when nobody
holds its lock, which the kernel gives back; process numbers are not asked, since containers share them.

A program that writes many things into one folder for a long time keeps others out: `with exclusive(folder): ...`.
What the system refuses inside one of these blocks is a StorageError of its target.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Final

from moddit.errors import FormatError, ModditError, OutputExistsError, StorageError
from moddit.signals import raise_if_stopped, uninterrupted
from moddit.text import printable

_FULL: Final = {errno.ENOSPC, errno.EDQUOT}
_WITHOUT_LOCKS: Final = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}
_TOKEN_BYTES: Final = 4  # short, since file systems allow 255 bytes of a name
PARTIAL: Final = "partial"  # being written
OLD: Final = "old"  # whole, moved aside in a swap
TRASH: Final = "trash"  # being removed
_LEFTOVER: Final = re.compile(rf"\.(.+)\.[0-9a-f]{{{2 * _TOKEN_BYTES}}}\.({PARTIAL}|{OLD}|{TRASH})", re.DOTALL)


@contextmanager
def new_file(target: Path, *, overwrite: bool) -> Iterator[IO[bytes]]:
    """Give a file to write, which becomes `target` when the block ends and is removed when it fails.

    Raises:
        OutputExistsError: `target` exists, and may not be replaced; a folder never is.
        StorageError: it cannot be written, or the disk is full.
    """
    target = absolute(target)
    partial = _name(target, PARTIAL)
    with storage_errors(target), ExitStack() as stack:
        _prepare(target)
        stack.callback(_remove, partial)
        with _locked(target.parent):  # nobody may take it for a dead writer's before it is locked
            file = stack.enter_context(partial.open("xb"))
            _lock(file.fileno(), fcntl.LOCK_EX)
        yield file
        raise_if_stopped()
        file.flush()
        os.fsync(file.fileno())
        with uninterrupted(), _locked(target.parent):
            check_file(target, overwrite=overwrite)
            partial.replace(target)


@contextmanager
def new_folder(target: Path, *, kind: str, may_replace: Callable[[Path], bool] | None) -> Iterator[Path]:
    """Give an empty folder beside `target`, which becomes `target` when the block ends and is removed when it fails.

    Messages call it a `kind`, such as "bundle"; `may_replace` says whether the folder at `target` is one, and may be
    replaced. None: nothing may.

    Raises:
        OutputExistsError: `target` exists, and may not be replaced.
        StorageError: it cannot be written, or the disk is full.
    """
    target = absolute(target)
    partial = _name(target, PARTIAL)
    with storage_errors(target), ExitStack() as stack:
        check_folder(target, kind=kind, may_replace=may_replace)  # before the folders above it are made
        _prepare(target)
        stack.callback(_remove, partial)
        with _locked(target.parent):  # nobody may take it for a dead writer's before it is locked
            partial.mkdir()
            stack.enter_context(_owned(partial, fcntl.LOCK_EX))
        yield partial
        _flush(partial)
        raise_if_stopped()
        with uninterrupted():
            with _locked(target.parent):
                _check_folder(target, kind, may_replace)  # somebody may have made it meanwhile
                trash = _swap(partial, target)
            if trash is not None:
                _remove(trash)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Make a folder if it is not there, and keep it to this process while the block runs.

    Raises StorageError if another process has it, or it cannot be written.
    """
    folder = absolute(folder)
    with ExitStack() as stack:
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(_owned(folder, fcntl.LOCK_EX | fcntl.LOCK_NB))
            except BlockingIOError:
                raise StorageError(
                    f"[output] {printable(str(folder))}: another program is writing into it; wait for its end, or "
                    "choose another place"
                ) from None
        yield


def discard(folder: Path) -> None:
    """Remove a folder so that nobody takes a part of it for the whole: it loses its name first. Raises StorageError."""
    folder = absolute(folder)
    with storage_errors(folder), uninterrupted():
        trash = _name(folder, TRASH)
        folder.rename(trash)
        _remove(trash)


def recover(target: Path) -> None:
    """Put right what writers of `target` left that are dead: bring back what they moved aside, remove the rest.

    Raises StorageError if a folder that was moved aside cannot be brought back.
    """
    target = absolute(target)
    with storage_errors(target):
        _recover(target.parent, target.name)


def recover_all(folder: Path) -> None:
    """Put right what dead writers left of everything that they wrote into a folder; otherwise as `recover`."""
    folder = absolute(folder)
    with storage_errors(folder):
        _recover(folder, None)


def check_file(target: Path, *, overwrite: bool) -> None:
    """Raise OutputExistsError if a file may not be written to `target`."""
    if target.is_dir():
        raise OutputExistsError(f"[output] {printable(str(target))} is a folder, want the name of a file")
    if os.path.lexists(target) and not overwrite:
        raise OutputExistsError(
            f"[output] {printable(str(target))} exists; choose another name or allow it with --overwrite"
        )


def check_folder(target: Path, *, kind: str, may_replace: Callable[[Path], bool] | None) -> None:
    """Raise OutputExistsError if a folder may not be written to `target`; arguments as `new_folder`."""
    target = absolute(target)
    if os.path.lexists(target):
        with storage_errors(target), _locked(target.parent):  # not in the middle of somebody's swap
            _check_folder(target, kind, may_replace)


def _check_folder(target: Path, kind: str, may_replace: Callable[[Path], bool] | None) -> None:
    if not os.path.lexists(target):
        return
    if may_replace is None:
        raise OutputExistsError(
            f"[output] {printable(str(target))}: exists already; choose another name, or replace it with --overwrite"
        )
    if target.is_symlink() or not target.is_dir() or (any(target.iterdir()) and not may_replace(target)):
        raise OutputExistsError(
            f"[output] {printable(str(target))}: exists and is not a {kind}, so it is not replaced; "
            "choose another name, or remove it"
        )


def check_space(folder: Path, needed: int) -> None:
    """Raise StorageError if the disk of `folder` has less than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"[output] {printable(str(folder.parent))}: not enough space, got {free:,} bytes free, want {needed:,}; "
            "free some, or choose another disk"
        )


@contextmanager
def storage_errors(target: Path) -> Iterator[None]:
    """Turn the system's refusals to write a target into StorageError, and those of another file into FormatError."""
    try:
        yield
    except ModditError:
        raise
    except OSError as error:
        if error.errno not in _FULL and isinstance(error.filename, str) and not _concerns(target, error.filename):
            name = printable(error.filename)
            raise FormatError(f"[source] {name}: cannot be read ({error.strerror}), want a readable file") from error
        if isinstance(error, (FileExistsError, NotADirectoryError)):
            what = f"{printable(str(error.filename or target))} is a file, want a folder; choose another place"
        elif error.errno in _FULL:
            what = "disk is full; make room or choose another place"
        else:
            what = f"cannot be written ({error.strerror or error}); make room or choose another place"
        raise StorageError(f"[output] {printable(str(target))}: {what}") from error


def _concerns(target: Path, name: str) -> bool:
    """Say whether a file is part of what is written to a target, or a folder above it."""
    target, path = absolute(target), absolute(Path(name))
    if path in target.parents or not path.is_relative_to(target.parent):
        return path in target.parents
    first = path.relative_to(target.parent).parts[0]
    return first == target.name or first.startswith(f".{target.name}.")


def absolute(path: Path) -> Path:
    """Make a path absolute and plain, without following links: a target may be one."""
    return Path(os.path.abspath(path))


def _prepare(target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    recover(target)


def _flush(folder: Path) -> None:
    """Have the files of a folder on the disk before its name is: a power cut may come between the two."""
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_file():
            continue
        with _opened(path) as descriptor:
            os.fsync(descriptor)


def _swap(partial: Path, target: Path) -> Path | None:
    """Put `partial` in the place of `target`; return what was there, under a name that marks it as rubbish.

    Once the new one is there nothing fails any more: an old one that keeps its name is left to the next writer.
    """
    if not os.path.lexists(target):
        partial.rename(target)
        return None
    old = _name(target, OLD)
    target.rename(old)
    try:
        partial.rename(target)
    except BaseException:  # a signal too: what was there goes back, and the signal goes on
        old.rename(target)
        raise
    trash = _name(target, TRASH)
    try:
        old.rename(trash)
    except OSError:
        return None
    return trash


def _name(target: Path, state: str) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(_TOKEN_BYTES)}.{state}")


def _recover(folder: Path, name: str | None) -> None:
    if not _leftovers(folder, name):
        return
    with uninterrupted(), _locked(folder):
        for path, target, state in _leftovers(folder, name):
            if state == OLD and not os.path.lexists(target):
                path.rename(target)
            elif state != PARTIAL or _is_dead(path):
                _remove(path)


def _leftovers(folder: Path, name: str | None) -> list[tuple[Path, Path, str]]:
    """List what writers of one name, or of any, have in a folder, dead or alive: its path, its target and its state."""
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    matches = filter(None, map(_LEFTOVER.fullmatch, names))
    return [(folder / match[0], folder / match[1], match[2]) for match in matches if name in (None, match[1])]


def _is_dead(partial: Path) -> bool:
    """Say whether nobody is writing this any more. Where the file system has no locks, nobody can know."""
    try:
        with _opened(partial) as descriptor:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


# Folders that this process is writing, and the descriptors of their locks: what it writes whole within one needs no
# other lock, and would wait for itself.
_OWNED: Final[dict[tuple[int, int], int]] = {}


@contextmanager
def _owned(folder: Path, operation: int) -> Iterator[None]:
    """Hold the lock of a folder for as long as its writer lives."""
    with _opened(folder, os.O_DIRECTORY) as descriptor:
        _lock(descriptor, operation)
        key = _identity(folder)
        _OWNED[key] = descriptor
        try:
            yield
        finally:
            del _OWNED[key]


def _disown() -> None:
    """Leave the locks to the parent: a forked process that outlives it would make it look alive."""
    for descriptor in _OWNED.values():
        os.close(descriptor)
    _OWNED.clear()


os.register_at_fork(after_in_child=_disown)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder."""
    if _identity(folder) in _OWNED:
        yield
        return
    with _opened(folder, os.O_DIRECTORY) as descriptor:
        _lock(descriptor, fcntl.LOCK_EX)
        yield


@contextmanager
def _opened(path: Path, flags: int = 0) -> Iterator[int]:
    """Give the descriptor of a file or folder, to sync or to lock."""
    descriptor = os.open(path, os.O_RDONLY | flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino


def _lock(descriptor: int, operation: int) -> None:
    try:
        fcntl.flock(descriptor, operation)
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise


def _remove(path: Path) -> None:
    """Remove a file or folder; what cannot be removed stays for the next writer to try."""
    with uninterrupted():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
            return
        try:
            path.unlink(missing_ok=True)
        except OSError:
            return
