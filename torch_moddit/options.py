"""What the commands share: the options that name a model, and how they end."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from moddit.errors import ModditError
from moddit.paths import expand
from moddit.text import printable_lines


class PathType(click.Path):
    """A path in which `~` stands for a home folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(expand(str(value)), param, ctx)


FOLDER: Final = PathType(exists=True, file_okay=False, path_type=Path)
PICTURES: Final = PathType(exists=True, path_type=Path)
OUTPUT: Final = PathType(path_type=Path)

column_option: Final = click.option(
    "--caption-column",
    "column",
    metavar="NAME",
    help='Field of metadata that has the caption [default: "text", or of classes "label"].',
)


def model_options(command: Any) -> Any:
    """Add `model`, `base`, `revision` and `variant`, as `find_checkpoint` takes them."""
    for option in (
        click.option("--variant", metavar="NAME", help="Read model.NAME.safetensors where there is one, such as fp16."),
        click.option("--revision", metavar="REV", help="Branch, tag or commit of --model on the Hub."),
        click.option("--base", metavar="FOLDER|ID", help="Pipeline that has the components which --model has not."),
        click.option("--model", required=True, metavar="FOLDER|ID", help="Checkpoint, as --hf-path of convert."),
    ):
        command = option(command)
    return command


def run(command: click.Command) -> int:
    """Run a command with this process's arguments; return 0, 1 on an error, 2 on wrong usage."""
    try:
        command.main(standalone_mode=False)
    except ModditError as error:
        click.echo(f"error: {printable_lines(str(error))}", err=True)
        return 1
    except click.ClickException as error:
        error.show()
        return error.exit_code
    return 0
