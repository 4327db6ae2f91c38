"""`python -m mlx_moddit`, and the command `mlx_moddit`."""

import sys
from functools import partial
from pkgutil import resolve_name

from moddit.signals import run_program


def main() -> int:
    """Run the command line; return the exit status."""
    return run_program(lambda: partial(resolve_name("mlx_moddit.cli:main"), prog_name="mlx_moddit"))


if __name__ == "__main__":
    sys.exit(main())
