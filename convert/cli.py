"""`python -m convert`: from a checkpoint to a bundle for `mlx` or `coreml`, and `verify`: is it what it should be?"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Final

import click
from tqdm import tqdm

from convert import summary
from convert.backends import Write, coreml_writer, mlx_writer
from convert.conversion import Conversion, check_out, convert
from convert.coreml.choices import Choices as CoreMLChoices
from convert.coreml.choices import Routing
from convert.coreml.compress import Scheme
from convert.mlx.options import storage_options, take_choices
from convert.options import checkpoint_options, output_options, source_option
from convert.verify.command import command as verify_command
from moddit.bins import Size, parse_size
from moddit.checkpoint.hub import find_checkpoint
from moddit.errors import ModditError, ValueRangeError
from moddit.paths import expand
from moddit.signals import end_on_stop
from moddit.text import printable_lines

TARGETS: Final = ("mlx", "coreml")  # runtimes, by the names of their commands


class SizeType(click.ParamType[Size]):
    """A picture size such as 512x768, height first."""

    name = "HxW"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Size:
        if isinstance(value, tuple):
            return value
        try:
            return parse_size(str(value))
        except ValueRangeError as error:
            self.fail(str(error).partition("] ")[2], param, ctx)


@click.command(
    add_help_option=False,  # it is the target's
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
)
@source_option(required=True)
@click.option("--to", "target", type=click.Choice(TARGETS), default="mlx")
def options_first(target: str) -> None:
    """Parse the form without a command's name, for which all but --from and --to are the target's."""


class Targets(click.Group):
    """Commands by target; arguments that start with an option are those of the target that --to names."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0].startswith("-") and args[0] not in ctx.help_option_names:
            older = options_first.make_context(ctx.info_name, args)
            args = [older.params["target"], *older.args]
        return super().parse_args(ctx, args)


@click.group(
    cls=Targets,
    epilog="`python -m convert --from hf-checkpoint --to TARGET [OPTIONS]` is `python -m convert TARGET [OPTIONS]`; "
    "without --to the target is mlx.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
def command() -> None:
    """Convert a checkpoint to a bundle for a runtime, or verify a bundle."""


@command.command("mlx")
@checkpoint_options
@storage_options
@output_options("mlx_model")
def mlx_command(**options: Any) -> None:
    """Convert a checkpoint to a bundle for MLX.

    Without --hf-path it converts the checkpoint that comes with moddit. The summary goes to standard output, progress
    to standard error.
    """
    _convert(mlx_writer(take_choices(options)), **options)


@command.command("coreml")
@checkpoint_options
@click.option(
    "--size",
    "sizes",
    type=SizeType(),
    multiple=True,
    help="Picture size in pixels, height first; may be repeated. [default: the size the model was trained at]",
)
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(1),
    multiple=True,
    default=(2,),
    show_default=True,
    help="Samples of one call; 2 runs both halves of guidance. May be repeated.",
)
@click.option(
    "--routing",
    type=click.Choice([item.value for item in Routing]),
    default="rows",
    show_default=True,
    help="Move tokens by gather and scatter, or by matrix products (for the Neural Engine; small sizes only).",
)
@click.option(
    "--compress",
    type=click.Choice([item.value for item in Scheme]),
    default="none",
    show_default=True,
    help="Store the matrices of transformer and text encoder in fewer bits.",
)
@click.option(
    "--chunks",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Packages to divide the transformer into.",
)
@click.option(
    "--max-functions",
    type=click.IntRange(1),
    help="At most so many functions for each size and batch; regions with similar capacities share one.",
)
@click.option(
    "--keep",
    type=click.FloatRange(0.1, 1),
    metavar="SHARE",
    help="Keep more tokens than a routed model was trained to, this share in the mean. [default: as trained]",
)
@click.option("--allow-fewer", is_flag=True, help="With --max-functions, also keep fewer tokens than trained.")
@click.option(
    "--verify/--no-verify",
    default=True,
    show_default=True,
    help="Run every function and compare it with PyTorch; a bundle that differs is not kept.",
)
@output_options("coreml_model")
def coreml_command(sizes: tuple[Size, ...], batches: tuple[int, ...], verify: bool, **options: Any) -> None:
    """Convert a checkpoint to a bundle for Core ML.

    Without --hf-path it converts the checkpoint that comes with moddit. The summary goes to standard output, progress
    to standard error. `python -m convert verify` checks the bundle again.
    """
    choices = CoreMLChoices(
        sizes=tuple(dict.fromkeys(sizes)),
        batches=tuple(dict.fromkeys(batches)),
        routing=Routing(options.pop("routing")),
        scheme=Scheme(options.pop("compress")),
        **{name: options.pop(name) for name in ("chunks", "max_functions", "allow_fewer", "keep")},
    )
    if choices.allow_fewer and choices.max_functions is None:
        raise click.UsageError("--allow-fewer changes what --max-functions does, which is not given")
    _convert(coreml_writer(choices, verify=verify), **options)


command.add_command(verify_command, "verify")


def _convert(write: Write, *, hf_path: str | None, out: str, overwrite: bool, as_json: bool, **choices: Any) -> None:
    """Convert what the shared options say; `choices` are those of `find_checkpoint`."""
    folder = expand(out)
    check_out(folder, overwrite=overwrite)  # before anything is downloaded
    checkpoint = find_checkpoint(hf_path, **choices)
    with ExitStack() as bars:
        progress, report = partial(_progress_bar, bars), partial(_summarise, as_json=as_json)
        text = convert(checkpoint, folder, write, report, overwrite=overwrite, progress=progress)
    click.echo(text)


def _summarise(conversion: Conversion, *, as_json: bool) -> str:
    facts = summary.summarise(conversion)
    return json.dumps(facts, indent=2) if as_json else summary.write(facts, conversion.manifest)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 0, 1 on an error, 2 on wrong usage, 128 + number on a signal that stops a process."""
    return end_on_stop(partial(_run, list(sys.argv[1:] if arguments is None else arguments)))


def _run(arguments: list[str]) -> int:
    try:
        command.main(arguments, prog_name="python -m convert", standalone_mode=False)
    except ModditError as error:
        click.echo(f"error: {printable_lines(str(error))}", err=True)
        return 1
    except click.ClickException as error:
        error.show()
        return error.exit_code
    return 0


def _progress_bar(bars: ExitStack, what: str, total: int) -> Callable[[int], object]:
    """Show bytes on standard error, if that is a terminal."""
    bar = bars.enter_context(
        tqdm(total=total, desc=what, unit="B", unit_scale=True, unit_divisor=1024, disable=None, file=sys.stderr)
    )
    return bar.update
