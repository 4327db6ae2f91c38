"""`python -m mlx_moddit`, and the command `mlx_moddit`."""

import sys
from collections.abc import Callable
from functools import partial

from moddit.signals import run_program


def main() -> int:
    """Run the command line; return the exit status."""
    return run_program(_load)


def _load() -> Callable[[], int]:
    from mlx_moddit import cli

    return partial(cli.main, prog_name="mlx_moddit")


if __name__ == "__main__":
    sys.exit(main())
