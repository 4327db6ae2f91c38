"""`python -m torch_moddit`: the command line of the fine-tuning."""

import sys

from moddit.signals import end_on_stop, uninterrupted


def main() -> int:
    """Run the command line; a signal that asks it to end leaves nothing half written.

    Returns:
        the exit status.
    """
    return end_on_stop(_run)


def _run() -> int:
    with uninterrupted():  # the libraries that this loads may swallow exceptions
        from torch_moddit import cli
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
