"""The programs that write, each with what is there before it starts and what is there when it has ended."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from PIL import Image

from moddit.manifest import read_manifest, verify_files
from tests import tiny
from tests.forked import Event, Outcome, run_forked
from tests.shards import save_shards
from torch_moddit.runfiles import LOG, list_checkpoints, read_progress
from torch_moddit.runstate import read_state

STARTS: Final = ("absent", "old")  # what is at the target when a program starts
LEFTOVER: Final = re.compile(r"(^|/)\.[^/]+\.(partial|old|trash)(/|$)")

Files = Mapping[str, str]  # digests by path


@dataclass(frozen=True)
class Program:
    """A program that works in a folder, and what it makes of it."""

    name: str
    module: str  # of `python -m`
    options: tuple[str, ...]  # in which {folder} is the folder
    target: str  # below the folder
    units: tuple[str, ...]  # what appears whole or not at all; the first is what the program is started for
    starts: Mapping[str, Path]  # by STARTS: folders to begin with
    scratch: Path  # for runs that nothing disturbs
    check: Callable[[Path], None]  # of what is at the target, beyond the digests of the units

    def check_refusal(self, folder: Path, outcome: Outcome, reason: str) -> None:
        """Check that it ended with one error, which names what it could not write and says why, as an expression."""
        assert outcome.status == 1, outcome.errors
        assert "Traceback" not in outcome.errors, outcome.errors
        errors = [line for line in outcome.errors.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, outcome.errors
        assert str(folder / self.target) in errors[0]
        assert re.search(reason, errors[0]), errors[0]

    def arguments(self, folder: Path) -> list[str]:
        return [option.format(folder=folder) for option in self.options]

    def command(self, folder: Path) -> list[str]:
        return [sys.executable, "-m", self.module, *self.arguments(folder)]

    def begin(self, folder: Path, start: str) -> Path:
        """Make a folder for the program to start in."""
        return Path(shutil.copytree(self.starts[start], folder))

    def run(self, folder: Path, event: Event | None = None, more: Sequence[str] = ()) -> Outcome:
        """Run it to its end, or to what an event makes of it, with more options."""
        return run_forked(self.module, [*self.arguments(folder), *more], event)

    @cached_property
    def new(self) -> Files:
        """What a run leaves that nothing disturbs, whatever it starts from."""
        found = []
        for start in STARTS:
            folder = self.begin(self.scratch / start, start)
            outcome = self.run(folder)
            assert outcome.status == 0, outcome.errors
            found.append(read(folder))
        assert found[0] == found[1]
        return found[0]

    def judge(self, folder: Path, start: str, *, may_leave: bool) -> str:
        """Check that all there is in the folder is whole.

        Args:
            folder: in which the program has worked.
            start: what it has started from.
            may_leave: whether something half written may lie beside the units, under a name of its own.

        Returns:
            which of absent, old and new the first unit is.
        """
        found, old = read(folder), read(self.starts[start])
        leftovers = [name for name in found if LEFTOVER.search(name)]
        assert may_leave or not leftovers, leftovers
        states = []
        for unit in self.units:
            part = within(found, unit)
            kinds = {"absent": {}, "old": within(old, unit), "new": within(self.new, unit)}
            states.append([name for name, files in kinds.items() if files == part])
            assert states[-1], f"{unit} is neither of {', '.join(kinds)}: {sorted(part)}"
        others = {
            name: digest for name, digest in old.items() if not any(within({name: ""}, item) for item in self.units)
        }
        assert others.items() <= found.items()
        self.check(folder / self.target)
        return states[0][0]

    def check_next(self, folder: Path) -> None:
        """Check that the next run ends with what an undisturbed one leaves, and nothing else.

        What was moved aside in a swap is to come back first, for a next run that may not replace it.
        """
        unit = folder / self.units[0]
        if not unit.exists() and list(unit.parent.glob(f".{unit.name}.*.old")):
            options = [option for option in self.arguments(folder) if option != "--overwrite"]
            self.check_refusal(folder, run_forked(self.module, options), "exists already")
            assert self.judge(folder, "old", may_leave=False) == "old"
        outcome = self.run(folder)
        assert outcome.status == 0, outcome.errors
        found = read(folder)
        changed = {name for name in found.keys() | self.new.keys() if found.get(name) != self.new.get(name)}
        assert not changed, changed


def read(folder: Path) -> Files:
    """Digest all files of a folder, without times, and without packages, in which coremltools draws identifiers."""
    files = {
        path.relative_to(folder).as_posix(): hashlib.sha256(_read(path)).hexdigest()
        for path in folder.rglob("*")
        if not path.is_dir()
    }
    empty = [path for path in folder.rglob("*") if path.is_dir() and next(path.iterdir(), None) is None]
    return {**files, **{path.relative_to(folder).as_posix(): "empty folder" for path in empty}}


def _read(path: Path) -> bytes:
    if any(part.endswith(".mlpackage") for part in path.parts):
        return b""
    content = path.read_bytes()
    if path.name == "manifest.json":
        return re.sub(rb'"(created|fingerprint|sha256)": "[^"]*"', b"", content)
    return re.sub(rb', "seconds": [0-9.]+', b"", content) if path.name == LOG else content


def within(files: Files, unit: str) -> Files:
    return {name: digest for name, digest in files.items() if name == unit or name.startswith(f"{unit}/")}


def check_bundle(folder: Path) -> None:
    """Check that a bundle has the files that its manifest tells of."""
    if folder.exists():
        verify_files(folder, read_manifest(folder), hashes=True)


def check_run(folder: Path) -> None:
    """Check that each checkpoint of a run can be resumed from, and that each row of its log but the last is whole."""
    for checkpoint in list_checkpoints(folder):
        assert read_progress(checkpoint, {}) == int(checkpoint.name)
        assert read_state(checkpoint).keys() >= {"trainee", "average"}
    log = folder / LOG
    rows = log.read_text().split("\n")[:-1] if log.exists() else []
    assert [json.loads(row)["step"] for row in rows] == list(range(1, len(rows) + 1))


class Programs:
    """All programs with tiny models, each made when it is first asked for."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self._made: dict[str, Program] = {}

    def __getitem__(self, name: str) -> Program:
        if name not in self._made:
            self._made[name] = _MAKERS[name](self, name)
        return self._made[name]

    @cached_property
    def conversion(self) -> tuple[str, ...]:
        routed = tiny.save_pipeline(self.scratch / "routed")
        return "--from", "hf-checkpoint", "--hf-path", str(routed)

    @cached_property
    def coreml_conversion(self) -> tuple[str, ...]:
        return (*self.conversion, "--to", "coreml", "--max-sequence-length", "16")

    @cached_property
    def mlx(self) -> str:
        _run("convert", *self.conversion, "--out", self.scratch / "mlx")
        return str(self.scratch / "mlx")

    def make_converter(self, name: str) -> Program:
        conversion = {
            "convert": self.conversion,
            "coreml": (*self.coreml_conversion, "--no-verify"),
            "coreml verified": self.coreml_conversion,
        }[name]
        starts = self._starts(name)
        _run("convert", *self.conversion, "--dtype", "float32", "--out", starts["old"] / "out")
        options = (*conversion, "--out", "{folder}/out", "--overwrite")
        return Program(name, "convert", options, "out", ("out",), starts, self._undisturbed(name), check_bundle)

    def make_generator(self, name: str) -> Program:
        starts = self._starts(name)
        size = ("--height", "32", "--width", "32")
        command = ("generate", "--model", self.mlx, *size, "--overwrite")
        _run("mlx_moddit", *command, "--prompt", "a", "--steps", "1", "--output", starts["old"] / "a.png")
        options = (*command, "--prompt", "a red circle", "--steps", "2", "--output", "{folder}/a.png")
        return Program(
            name, "mlx_moddit", options, "a.png", ("a.png",), starts, self._undisturbed(name), lambda _: None
        )

    def make_measurer(self, name: str) -> Program:
        starts = self._starts(name)
        (starts["old"] / "report.json").write_text("{}")
        command = ("sensitivity", "--model", self.mlx, "--size", "32x32", "--steps", "1", "--num-images", "1")
        options = (*command, "--quant-report", "{folder}/report.json", "--overwrite")
        units = ("report.json",)
        return Program(name, "mlx_moddit", options, units[0], units, starts, self._undisturbed(name), lambda _: None)

    def make_finetuner(self, name: str) -> Program:
        starts = self._starts(name)
        shutil.copytree(tiny.save_pipeline(self.scratch / "other"), starts["old"] / "run" / "model")
        dense = tiny.save_pipeline(self.scratch / "dense", kind="alpha", routed=False)
        data = save_shards(self.scratch / "data", dense)
        inputs = ("--model", str(dense), "--data", str(data), "--batch-size", "2", "--caption-dropout", "0")
        often = ("--warmup", "1", "--steps", "3", "--target", "0.8", "--save-every", "1", "--log-every", "1")
        options = (*inputs, *often, "--out", "{folder}/run", "--overwrite")
        units = ("run/model",)
        return Program(name, "torch_moddit", options, "run", units, starts, self._undisturbed(name), check_run)

    def make_preparer(self, name: str) -> Program:
        starts = self._starts(name)
        dense, images = tiny.save_pipeline(self.scratch / "encoders", routed=False), self.scratch / "images"
        images.mkdir()
        for index in range(3):
            Image.new("RGB", (20, 24), (80 * index, 0, 99)).save(images / f"{index}.png")
            (images / f"{index}.txt").write_text("a red circle")
        inputs = ("--model", str(dense), "--images", str(images), "--size", "16x16", "--shard-size", "2")
        _run("torch_moddit.prepare", *inputs, "--out", starts["old"] / "data")
        shards = [f"data/16x16-0000{index}.{kind}.safetensors" for index in (1, 0) for kind in ("text", "latents")]
        for shard in shards[:2]:  # the others stay as they are
            (starts["old"] / shard).unlink()
        units = (*shards, "data/null.safetensors", "data/dataset.json")
        options = (*inputs, "--out", "{folder}/data")
        undisturbed = self._undisturbed(name)
        return Program(name, "torch_moddit.prepare", options, "data", units, starts, undisturbed, lambda _: None)

    def make_verifier(self, name: str) -> Program:
        starts = self._starts(name)
        _run("convert", *self.coreml_conversion, "--out", starts["absent"] / "bundle")
        (starts["absent"] / "bundle" / "parity.json").unlink()
        shutil.copytree(starts["absent"], starts["old"], dirs_exist_ok=True)
        command = ("verify", "--prompt", "a red circle", "--steps")
        _run("convert", *command, "2", starts["old"] / "bundle")
        options = (*command, "1", "{folder}/bundle")
        reports = ("parity.json", "verify-reference.png", "verify-fp32.png", "verify-fp16.png")
        units = tuple(f"bundle/{report}" for report in reports)
        return Program(name, "convert", options, "bundle", units, starts, self._undisturbed(name), check_bundle)

    def _starts(self, name: str) -> dict[str, Path]:
        starts = {start: self.scratch / "starts" / name / start for start in STARTS}
        for folder in starts.values():
            folder.mkdir(parents=True)
        return starts

    def _undisturbed(self, name: str) -> Path:
        return self.scratch / "undisturbed" / name


_MAKERS: Final[Mapping[str, Callable[[Programs, str], Program]]] = {
    "convert": Programs.make_converter,
    "coreml": Programs.make_converter,
    "coreml verified": Programs.make_converter,
    "generate": Programs.make_generator,
    "sensitivity": Programs.make_measurer,
    "finetune": Programs.make_finetuner,
    "prepare": Programs.make_preparer,
    "verify": Programs.make_verifier,
}


def _run(module: str, *arguments: object) -> None:
    outcome = run_forked(module, list(map(str, arguments)))
    assert outcome.status == 0, outcome.errors
