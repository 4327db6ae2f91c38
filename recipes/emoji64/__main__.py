"""Command line of the recipe: run every stage, or one; a stage whose output exists is skipped."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import diffusers
import torch
import transformers

from moddit.errors import InputError
from recipes.emoji64.recipe import FULL, SMOKE, STAGES, Recipe


def main() -> int:
    """Parse the command line and run the stages; return 1 after an error that the user can mend."""
    parser = argparse.ArgumentParser(prog="python -m recipes.emoji64", description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for everything the stages write")
    parser.add_argument("--smoke", action="store_true", help="a minute's run that checks every stage")
    parser.add_argument("--stage", choices=STAGES, action="append", help="run only this stage (may be repeated)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    arguments = parser.parse_args()
    if not sys.stderr.isatty():
        for library in (diffusers, transformers):
            library.utils.logging.disable_progress_bar()  # of loading weights, which would fill a log
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    try:
        recipe = Recipe(arguments.work, SMOKE if arguments.smoke else FULL)
        for name in arguments.stage or STAGES:
            STAGES[name](recipe)
    except InputError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
