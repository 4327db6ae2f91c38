"""What the commands share."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import click

from moddit.errors import ModditError
from moddit.text import printable_lines


@contextmanager
def exit_on_error(label: str = "") -> Iterator[None]:
    """Print one line for what a user or a file caused, after the label of this process, and exit."""
    try:
        yield
    except ModditError as error:
        click.echo(f"{label}error: {printable_lines(str(error))}", err=True)
        sys.exit(1)
