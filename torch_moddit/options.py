"""What the commands share: the options that name a model, and how they end."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Final

import click

from moddit.checkpoint.hub import find_checkpoint
from moddit.checkpoint.sources import Sources
from moddit.errors import ModditError
from moddit.files import absolute, new_file
from moddit.paths import expand
from moddit.record import Keys, Origin, decode, read_json
from moddit.text import printable_lines


class PathType(click.Path):
    """A path in which `~` stands for a home folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(expand(str(value)), param, ctx)


FOLDER: Final = PathType(exists=True, file_okay=False, path_type=Path)
PICTURES: Final = PathType(exists=True, path_type=Path)
OUTPUT: Final = PathType(path_type=Path)
CHOICE: Final = "source.json"  # in the folder of a run

column_option: Final = click.option(
    "--caption-column",
    "column",
    metavar="NAME",
    help='Field of metadata that has the caption [default: "text", or of classes "label"].',
)


@dataclass(frozen=True)
class ModelChoice:
    """What the options say that name a model."""

    model: str
    base: str | None
    revision: str | None
    variant: str | None

    def find(self) -> Sources:
        """Find the model, and download it if need be; raises as `find_checkpoint`."""
        return find_checkpoint(self.model, base=self.base, revision=self.revision, variant=self.variant).sources

    def write(self, folder: Path) -> None:
        """Write it into the folder of a run, which may be used from elsewhere; raises StorageError."""
        model, base = _anywhere(self.model), None if self.base is None else _anywhere(self.base)
        with new_file(folder / CHOICE, overwrite=True) as file:
            file.write((json.dumps({**asdict(self), "model": model, "base": base}, indent=2) + "\n").encode())

    @classmethod
    def read(cls, folder: Path) -> ModelChoice:
        """Read what a run has written; raises MissingError or FormatError."""
        origin = Origin("finetune", str(folder / CHOICE), "name the model that was trained with --model")
        return decode(read_json(folder / CHOICE, origin, absent=origin.advice), cls, origin, Keys.EXACT)


def _anywhere(place: str) -> str:
    path = expand(place)
    return str(absolute(path)) if os.path.lexists(path) else place


def model_options(*, required: bool = True) -> Callable[[Any], Any]:
    """Add --model, --base, --revision and --variant, and hand them on as `choice`, None without a model."""

    def add(command: Any) -> Any:
        @wraps(command)
        def collect(
            *, model: str | None, base: str | None, revision: str | None, variant: str | None, **others: Any
        ) -> Any:
            return command(None if model is None else ModelChoice(model, base, revision, variant), **others)

        decorated: Any = collect
        for option in (
            click.option("--variant", metavar="NAME", help="Read model.NAME.safetensors where there is one, as fp16."),
            click.option("--revision", metavar="REV", help="Branch, tag or commit of --model on the Hub."),
            click.option("--base", metavar="FOLDER|ID", help="Pipeline that has the components which --model has not."),
            click.option("--model", required=required, metavar="FOLDER|ID", help="Checkpoint, as convert's --hf-path."),
        ):
            decorated = option(decorated)
        return decorated

    return add


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
