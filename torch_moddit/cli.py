"""`python -m torch_moddit.finetune`: turn a dense diffusers pipeline into a routed one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from accelerate import PartialState
from torch.utils.data import Dataset
from transformers.utils.logging import disable_progress_bar

from moddit.bounds import SIDE
from moddit.checkpoint.description import describe
from moddit.checkpoint.hub import find_checkpoint
from moddit.conditioning import Label
from moddit.errors import MissingError, ValueRangeError
from moddit.signals import Stopped
from moddit.spec import ModelSpec
from torch_moddit.conditioning import Components, teller
from torch_moddit.data import Item, PictureFolder
from torch_moddit.export import check_adapter, check_output, save_adapter, save_checkpoint
from torch_moddit.loading import load_checkpoint
from torch_moddit.model import RoutedTransformer
from torch_moddit.options import FOLDER, OUTPUT, PICTURES, column_option, model_options, run
from torch_moddit.pipeline import load_components
from torch_moddit.runfiles import list_checkpoints
from torch_moddit.settings import PRESETS, RANGES, FinetuneConfig, Mode, Target, Train, preset
from torch_moddit.shards import Encoders, Shards
from torch_moddit.targets import check_target
from torch_moddit.trainer import finetune

_FIELDS = {field.name: field for field in fields(FinetuneConfig)}
_PIXELS = click.IntRange(min=1, max=SIDE)
_TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class TargetType(click.ParamType[Target]):
    """One mean keep ratio, or several with commas between them."""

    name = "target"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Target:
        try:
            targets = tuple(map(float, str(value).split(",")))
            for target in targets:
                check_target(target)
        except ValueError:
            self.fail(f"{value!r} is not a number, nor several such as 0.9,0.8,0.7,0.6", param, ctx)
        except ValueRangeError as error:
            self.fail(str(error), param, ctx)
        return targets[0] if len(targets) == 1 else targets


def _setting(name: str, text: str) -> Callable[[Any], Any]:
    """Make the option of a number that the configuration has, with the range and the default there."""
    field, (least, most) = _FIELDS[name], RANGES[name]
    kind = click.IntRange(int(least), int(most)) if field.type == "int" else click.FloatRange(least, most)
    default = {"required": True} if field.default is MISSING else {"default": field.default}
    return click.option(f"--{name.replace('_', '-')}", type=kind, help=text, **default)


def _apply_presets(ctx: click.Context, _: click.Parameter, names: tuple[str, ...]) -> None:
    """Make the settings of presets the defaults, so that options that are given win."""
    for name in names:
        ctx.default_map = {**(ctx.default_map or {}), **preset(name)}


def tell_preset(name: str) -> str:
    """Write a preset as options."""
    words = ((f"--{key.replace('_', '-')}", value) for key, value in preset(name).items())
    return " ".join(
        option if value is True else f"{option} {value:g}" if isinstance(value, float) else f"{option} {value}"
        for option, value in words
    )


@click.command(context_settings={"show_default": True, "max_content_width": 120})
@model_options
@click.option("--data", type=FOLDER, help="Dataset that torch_moddit.prepare has made.")
@click.option(
    "--images", type=PICTURES, help="Instead, pictures and captions as prepare takes them: slower, but for a few."
)
@column_option
@click.option("--out", "output", type=OUTPUT, required=True, help="Folder of the run and its result.")
@click.option(
    "--preset",
    type=click.Choice(list(PRESETS)),
    multiple=True,
    is_eager=True,
    expose_value=False,
    callback=_apply_presets,
    help="Defaults of a purpose, repeatable: " + "; ".join(f"{name} is {tell_preset(name)}" for name in PRESETS) + ".",
)
@_setting("steps", "Optimizer steps.")
@_setting("batch_size", "Samples of one process in one micro-step.")
@_setting("accumulation", "Micro-steps of one optimizer step.")
@click.option("--mode", type=click.Choice([mode.value for mode in Mode]), default="learned", help="What is learned.")
@click.option(
    "--train",
    type=click.Choice([train.value for train in Train]),
    default="all",
    help="Weights of the transformer that are trained: all, adapters beside the blocks' (LoRA), or none but routers.",
)
@_setting("lora_rank", "Of the adapters of --train lora.")
@click.option(
    "--target",
    type=TargetType(),
    default=_FIELDS["target"].default,
    metavar="RATIO[,RATIO...]",
    help="Mean keep ratio over layers and regions, or of each region, cleanest first.",
)
@_setting("regions", "Regions of timesteps, with keep ratios of their own.")
@click.option("--layerwise", is_flag=True, help="One keep ratio a layer for all timesteps, as DiffCR-L: one region.")
@_setting("learning_rate", "Of the transformer.")
@_setting("router_rate", "Learning rate of the routers.")
@_setting("ratio_rate", "Change of a keep ratio in one step [default: by the number of steps].")
@_setting("ratio_loss", "Coefficient of the paper's loss on the mean keep ratio; 0 projects the mean instead.")
@_setting("warmup", "Steps before the rates are full.")
@_setting("fall_share", "Share of steps in which the mean falls to the target.")
@_setting("freeze_share", "Share of steps after which the keep ratios stay.")
@_setting("distill_weight", "Weight of the dense model's answer.")
@_setting("caption_dropout", "Share of samples with the empty caption.")
@_setting("ema_decay", "Of the weight average that is saved.")
@click.option(
    "--mixed-precision",
    type=click.Choice(["no", "fp16", "bf16"]),
    default=_FIELDS["mixed_precision"].default,
    help="Of forward passes, and of weights that are not trained.",
)
@click.option("--use-8bit-adam", is_flag=True, help="Adam with moments of 8 bits; needs bitsandbytes.")
@click.option("--gradient-checkpointing/--no-gradient-checkpointing", help="Trade time for memory.")
@click.option("--height", type=_PIXELS, help="Picture height in pixels, with --images [default: the model's].")
@click.option("--width", type=_PIXELS, help="Picture width in pixels, with --images [default: the model's].")
@click.option("--dtype", type=click.Choice(list(_TYPES)), default="float32", help="Of the saved transformer.")
@_setting("seed", "Of everything random.")
@_setting("log_every", "Steps between rows of OUT/log.jsonl.")
@_setting("save_every", "Steps between checkpoints.")
@_setting("workers", "Processes that read data.")
@click.option("--overwrite", is_flag=True, help="Replace OUT/model if it is there.")
def command(
    model: str,
    base: str | None,
    revision: str | None,
    variant: str | None,
    data: Path | None,
    images: Path | None,
    column: str | None,
    output: Path,
    mode: str,
    train: str,
    layerwise: bool,
    height: int | None,
    width: int | None,
    dtype: str,
    overwrite: bool,
    **settings: Any,
) -> None:
    """Fine-tune a diffusion transformer with learned token routing; write its pipeline to OUT/model, and with
    --train lora also what it adds to the dense model to OUT/adapter.

    The same command resumes a run that was stopped, with as many processes and samples as before. Several devices:
    accelerate launch -m torch_moddit.finetune ...
    """
    if (images is None) == (data is None):
        raise click.UsageError("give one of --data and --images")
    if images is None and (height or width or column):
        raise click.UsageError(
            "--height, --width and --caption-column are for --images; those of --data are what it was made with"
        )
    if layerwise:
        source = click.get_current_context().get_parameter_source("regions")
        if source is click.core.ParameterSource.COMMANDLINE and settings["regions"] != 1:
            raise click.UsageError("--layerwise is one region; leave out --regions")
        settings["regions"] = 1
    check_output(output / "model", overwrite=overwrite)
    check_adapter(output / "adapter", overwrite=overwrite)
    if not sys.stderr.isatty():
        disable_progress_bar()  # of loading weights, which would fill a log
    config = FinetuneConfig(output=output, mode=Mode(mode), train=Train(train), **settings)
    sources = find_checkpoint(model, base=base, revision=revision, variant=variant).sources
    description = describe(sources)
    spec = description.spec
    components: Components = {}
    if images is None:
        assert data is not None
        shards = Shards(data, spec.transformer, Encoders.of(description))
        dataset: Dataset[Item] = shards
        null = shards.null
    else:
        components = load_components(sources, spec)
        dataset, null = _read_images(spec, components, images, height, width, column)
    routed = load_checkpoint(sources)
    start: Any = routed if config.mode is Mode.FIXED else _dense(routed, model)
    with _resumable(output):
        result = finetune(config, start, dataset, spec.scheduler, null=null, components=components)
        if not PartialState().is_main_process:
            return
        save_checkpoint(
            output / "model",
            result.model,
            source=sources,
            keep_ratio=result.keep_ratio,
            dtype=_TYPES[dtype],
            overwrite=overwrite,
        )
        if result.lora is not None:
            save_adapter(
                output / "adapter",
                result.model,
                result.lora,
                keep_ratio=result.keep_ratio,
                dtype=_TYPES[dtype],
                overwrite=overwrite,
            )
    click.echo(output / "model")


def main() -> int:
    """Run the command of this process's arguments; return 0, 1 on an error, 2 on wrong usage."""
    return run(command)


@contextmanager
def _resumable(output: Path) -> Iterator[None]:
    """Say from where a run goes on that is stopped."""
    try:
        yield
    except Stopped:
        if PartialState().is_main_process:
            found = list_checkpoints(output)
            place = f"step {int(found[-1].name)}" if found else "the start, since there is no checkpoint yet"
            click.echo(f"stopped; the same command goes on from {place}", err=True)
        raise


def _dense(routed: RoutedTransformer, model: str) -> Any:
    if not routed.policy.is_dense:
        raise MissingError(f"[finetune] {model}: the model is routed already; want a dense one, or --mode fixed")
    return routed.transformer


def _read_images(
    spec: ModelSpec, components: Components, images: Path, height: int | None, width: int | None, column: str | None
) -> tuple[PictureFolder, Item]:
    tell = teller(spec, components)
    height, width = height or spec.default_side, width or spec.default_side
    folder = PictureFolder(
        images,
        partial(_tell_caption, spec, tell),
        height=height,
        width=width,
        sizes=spec.transformer.size_features(height, width),
        are_classes=spec.conditioning.KIND == Label.KIND,
        column=column,
    )
    return folder, tell(spec.conditioning.null(spec.transformer))


def _tell_caption(spec: ModelSpec, tell: Callable[[Any], Item], caption: str) -> Item:
    return tell(spec.conditioning.of_caption(caption, spec.transformer))
