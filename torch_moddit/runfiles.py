"""The files of a fine-tuning run: its log, and the folders of its checkpoints."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from msgspec import Meta

from moddit.bounds import LOG_BYTES
from moddit.errors import FormatError, ValueRangeError
from moddit.files import new_file, storage_errors
from moddit.record import Keys, Origin, decode, quote, read_bytes, read_json

CHECKPOINTS: Final = "checkpoints"
LOG: Final = "log.jsonl"
PROGRESS: Final = "progress.json"
VERSION: Final = 4  # of a checkpoint; the first was pickled, the second had all weights, the third drew noise by batch
_MEANINGS: Final = {
    "samples_per_step": "samples_per_step, that is batch_size x accumulation x processes",
    "schedule_steps": "steps",
}
_ADVICE: Final = "delete this checkpoint"


class Log:
    """A file of one JSON object a line."""

    def __init__(self, path: Path, on_log: Callable[[dict[str, Any]], None] | None) -> None:
        self.path = path
        self.on_log = on_log
        self.start = time.monotonic()

    def write(self, row: dict[str, Any]) -> None:
        """Append a row, with the seconds since this process started to train; raises StorageError."""
        row = {**row, "seconds": round(time.monotonic() - self.start, 2)}
        with storage_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self.on_log is not None:
            self.on_log(row)

    def trim(self, step: int) -> None:
        """Drop the rows after a step, which a resumed run writes again, and a row that was cut while it was written."""
        if not os.path.lexists(self.path):
            return
        origin = Origin("finetune", str(self.path), "move it away")
        content = read_bytes(self.path, origin, absent=origin.advice, most=LOG_BYTES)
        lines = content.decode("utf-8", "replace").splitlines()
        kept = [line for line in lines if (found := _step_of(line)) is not None and found <= step]
        with new_file(self.path, overwrite=True) as file:
            file.write("".join(line + "\n" for line in kept).encode())


def _step_of(line: str) -> int | None:
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return step if isinstance(step, int) else None


@dataclass(frozen=True)
class _Progress:
    """What `progress.json` has beside the conditions of its run."""

    version: int
    step: Annotated[int, Meta(ge=0)]


@dataclass(frozen=True)
class _Config:
    schedule_steps: Annotated[int, Meta(ge=1)]


@dataclass(frozen=True)
class _Conditions:
    """What of the conditions a run takes over that is made longer."""

    config: _Config


def write_progress(folder: Path, step: int, conditions: Mapping[str, Any]) -> None:
    """Write what a checkpoint is: its step, and what a run that resumes from it has to share."""
    state = {"version": VERSION, "step": step, **conditions}
    (folder / PROGRESS).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")


def read_progress(folder: Path, conditions: Mapping[str, Any]) -> int:
    """Read the step of a checkpoint that a run may resume from.

    Raises:
        InputError: its file is absent, damaged, or of another version.
        ValueRangeError: it was made under other conditions.
    """
    path = folder / PROGRESS
    step, state = _read_progress(path)
    found, present = _flatten({name: state.get(name) for name in conditions}), _flatten(conditions)
    changed = sorted(key for key in present.keys() | found.keys() if present.get(key) != found.get(key))
    if changed:
        pairs = ", ".join(
            f"{_MEANINGS.get(key, key)} (was {quote(found.get(key))}, is {quote(present.get(key))})" for key in changed
        )
        raise ValueRangeError(
            f"[finetune] {path}: the run was started with another {pairs}; repeat it as it was, or choose another "
            "output folder"
        )
    return step


def read_schedule_steps(folder: Path) -> int:
    """Read of how many steps the shares of a checkpoint's run are; raises as `read_progress`."""
    path = folder / PROGRESS
    origin = Origin("finetune", str(path), _ADVICE)
    return decode(_read_progress(path)[1], _Conditions, origin, Keys.ANY).config.schedule_steps


def _read_progress(path: Path) -> tuple[int, dict[str, Any]]:
    origin = Origin("finetune", str(path), _ADVICE)
    state = read_json(path, origin, absent=_ADVICE)
    progress = decode(state, _Progress, origin, Keys.ANY)
    if progress.version != VERSION:
        raise FormatError(
            f"{origin}: version is {progress.version}, want {VERSION}; another version of moddit wrote it, choose "
            "another output folder"
        )
    return progress.step, state


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
