"""Programs are killed at random moments: what they write is the old one, the new one, or absent, and no litter stays.

`tests/moddit/test_files.py` kills the writer at every line; here the whole programs die, in their imports, in the
libraries that they call, and while they write. Seeded, so that a failure can be had again; `make nightly` kills more.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from PIL import Image

from convert.cli import main
from moddit.files import recover
from moddit.manifest import read_manifest, verify_files
from tests.tiny import save_pipeline

SIGNALS: Final = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
SEED: Final = 20261125


@dataclass(frozen=True)
class Victim:
    """A program that writes `target`."""

    arguments: tuple[str, ...]  # of Python
    target: Path
    check: Callable[[Path], None]  # raises if what is there is not whole
    kept: frozenset[str]  # names beside the target that are no litter

    def kill(self, after: float, number: signal.Signals) -> int:
        """Start it, wait, kill it; return its exit status."""
        with subprocess.Popen(
            [sys.executable, *self.arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=_restore
        ) as process:
            try:
                process.wait(after)
            except subprocess.TimeoutExpired:
                process.send_signal(number)
            _, errors = process.communicate(timeout=120)
        if number != signal.SIGKILL and b"Traceback" in errors:
            # Python itself starts for some 50 ms before a program can say what to do with a signal
            assert b"site.py" in errors or b"<frozen " in errors or b"runpy" in errors, errors.decode()
        return process.returncode


def _restore() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest may itself run with it ignored


def check_bundle(folder: Path) -> None:
    verify_files(folder, read_manifest(folder), hashes=True)


def check_picture(path: Path) -> None:
    with Image.open(path) as image:
        image.load()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("source") / "model")


@pytest.fixture(scope="module")
def bundle(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bundle") / "mlx"
    assert main(["--from", "hf-checkpoint", "--hf-path", str(source), "--out", str(out)]) == 0
    return out


def converter(source: Path, folder: Path, *options: str) -> Victim:
    target = folder / "out"
    arguments = ("-m", "convert", "--from", "hf-checkpoint", "--hf-path", str(source), "--out", str(target))
    return Victim((*arguments, "--overwrite", *options), target, check_bundle, frozenset())


def generator(bundle: Path, folder: Path) -> Victim:
    target = folder / "a.png"
    settings = ("--prompt", "a red circle", "--steps", "2", "--height", "32", "--width", "32", "--overwrite")
    arguments = ("-m", "mlx_moddit", "generate", "--model", str(bundle), *settings, "-o", str(target))
    return Victim(arguments, target, check_picture, frozenset())


def torment(victim: Victim, count: int) -> dict[str, int]:
    """Kill a program again and again at random moments of its life; count what was there afterwards."""
    chance = random.Random(SEED)
    start = time.monotonic()
    assert victim.kill(600, signal.SIGKILL) == 0  # once to its end, to know how long it lives
    lifetime = time.monotonic() - start
    found = {"absent": 0, "whole": 0, "finished": 0}
    for _ in range(count):
        status = victim.kill(chance.uniform(0, 1.1 * lifetime), chance.choice(SIGNALS))
        recover(victim.target)
        names = {path.name for path in victim.target.parent.iterdir()}
        assert names - victim.kept <= {victim.target.name}
        if victim.target.exists():
            victim.check(victim.target)
        found["finished" if status == 0 else "whole" if victim.target.exists() else "absent"] += 1
        if chance.random() < 0.3 and victim.target.is_file():
            victim.target.unlink()
    print(victim.arguments[1], found)
    return found


def test_some_kills(source: Path, bundle: Path, tmp_path: Path) -> None:
    for name, victim in (
        ("convert", converter(source, tmp_path / "convert")),
        ("generate", generator(bundle, tmp_path / "generate")),
    ):
        (tmp_path / name).mkdir()
        assert sum(torment(victim, 6).values()) == 6  # each left nothing, or a whole target


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("name", "count"), [("convert", 150), ("generate", 80), ("coreml", 60), ("coreml verified", 30)]
)
def test_many_kills(name: str, count: int, source: Path, bundle: Path, tmp_path: Path) -> None:
    options = ("--to", "coreml", "--max-sequence-length", "16")
    victims = {
        "convert": converter(source, tmp_path),
        "generate": generator(bundle, tmp_path),
        "coreml": converter(source, tmp_path, *options, "--no-verify"),
        "coreml verified": converter(source, tmp_path, *options),
    }
    assert torment(victims[name], count)["finished"] < count
