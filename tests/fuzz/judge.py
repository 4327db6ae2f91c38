"""Run a case, and say what is wrong with how our program ended."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from moddit.manifest import MANIFEST_NAME
from moddit.text import printable
from tests.forked import Outcome, run_forked
from tests.fuzz.damage import ABSENT, damage
from tests.fuzz.programs import PROGRAMS, Case, change_option, list_files

SLOW_SECONDS: Final = 15.0
KILL_SECONDS: Final = 40.0
MOST_BYTES: Final = 2 << 30
STATUSES: Final = (0, 1, 2)  # done, failed, wrong usage
OVERFLOW: Final = "not finite"  # numbers too large to compute with show there alone, and no file is to blame for sure
SIZE: Final = "[request] a picture of"  # what is drawn afterwards may be too large for another model
# Names in a case's folder that are no litter after a failure: what a fine-tuning goes on from, what verify tells.
KEPT: Final[Mapping[str, re.Pattern[str]]] = {
    "convert": re.compile(r"in/model/(parity\.json|verify-\w+\.png)"),
    "mlx_moddit": re.compile(""),
    "torch_moddit.prepare": re.compile(r"out(/[\w.-]+(json|safetensors))?"),
    "torch_moddit.finetune": re.compile(r"out(/log\.jsonl|/checkpoints(/\d{8}(/.*)?)?)?"),
}


@dataclass(frozen=True)
class Verdict:
    """What a case did, and which kinds of faults that has."""

    case: Case
    what: str  # was damaged, and how
    run: Outcome
    faults: tuple[str, ...]

    def __str__(self) -> str:
        last = (self.run.errors.strip().splitlines() or [""])[-1]
        return (
            f"{', '.join(self.faults) or 'ok'} [{self.case.program} {self.case.seed}] {ascii(self.what)[:200]}: status "
            f"{self.run.status}, {self.run.seconds:.1f} s, {self.run.peak_bytes / 1e6:.0f} MB: {ascii(last)[:400]}"
        )


def judge(case: Case, inputs: Path) -> Verdict:
    """Make a damaged copy of an input, run the program, and the one that uses what it has written.

    Args:
        case: to run.
        inputs: whole, see `tests.fuzz.inputs`.
    """
    program, chance = PROGRAMS[case.program], case.chance
    with tempfile.TemporaryDirectory(dir=inputs.parent, prefix="case-") as temporary:
        folder = Path(temporary)
        shutil.copytree(inputs / program.reads, folder, dirs_exist_ok=True, copy_function=os.link)
        arguments = list(program.arguments)
        if program.help is not None:
            arguments, names = change_option(program, chance)
            what = f"{names[0]} {names[-1]}"
            names += [str(folder)] if names[-1] == "~" else []  # which is the home of what is run
        else:
            path = chance.choice(list_files(program, folder / "in"))
            content = path.read_bytes()
            path.unlink()  # the whole one has another link to it
            path.write_bytes(content)
            how = damage(path, chance)
            # of an absent file nobody knows the name, where several would do
            what, names = f"{path.relative_to(folder)}: {how}", [path.parent.name if how == ABSENT else path.name]
            names += ["[manifest]"] if path.name == MANIFEST_NAME else []
        before = _names(folder)
        run = _run(arguments, folder)
        faults = _faults(run, names)
        left = {name for name in _names(folder) - before if not KEPT[arguments[0]].fullmatch(name)}
        if run.status != 0 and left and not run.timed_out:
            faults.append(f"litter: {sorted(left)}")
        if run.status == 0 and program.then:
            run = _run(program.then, folder)
            is_late = run.status != 0 and not any(word in run.errors for word in (SIZE, OVERFLOW))
            faults += ["late"] * is_late + _faults(run, ())
        return Verdict(case, what, run, tuple(faults))


def _run(arguments: Sequence[str], folder: Path) -> Outcome:
    module, *rest = arguments
    return run_forked(module, rest, folder=folder, seconds=KILL_SECONDS)


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def _faults(run: Outcome, names: Sequence[str]) -> list[str]:
    text = run.output + run.errors
    found = {
        "traceback": "Traceback (most recent call last)" in text,
        "signal": run.status < 0 and not run.timed_out,
        "slow": run.seconds > SLOW_SECONDS,
        "memory": run.peak_bytes > MOST_BYTES,
        "status": run.status not in STATUSES and run.status >= 0,
        "nameless": run.status > 0 and bool(names) and not any(printable(name) in text for name in (*names, OVERFLOW)),
        "unprintable": not all(line.isprintable() for line in text.split("\n")),
    }
    return [name for name, is_so in found.items() if is_so]
