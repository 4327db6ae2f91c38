"""Damage inputs of our programs at random, thousands of times, and count how they end: `make fuzz`.

    python -m tests.fuzz [--count 4730] [--seed 0] [--jobs 2] [--only "PROGRAM SEED"]

Exit status 1 if a program ended with a traceback or by a signal, took too long or too much memory, did not name what
was wrong, or accepted what the next one refuses.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tests.fuzz.inputs import make_inputs
from tests.fuzz.judge import Verdict, judge
from tests.fuzz.programs import Case, draw_cases


def run_cases(cases: Iterable[Case], *, jobs: int) -> Iterator[Verdict]:
    """Run cases, `jobs` at a time, and yield how each ended, in order."""
    with tempfile.TemporaryDirectory(prefix="moddit-fuzz-") as temporary, ThreadPoolExecutor(jobs) as pool:
        inputs = Path(temporary) / "inputs"
        make_inputs(inputs)
        yield from pool.map(partial(judge, inputs=inputs), cases)


def table(verdicts: Sequence[Verdict]) -> str:
    """Count how the cases of each program ended."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for verdict in verdicts:
        for name in (verdict.case.program, "all"):
            counts[name]["cases"] += 1
            counts[name]["accepted" if verdict.run.status == 0 else "refused"] += 1
            counts[name].update(fault.split(":")[0] for fault in verdict.faults)
    columns = sorted({column for row in counts.values() for column in row})
    lines = [f"{'':32}" + "".join(f"{column:>12}" for column in columns)]
    lines += [f"{name:32}" + "".join(f"{row[column]:12}" for column in columns) for name, row in counts.items()]
    slowest, largest = max(item.run.seconds for item in verdicts), max(item.run.peak_bytes for item in verdicts)
    return "\n".join([*lines, f"longest {slowest:.1f} s, largest {largest / 1e6:.0f} MB"])


def main() -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--count", type=int, default=4730)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", help="one case, as it was printed between brackets")
    options = parser.parse_args()
    cases = draw_cases(options.count, options.seed)
    if options.only is not None:
        cases = [Case(*options.only.rsplit(" ", 1))]
    start, verdicts = time.monotonic(), []
    for verdict in run_cases(cases, jobs=options.jobs):
        verdicts.append(verdict)
        if verdict.faults or options.only is not None:
            print(verdict, flush=True)
        if options.only is not None:
            print(verdict.run.errors)
    print(table(verdicts))
    print(f"{len(verdicts)} cases in {time.monotonic() - start:.0f} s")
    return int(any(verdict.faults for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
