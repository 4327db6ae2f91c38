"""The files of a fine-tuning run: its log, and the folders of its checkpoints."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

CHECKPOINTS: Final = "checkpoints"
LOG: Final = "log.jsonl"


class Log:
    """A file of one JSON object a line."""

    def __init__(self, path: Path, on_log: Callable[[dict[str, Any]], None] | None) -> None:
        self.path = path
        self.on_log = on_log
        self.start = time.monotonic()

    def write(self, row: dict[str, Any]) -> None:
        """Append a row, with the seconds since this process started to train."""
        row = {**row, "seconds": round(time.monotonic() - self.start, 2)}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self.on_log is not None:
            self.on_log(row)

    def trim(self, step: int) -> None:
        """Drop the rows after a step, which a resumed run writes again."""
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if json.loads(line)["step"] <= step]
            self.path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")


def list_checkpoints(output: Path) -> list[Path]:
    """List the whole checkpoints of a run, oldest first."""
    folder = output / CHECKPOINTS
    return sorted(path for path in folder.glob("*") if path.name.isdigit()) if folder.is_dir() else []
