"""`python -m convert`: from a checkpoint to a bundle."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Final

import click
from tqdm import tqdm

from convert.conversion import convert
from convert.mlx.layout import Recipe
from convert.mlx.quantize import BITS, GROUP_SIZES
from convert.precision import DTYPES
from convert.summary import Summary
from moddit.errors import ModditError

SOURCES: Final = ("hf-checkpoint",)
BACKENDS: Final = ("mlx",)
_STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option("--from", "source_kind", required=True, type=click.Choice(SOURCES), help="Layout of the checkpoint.")
@click.option(
    "--hf-path",
    metavar="FOLDER|ID",
    help="Diffusers pipeline folder, or id on the Hugging Face Hub. [default: the embedded checkpoint]",
)
@click.option("--to", "backend", type=click.Choice(BACKENDS), default="mlx", show_default=True, help="Runtime.")
@click.option(
    "--out",
    "--mlx-path",
    type=click.Path(path_type=Path),
    default=Path("mlx_model"),
    show_default=True,
    help="Folder of the bundle, which must not exist.",
)
@click.option(
    "--dtype",
    type=click.Choice(list(DTYPES)),
    default="float16",
    show_default=True,
    help="Of the large weights; norms, embeddings, modulation, routers and the output projection are never narrowed.",
)
@click.option("-q", "--quantize", is_flag=True, help="Quantise the matrices of transformer and text encoder.")
@click.option(
    "--q-bits",
    type=click.Choice(list(map(str, BITS))),
    default="8",
    show_default=True,
    help="Bits of a weight; with -q.",
)
@click.option(
    "--q-group-size",
    type=click.Choice(list(map(str, GROUP_SIZES))),
    default="64",
    show_default=True,
    help="Weights that share a scale; with -q.",
)
@click.option("--overwrite", is_flag=True, help="Replace a bundle at --out, once the new one is whole.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def command(
    source_kind: str,
    hf_path: str | None,
    backend: str,
    out: Path,
    dtype: str,
    quantize: bool,
    q_bits: str,
    q_group_size: str,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Convert a checkpoint to a bundle for a runtime.

    Without --hf-path it converts the checkpoint that comes with moddit. The summary goes to standard output, progress
    to standard error.
    """
    assert source_kind in SOURCES
    assert backend in BACKENDS
    recipe = Recipe(dtype, int(q_bits) if quantize else None, int(q_group_size))
    with ExitStack() as bars:
        progress = partial(_progress_bar, bars)
        summary = Summary(convert(hf_path, out, recipe, overwrite=overwrite, progress=progress))
    click.echo(json.dumps(summary.to_json(), indent=2) if as_json else summary.to_text())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: by default those of the process.

    Returns:
        the exit status: 0, 1 on an error, 2 on wrong usage, 128 + number on a signal that stops a process.
    """
    try:
        with _stop_signals():
            command.main(arguments, prog_name="python -m convert", standalone_mode=False)
    except ModditError as error:
        click.echo(f"error: {error}", err=True)
        return 1
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except _StoppedError as stopped:
        click.echo("interrupted: nothing was kept", err=True)
        return 128 + stopped.number
    return 0


class _StoppedError(BaseException):
    """A signal asked the process to end; not an Exception, as KeyboardInterrupt is none."""

    def __init__(self, number: int):
        self.number = number


@contextmanager
def _stop_signals() -> Iterator[None]:
    """Turn the signals that end a process into an exception, so that all is cleaned up."""

    def stop(number: int, _: FrameType | None) -> None:
        for other in _STOP_SIGNALS:
            signal.signal(other, signal.SIG_IGN)  # a second one must not stop the cleaning up
        raise _StoppedError(number)

    before = [(number, signal.signal(number, stop)) for number in _STOP_SIGNALS]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def _progress_bar(bars: ExitStack, what: str, total: int) -> Callable[[int], object]:
    """Show bytes on standard error, if that is a terminal."""
    bar = bars.enter_context(
        tqdm(total=total, desc=what, unit="B", unit_scale=True, unit_divisor=1024, disable=None, file=sys.stderr)
    )
    update: Callable[[int], object] = bar.update
    return update
