"""Command line of the recipe: run every stage, or one; a stage whose output exists is skipped."""

from __future__ import annotations

import sys
from pathlib import Path

import diffusers
import torch
import transformers

from moddit.errors import ModditError
from recipes.emoji64.recipe import FULL, SMOKE, STAGES, Recipe
from recipes.emoji64.teacher import save_teacher
from recipes.runs import make_parser


def main() -> int:
    """Parse the command line and run the stages; return 1 after an error that the user can mend."""
    parser = make_parser("recipes.emoji64", __doc__, STAGES)
    parser.add_argument("--publish", type=Path, metavar="REPOSITORY", help="only put the teacher into the repository")
    arguments = parser.parse_args()
    if not sys.stderr.isatty():
        for library in (diffusers, transformers):
            library.utils.logging.disable_progress_bar()  # of loading weights, which would fill a log
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    arguments.work.mkdir(parents=True, exist_ok=True)
    if arguments.publish:
        save_teacher(arguments.work, arguments.publish)
        return 0
    try:
        recipe = Recipe(arguments.work, SMOKE if arguments.smoke else FULL)
        for name in arguments.stage or STAGES:
            STAGES[name](recipe)
    except ModditError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
