"""`python -m torch_moddit`: the command line of the fine-tuning."""

import sys
from functools import partial
from pkgutil import resolve_name

from moddit.signals import run_program


def main() -> int:
    """Run the command line; return the exit status."""
    return run_program(partial(resolve_name, "torch_moddit.cli:main"))


if __name__ == "__main__":
    sys.exit(main())
