"""`python -m torch_moddit.prepare`: encode pictures and captions once, for `python -m torch_moddit.finetune --data`.

From Python, what the command does is `torch_moddit.encoding.Encoding(sources, output, cut).run(samples)`.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the imports below: they take seconds, in which a signal must find its handler
    import sys
    from functools import partial
    from pkgutil import resolve_name

    from moddit.signals import run_program

    sys.exit(run_program(partial(resolve_name, "torch_moddit.prepare:main")))

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import click
import torch
from accelerate import PartialState
from transformers.utils.logging import disable_progress_bar

from moddit.bins import parse_size
from moddit.checkpoint.description import describe
from moddit.conditioning import Label
from moddit.text import printable
from torch_moddit.encoding import Cut, Encoding, Report
from torch_moddit.options import OUTPUT, PICTURES, ModelChoice, column_option, model_options, run
from torch_moddit.samples import list_samples

_DTYPES: Final[Mapping[str, torch.dtype | str]] = {
    "auto": "auto",
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


@click.command(context_settings={"show_default": True, "max_content_width": 120})
@model_options()
@click.option("--images", type=PICTURES, required=True, help="Folder of pictures and captions, or a tar file.")
@click.option("--out", "output", type=OUTPUT, required=True, help="Folder of the dataset.")
@column_option
@click.option(
    "--size",
    "sizes",
    metavar="HEIGHTxWIDTH",
    multiple=True,
    help="Pixels that pictures are scaled and cropped to, the nearest of several; may be repeated [default: all sizes "
    "that the model was trained at].",
)
@click.option("--crops", type=click.IntRange(1, 64), default=1, help="Of each picture: the centre, others anywhere.")
@click.option("--flip", is_flag=True, help="Encode each crop mirrored, too.")
@click.option("--shard-size", type=click.IntRange(1, 1 << 20), default=256, help="Pictures of one file.")
@click.option("--batch-size", type=click.IntRange(1, 4096), default=2, help="Pictures or captions encoded at once.")
@click.option("--workers", type=click.IntRange(0, 256), default=0, help="Processes that read pictures.")
@click.option("--text-dtype", type=click.Choice(list(_DTYPES)), default="auto", help="Of the text encoder.")
@click.option("--skip-damaged", is_flag=True, help="Leave damaged pictures out, and list them at the end.")
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, help="Of the places of crops.")
def command(
    choice: ModelChoice,
    images: Path,
    output: Path,
    column: str | None,
    sizes: tuple[str, ...],
    crops: int,
    flip: bool,
    shard_size: int,
    batch_size: int,
    workers: int,
    text_dtype: str,
    skip_damaged: bool,
    seed: int,
) -> None:
    """Encode pictures and captions with a model's VAE and text encoder, for finetune --data.

    Captions are those of metadata.jsonl or metadata.csv ("file_name" and "text" a line), of NAME.txt beside NAME.png,
    or of webdataset's .tar files; a model of classes takes the names of folders, too. The same command goes on where it
    was stopped: a shard is whole or not there.
    """
    if not sys.stderr.isatty():
        disable_progress_bar()  # of loading weights, which would fill a log
    sources = choice.find()
    spec = describe(sources).spec
    cut = Cut.of(spec, list(map(parse_size, sizes)), crops=crops, flip=flip, shard_size=shard_size, seed=seed)
    samples = list_samples(images, are_classes=spec.conditioning.KIND == Label.KIND, column=column)
    encoding = Encoding(
        sources,
        output,
        cut,
        device=PartialState().device,
        text_dtype=_DTYPES[text_dtype],
        batch_size=batch_size,
        workers=workers,
        skip_damaged=skip_damaged,
    )
    _tell(encoding.run(samples))
    click.echo(output)


def _tell(report: Report) -> None:
    for name, reason in report.skipped.items():
        click.echo(f"left out {printable(name)}: {printable(reason)}", err=True)
    views = f", {report.views} views of each" if report.views > 1 else ""
    counts = {"left out": len(report.skipped), "enlarged": report.enlarged, "without words": report.empty}
    others = "".join(f", {count} {what}" for what, count in counts.items() if count)
    click.echo(f"{report.pictures} pictures{views} in {report.sizes} sizes{others}", err=True)


def main() -> int:
    """Run the command of this process's arguments; return 0, 1 on an error, 2 on wrong usage."""
    return run(command)


__all__ = ["command", "main"]
