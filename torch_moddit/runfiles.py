"""The files of a fine-tuning run: its log, and the folders of its checkpoints."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from moddit.errors import FormatError, ValueRangeError
from moddit.files import new_file, storage_errors

CHECKPOINTS: Final = "checkpoints"
LOG: Final = "log.jsonl"
PROGRESS: Final = "progress.json"
VERSION: Final = 2  # of a checkpoint; the first was pickled


class Log:
    """A file of one JSON object a line."""

    def __init__(self, path: Path, on_log: Callable[[dict[str, Any]], None] | None) -> None:
        self.path = path
        self.on_log = on_log
        self.start = time.monotonic()

    def write(self, row: dict[str, Any]) -> None:
        """Append a row, with the seconds since this process started to train.

        Raises:
            StorageError: it cannot be written.
        """
        row = {**row, "seconds": round(time.monotonic() - self.start, 2)}
        with storage_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self.on_log is not None:
            self.on_log(row)

    def trim(self, step: int) -> None:
        """Drop the rows after a step, which a resumed run writes again, and a row that was cut while it was written."""
        if not self.path.exists():
            return
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        kept = [line for line in lines if (found := _step_of(line)) is not None and found <= step]
        with new_file(self.path, overwrite=True) as file:
            file.write("".join(line + "\n" for line in kept).encode())


def _step_of(line: str) -> int | None:
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return None
    return step if isinstance(step, int) else None


def write_progress(folder: Path, step: int, conditions: Mapping[str, Any]) -> None:
    """Write what a checkpoint is: its step, and what a run that resumes from it has to share."""
    state = {"version": VERSION, "step": step, **conditions}
    (folder / PROGRESS).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")


def read_progress(folder: Path, conditions: Mapping[str, Any]) -> int:
    """Read the step of a checkpoint that a run may resume from.

    Raises:
        FormatError: its file is damaged, or of another version.
        ValueRangeError: it was made under other conditions.
    """
    path = folder / PROGRESS
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        version, step, saved = state.get("version"), state["step"], {name: state.get(name) for name in conditions}
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"[finetune] {path}: not the state of a run ({error}); delete this checkpoint") from None
    if version != VERSION or type(step) is not int or step < 0:
        raise FormatError(
            f"[finetune] {path}: version {version!r} and step {step!r}, want {VERSION} and a count; another version of "
            "moddit wrote it, choose another output folder"
        )
    found, present = _flatten(saved), _flatten(conditions)
    changed = sorted(key for key in present.keys() | found.keys() if present.get(key) != found.get(key))
    if changed:
        pairs = ", ".join(f"{key} (was {found.get(key)!r}, is {present.get(key)!r})" for key in changed)
        raise ValueRangeError(
            f"[finetune] {path}: the run was started with another {pairs}; repeat it as it was, or choose another "
            "output folder"
        )
    return step


def _flatten(conditions: Mapping[str, Any]) -> dict[str, Any]:
    """Name single values: the configuration's by their own names, others' by both."""
    flat: dict[str, Any] = {}
    for name, value in conditions.items():
        prefix = "" if name == "config" else f"{name}."
        flat |= {f"{prefix}{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def list_checkpoints(output: Path) -> list[Path]:
    """List the whole checkpoints of a run, oldest first."""
    folder = output / CHECKPOINTS
    return sorted(path for path in folder.glob("*") if path.name.isdigit()) if folder.is_dir() else []
