"""Performs each task in a process of its own: an abort inside Core ML, or a call that never returns, ends that one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from convert.verify.device_task import Answer, Task, Trouble, write_task

COREML: Final = "convert.verify.framework:CoreML"
TIMEOUT: Final = 600.0  # seconds
_MODULE: Final = "convert.verify.device_task"
_LAST: Final = 4096  # bytes of the errors that are looked at


@dataclass(frozen=True)
class Processes:
    """Starts a process for each task."""

    entry: str = COREML  # what makes the `CoreML` to ask, as `package.module:name`
    seconds: float = TIMEOUT  # that a task may take

    def perform(self, task: Task) -> Answer | Trouble:
        """Perform a task; whatever happens to its process, give an answer or the trouble."""
        with TemporaryDirectory(prefix="moddit-") as scratch:
            folder = Path(scratch)
            write_task(task, folder / "task.json")
            with (folder / "errors").open("wb") as errors:
                status = self._run(folder, errors.fileno())
            doing = _read(folder / "answer.doing") or "starting"
            if status is None:
                return Trouble("timed out", f"while {doing}, after {self.seconds:g} s")
            answer = _read(folder / "answer.json")
            if status != 0 or not answer:
                return Trouble("crashed", f"while {doing}: {_describe(status)}{_last_words(folder / 'errors')}")
        content = json.loads(answer)
        return Trouble(**content["trouble"]) if "trouble" in content else content["answer"]

    def _run(self, folder: Path, errors: int) -> int | None:
        """Run the process to its end; give its exit status, None if it had to be killed."""
        command = [sys.executable, "-m", _MODULE, self.entry, str(folder / "task.json"), str(folder / "answer.json")]
        paths = os.pathsep.join(path for path in sys.path if path)  # it has to find what this process finds
        try:
            return subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                timeout=self.seconds,
                env={**os.environ, "PYTHONPATH": paths},
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            return None


def _describe(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"{signal.Signals(-status).name} (exit status {status})"
    except ValueError:
        return f"signal {-status}"


def _last_words(path: Path) -> str:
    """Give the last line of a process's errors."""
    lines = path.read_bytes()[-_LAST:].decode(errors="replace").split("\n")
    found = next((line.strip() for line in reversed(lines) if line.strip()), "")
    printable = "".join(letter if letter.isprintable() else "?" for letter in found)
    return f", {printable}" if printable else ", and no word of why"


def _read(path: Path) -> str:
    """Read a file that may not have been written."""
    return path.read_text(encoding="utf-8") if path.exists() else ""
