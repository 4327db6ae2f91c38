"""Command line of the comparison: run every stage, or one; what is there is not done again."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch

from moddit.errors import ModditError
from recipes.comparison.evaluation import Evaluation
from recipes.comparison.methods import FULL, METHODS, SMOKE
from recipes.comparison.publish import publish
from recipes.comparison.report import write_report
from recipes.comparison.timing import time_missing
from recipes.comparison.training import train_missing
from recipes.comparison.worlds import WORLDS
from recipes.runs import make_parser

STAGES: Final[Mapping[str, Callable[[Evaluation], None]]] = {
    "train": train_missing,
    "evaluate": Evaluation.run,
    "time": time_missing,
    "report": write_report,
}


def main() -> int:
    """Parse the command line and run the stages; return 1 after an error that the user can mend."""
    parser = make_parser("recipes.comparison", __doc__, STAGES)
    parser.add_argument("--world", choices=WORLDS, required=True, help="what the models draw")
    parser.add_argument("--world-work", type=Path, help="folder of the world's own recipe (default: WORK/world)")
    parser.add_argument("--only", choices=METHODS, action="append", help="only this method (may be repeated)")
    parser.add_argument("--prompts", type=int, help="held-out prompts (default: 500)")
    parser.add_argument("--seeds", type=int, help="seeds of noise (default: 3)")
    parser.add_argument("--steps", type=int, action="append", help="of pictures; the first is what FLOPs are shares of")
    parser.add_argument("--trainings", type=int, help="seeds of training (default: 2)")
    parser.add_argument("--training-steps", type=int, help="of every training (default: the world's)")
    parser.add_argument("--publish", type=Path, metavar="REPOSITORY", help="only put the report into the repository")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    chosen = {name: getattr(arguments, name) for name in ("prompts", "seeds", "trainings", "steps")}
    scale = replace(SMOKE if arguments.smoke else FULL, **{name: value for name, value in chosen.items() if value})
    if arguments.training_steps:
        scale = replace(scale, training={**scale.training, "steps": arguments.training_steps})
    world = WORLDS[arguments.world]()(arguments.world_work or arguments.work / "world", is_smoke=arguments.smoke)
    evaluation = Evaluation(world, arguments.work, scale, arguments.only or ())
    try:
        if arguments.publish:
            publish(arguments.work, arguments.publish)
            return 0
        for name in arguments.stage or STAGES:
            STAGES[name](evaluation)
    except ModditError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
