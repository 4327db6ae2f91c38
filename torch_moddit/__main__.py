"""`python -m torch_moddit`: the command line of the fine-tuning."""

import sys
from collections.abc import Callable

from moddit.signals import run_program


def main() -> int:
    """Run the command line; return the exit status."""
    return run_program(_load)


def _load() -> Callable[[], int]:
    from torch_moddit import cli

    return cli.main


if __name__ == "__main__":
    sys.exit(main())
