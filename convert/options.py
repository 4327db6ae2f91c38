"""Options that the commands of every target share: which checkpoint, and where its bundle goes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import click

from moddit.checkpoint.sources import LoraSource
from moddit.paths import expand

SOURCES: Final = ("hf-checkpoint",)

Decorator = Callable[[Any], Any]


class LoraType(click.ParamType[LoraSource]):
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
            self.fail(f"{scale!r} is not a scale, want FILE or FILE:NUMBER such as style.safetensors:0.8", param, ctx)
        return LoraSource(expand(path), strength)


def source_option(**settings: Any) -> Decorator:
    """Add --from, which says how a checkpoint is laid out, and is not passed on while there is one layout."""
    return click.option(
        "--from", type=click.Choice(SOURCES), expose_value=False, help="Layout of the checkpoint.", **settings
    )


def checkpoint_options(command: Any) -> Any:
    """Add --from, `hf_path`, and what else `find_checkpoint` takes, under the names that it has there."""
    return add_options(
        command,
        source_option(default=SOURCES[0], show_default=True),
        click.option(
            "--hf-path",
            metavar="FOLDER|ID",
            help="Diffusers pipeline folder, its transformer alone, a .safetensors or .pth file with PixArt's own "
            "names, or an id on the Hugging Face Hub (owner/name or owner/name@revision). [default: the embedded "
            "checkpoint]",
        ),
        click.option(
            "--base",
            metavar="FOLDER|ID",
            help="Pipeline that has the components which --hf-path has not: text encoder, tokenizer, VAE, scheduler.",
        ),
        click.option("--revision", metavar="REV", help="Branch, tag or commit of --hf-path on the Hub."),
        click.option(
            "--variant",
            metavar="NAME",
            help="Read model.NAME.safetensors where a component has it, such as fp16. [default: the plain files]",
        ),
        click.option(
            "--lora",
            "loras",
            type=LoraType(),
            multiple=True,
            help="Adapter to merge into the transformer, with its strength; may be repeated. [default scale: 1]",
        ),
        click.option(
            "--image-size",
            type=click.IntRange(1),
            metavar="PIXELS",
            help="Side of the pictures that the transformer was trained on, if a file with PixArt's own names does not "
            "say.",
        ),
        click.option(
            "--max-sequence-length",
            type=click.IntRange(1),
            metavar="TOKENS",
            help="Longest text. [default: the pipeline's, 120 for PixArt-alpha and 300 for Sigma]",
        ),
    )


def output_options(folder: str) -> Decorator:
    """Add `out`, which is `folder` if it is not given, `overwrite` and `as_json`."""
    return lambda command: add_options(
        command,
        click.option(
            "--out",
            "--mlx-path",
            metavar="FOLDER",
            default=folder,
            show_default=True,
            help="Folder of the bundle, which must not exist.",
        ),
        click.option("--overwrite", is_flag=True, help="Replace a bundle at --out, once the new one is whole."),
        click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON."),
    )


def add_options(command: Any, *options: Decorator) -> Any:
    """Add options in the order in which help lists them."""
    for option in reversed(options):
        command = option(command)
    return command
