"""`python -m convert`: from a checkpoint to a bundle; `python -m convert verify`: is the bundle what it should be?"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, Final

import click
from click.core import ParameterSource
from tqdm import tqdm

from convert.backends import Write, coreml_writer, mlx_writer
from convert.conversion import Conversion, check_out, convert
from convert.coreml.compress import Scheme
from convert.coreml.recipe import Recipe as CoreMLRecipe
from convert.coreml.recipe import Routing, Size
from convert.mlx.layout import Recipe as MLXRecipe
from convert.mlx.quantize import BITS, GROUP_SIZES
from convert.summary import Summary
from convert.verify.command import command as verify_command
from moddit.checkpoint.hub import find_checkpoint
from moddit.checkpoint.precision import DTYPES
from moddit.checkpoint.sources import LoraSource
from moddit.errors import ModditError
from moddit.paths import expand
from moddit.signals import end_on_stop
from moddit.text import printable_lines

SOURCES: Final = ("hf-checkpoint",)
BACKENDS: Final = ("mlx", "coreml")
VERIFY: Final = "verify"  # first word of the other command
# Options that mean something to one backend only, by the names of their parameters.
_OWN: Final = {
    "mlx": ("dtype", "quantize", "q_bits", "q_group_size"),
    "coreml": ("sizes", "batches", "routing", "compress", "chunks", "max_functions", "allow_fewer", "verify"),
}
# Options that say what the checkpoint is, as `find_checkpoint` has them.
_CHECKPOINT: Final = ("base", "revision", "variant", "loras", "image_size", "max_sequence_length")


class _SizeType(click.ParamType[Size]):
    """A picture size such as 512x768, height first."""

    name = "HxW"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Size:
        if isinstance(value, tuple):
            return value
        height, separator, width = str(value).partition("x")
        if not separator or not height.isdecimal() or not width.isdecimal():
            self.fail(f"{value!r} is not a size, want HEIGHTxWIDTH in pixels such as 512x768", param, ctx)
        return int(height), int(width)


class _LoraType(click.ParamType[LoraSource]):
    """An adapter and its strength, such as style.safetensors:0.8."""

    name = "FILE[:SCALE]"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> LoraSource:
        if isinstance(value, LoraSource):
            return value
        text = str(value)
        path, colon, scale = text.rpartition(":")
        if not colon or expand(text).exists():
            return LoraSource(expand(text))
        try:
            strength = float(scale)
        except ValueError:
            strength = math.nan
        if not path or not math.isfinite(strength):
            self.fail(
                f"{scale!r} is not a scale, want FILE or FILE:NUMBER such as style.safetensors:0.8",
                param,
                ctx,
            )
        return LoraSource(expand(path), strength)


@click.command(
    epilog="`python -m convert verify --help` tells how to check a bundle for Core ML.",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--from", "source_kind", required=True, type=click.Choice(SOURCES), help="Layout of the checkpoint.")
@click.option(
    "--hf-path",
    metavar="FOLDER|ID",
    help="Diffusers pipeline folder, its transformer alone, a .safetensors or .pth file with PixArt's own names, or an "
    "id on the Hugging Face Hub (owner/name or owner/name@revision). [default: the embedded checkpoint]",
)
@click.option(
    "--base",
    metavar="FOLDER|ID",
    help="Pipeline that has the components which --hf-path has not: text encoder, tokenizer, VAE, scheduler.",
)
@click.option("--revision", metavar="REV", help="Branch, tag or commit of --hf-path on the Hub.")
@click.option(
    "--variant",
    metavar="NAME",
    help="Read model.NAME.safetensors where a component has it, such as fp16. [default: the plain files]",
)
@click.option(
    "--lora",
    "loras",
    type=_LoraType(),
    multiple=True,
    help="Adapter to merge into the transformer, with its strength; may be repeated. [default scale: 1]",
)
@click.option(
    "--image-size",
    type=click.IntRange(1),
    metavar="PIXELS",
    help="Side of the pictures that the transformer was trained on, if a file with PixArt's own names does not say.",
)
@click.option(
    "--max-sequence-length",
    type=click.IntRange(1),
    metavar="TOKENS",
    help="Longest text. [default: the pipeline's, 120 for PixArt-alpha and 300 for Sigma]",
)
@click.option("--to", "backend", type=click.Choice(BACKENDS), default="mlx", show_default=True, help="Runtime.")
@click.option(
    "--out",
    "--mlx-path",
    metavar="FOLDER",
    help="Folder of the bundle, which must not exist. [default: mlx_model or coreml_model]",
)
@click.option(
    "--dtype",
    type=click.Choice(list(DTYPES)),
    default="float16",
    show_default=True,
    help="mlx: of the large weights; norms, embeddings, modulation, routers and the final projection keep theirs.",
)
@click.option("-q", "--quantize", is_flag=True, help="mlx: quantise the matrices of transformer and text encoder.")
@click.option(
    "--q-bits",
    type=click.Choice(list(map(str, BITS))),
    default="8",
    show_default=True,
    help="mlx: bits of a weight; with -q.",
)
@click.option(
    "--q-group-size",
    type=click.Choice(list(map(str, GROUP_SIZES))),
    default="64",
    show_default=True,
    help="mlx: weights that share a scale; with -q.",
)
@click.option(
    "--size",
    "sizes",
    type=_SizeType(),
    multiple=True,
    help="coreml: picture size in pixels, height first; may be repeated. [default: the size the model was trained at]",
)
@click.option(
    "--batch",
    "batches",
    type=click.IntRange(1),
    multiple=True,
    default=(2,),
    show_default=True,
    help="coreml: samples of one call; 2 runs both halves of guidance. May be repeated.",
)
@click.option(
    "--routing",
    type=click.Choice([item.value for item in Routing]),
    default="rows",
    show_default=True,
    help="coreml: move tokens by gather and scatter, or by matrix products (for the Neural Engine; small sizes only).",
)
@click.option(
    "--compress",
    type=click.Choice([item.value for item in Scheme]),
    default="none",
    show_default=True,
    help="coreml: store the matrices of transformer and text encoder in fewer bits.",
)
@click.option(
    "--chunks",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="coreml: packages to divide the transformer into.",
)
@click.option(
    "--max-functions",
    type=click.IntRange(1),
    help="coreml: at most so many functions for each size and batch; regions with similar capacities share one.",
)
@click.option("--allow-fewer", is_flag=True, help="coreml: with --max-functions, also keep fewer tokens than trained.")
@click.option(
    "--verify/--no-verify",
    default=True,
    show_default=True,
    help="coreml: run every function and compare it with PyTorch; a bundle that differs is not kept.",
)
@click.option("--overwrite", is_flag=True, help="Replace a bundle at --out, once the new one is whole.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@click.pass_context
def command(
    context: click.Context,
    /,
    source_kind: str,
    backend: str,
    out: str | None,
    overwrite: bool,
    as_json: bool,
    **choices: Any,
) -> None:
    """Convert a checkpoint to a bundle for a runtime.

    Without --hf-path it converts the checkpoint that comes with moddit. The summary goes to standard output, progress
    to standard error.
    """
    assert source_kind in SOURCES
    _refuse_foreign_options(context, backend)
    folder = expand(out or f"{backend}_model")
    write = _make_writer(backend, choices)
    check_out(folder, overwrite=overwrite)  # before anything is downloaded
    checkpoint = find_checkpoint(choices["hf_path"], **{name: choices[name] for name in _CHECKPOINT})
    with ExitStack() as bars:
        progress = partial(_progress_bar, bars)
        report = _json_summary if as_json else _text_summary
        text = convert(checkpoint, folder, write, report, overwrite=overwrite, progress=progress)
    click.echo(text)


def _json_summary(conversion: Conversion) -> str:
    return json.dumps(Summary(conversion).to_json(), indent=2)


def _text_summary(conversion: Conversion) -> str:
    return Summary(conversion).to_text()


def _refuse_foreign_options(context: click.Context, backend: str) -> None:
    """Raise UsageError if an option was given that the backend would ignore."""
    for other, names in _OWN.items():
        for parameter in context.command.params if other != backend else ():
            if parameter.name in names and context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE:
                raise click.UsageError(f"{parameter.opts[0]} belongs to --to {other}, not to --to {backend}", context)


def _make_writer(backend: str, choices: Mapping[str, Any]) -> Write:
    if choices["allow_fewer"] and choices["max_functions"] is None:
        raise click.UsageError("--allow-fewer changes what --max-functions does, which is not given")
    if backend == "mlx":
        bits = int(choices["q_bits"]) if choices["quantize"] else None
        return mlx_writer(MLXRecipe(choices["dtype"], bits, int(choices["q_group_size"])))
    recipe = CoreMLRecipe(
        sizes=tuple(dict.fromkeys(choices["sizes"])),
        batches=tuple(dict.fromkeys(choices["batches"])),
        routing=Routing(choices["routing"]),
        scheme=Scheme(choices["compress"]),
        chunks=choices["chunks"],
        max_functions=choices["max_functions"],
        allow_fewer=choices["allow_fewer"],
    )
    return coreml_writer(recipe, verify=choices["verify"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, or with "verify" as the first argument the other one.

    Args:
        arguments: by default those of the process.

    Returns:
        the exit status: 0, 1 on an error, 2 on wrong usage, 128 + number on a signal that stops a process.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    program, name = command, "python -m convert"
    if arguments[:1] == [VERIFY]:
        program, name, arguments = verify_command, f"{name} {VERIFY}", arguments[1:]
    return end_on_stop(partial(_run, program, name, arguments))


def _run(program: click.Command, name: str, arguments: list[str]) -> int:
    try:
        program.main(arguments, prog_name=name, standalone_mode=False)
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
    update: Callable[[int], object] = bar.update
    return update
