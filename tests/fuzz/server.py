"""Run our programs thousands of times: one process imports everything once, and forks for every run.

    with Server() as server:
        run = server.run(["mlx_moddit", "info", "--model", "folder"], cwd, seconds=60)

A run is what `python -m PROGRAM` would be in a new process, but for the imports, which are there already: the module is
executed as `__main__`, and exit status, signal, time and peak memory are those of a process of its own. Linux only:
elsewhere a process that has loaded frameworks cannot be forked.
"""

from __future__ import annotations

import json
import os
import resource
import runpy
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NoReturn, Self

LIMITS: Final[Mapping[int, int]] = {  # a program that goes mad is stopped before it takes the machine along
    resource.RLIMIT_DATA: 6 << 30,
    resource.RLIMIT_FSIZE: 1 << 30,
    resource.RLIMIT_CORE: 0,
}


@dataclass(frozen=True)
class Run:
    """How a program ended."""

    status: int  # of exit, or minus the signal that ended it
    seconds: float
    peak_bytes: int  # resident
    timed_out: bool
    output: str
    errors: str


class Server:
    """A process that runs programs one after the other."""

    def __enter__(self) -> Self:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "ignore", "-m", "tests.fuzz.server"]
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, value: object, trace: TracebackType | None) -> None:
        with self._process:
            assert self._process.stdin is not None
            self._process.stdin.close()

    def run(self, arguments: Sequence[str], folder: Path, *, seconds: float) -> Run:
        """Run a program.

        Args:
            arguments: module and its command line.
            folder: where it runs, which is its home folder too; its output is kept there.
            seconds: after which it is killed.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"arguments": list(arguments), "folder": str(folder), "seconds": seconds}
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        texts = ((folder / name).read_bytes().decode("utf-8", "replace") for name in ("stdout", "stderr"))
        return Run(*answer, *texts)


def serve() -> None:
    """Answer requests until their end."""
    for module in (
        "convert.verify.verification",
        "convert.verify.generation",
        "convert.coreml.writer",
        "convert.mlx.writer",
        "torch_moddit.cli",
        "mlx_moddit.cli",
    ):
        __import__(module)
    from diffusers import AutoencoderKL, PixArtAlphaPipeline, PixArtTransformer2DModel  # noqa: F401
    from transformers import T5EncoderModel, T5Tokenizer  # noqa: F401

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        request = json.loads(line)
        answers.write(json.dumps(_run(request)) + "\n")
        answers.flush()


def _run(request: Mapping[str, Any]) -> tuple[int, float, int, bool]:
    assert sys.platform == "linux"
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        _become(request["arguments"], request["folder"])
    handle = os.pidfd_open(child)
    ended, _, _ = select.select([handle], [], [], request["seconds"])
    os.close(handle)
    if not ended:
        os.killpg(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    seconds = time.monotonic() - start
    return os.waitstatus_to_exitcode(status), seconds, usage.ru_maxrss << 10, not ended


def _become(arguments: Sequence[str], folder: str) -> NoReturn:
    """Be the program, in the forked process."""
    status = 1
    try:
        os.setpgid(0, 0)
        os.chdir(folder)
        os.environ["HOME"] = folder
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for number, path in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
        for kind, limit in LIMITS.items():
            resource.setrlimit(kind, (limit, limit))
        sys.argv = list(arguments)
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except BaseException:  # noqa: BLE001  # what Python does with what nobody has caught
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    serve()
