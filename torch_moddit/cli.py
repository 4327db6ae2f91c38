"""`python -m torch_moddit.finetune`: turn a dense diffusers pipeline into a routed one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from click.core import ParameterSource
from transformers.utils.logging import disable_progress_bar

from moddit.bounds import SIDE
from moddit.checkpoint.description import describe
from moddit.checkpoint.sources import Sources
from moddit.errors import MissingError, ValueRangeError
from moddit.signals import Stopped
from moddit.spec import ModelSpec
from torch_moddit.byproducts import NAMES, list_by_products, pick
from torch_moddit.conditioning import Components
from torch_moddit.export import check_adapter, check_output, drop_adapter, save_adapter, save_checkpoint
from torch_moddit.inputs import Inputs
from torch_moddit.loading import load_checkpoint
from torch_moddit.model import RoutedTransformer
from torch_moddit.options import FOLDER, OUTPUT, PICTURES, ModelChoice, column_option, model_options, run
from torch_moddit.result import FinetuneResult
from torch_moddit.runfiles import list_checkpoints
from torch_moddit.settings import (
    PRESETS,
    RANGES,
    RATE_SCHEDULES,
    TRACKERS,
    FinetuneConfig,
    Mode,
    Target,
    Task,
    Train,
    preset,
)
from torch_moddit.targets import check_target
from torch_moddit.trainer import finetune
from torch_moddit.validation import DrawPictures, Painter

_FIELDS = {field.name: field for field in fields(FinetuneConfig)}
_PIXELS = click.IntRange(min=1, max=SIDE)
_OF_PICKING = {"model", "base", "revision", "variant", "output", "dtype", "picked", "overwrite"}
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
    default = None if field.default is MISSING else field.default
    return click.option(f"--{name.replace('_', '-')}", type=kind, help=text, default=default)


def _choice(name: str, kind: type[Enum], text: str) -> Callable[[Any], Any]:
    """Make the option of a setting that is one of several, by their values."""
    return click.option(
        f"--{name}",
        type=click.Choice([item.value for item in kind]),
        default=_FIELDS[name].default.value,
        callback=lambda _, __, value: kind(value),
        help=text,
    )


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
@model_options(required=False)
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
@_setting("steps", "Optimizer steps; more than before make a run longer.")
@_setting("batch_size", "Samples of one process in one micro-step.")
@_setting("accumulation", "Micro-steps of one optimizer step.")
@_choice("task", Task, "What the model learns to draw: whole pictures, or what a mask hides of one; with --images.")
@_choice("mode", Mode, "What is learned.")
@_choice(
    "train",
    Train,
    "Weights of the transformer that are trained: all, adapters beside the blocks' (LoRA), or only routers.",
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
@click.option(
    "--lr-scheduler",
    type=click.Choice(RATE_SCHEDULES),
    default=_FIELDS["lr_scheduler"].default,
    help="How the rates go: flat and then a cosine, or as in diffusers.",
)
@_setting("warmup", "Steps before the rates are full, but with constant.")
@_setting("lr_cycles", "Of cosine_with_restarts.")
@_setting("lr_power", "Of polynomial.")
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
@_setting("validate_every", "Steps between validations; 0 for one at the end.")
@_setting("validation_share", "Share of the dataset's end that is held out of training and measured.")
@click.option(
    "--validation-prompt",
    "prompts",
    metavar="TEXT",
    multiple=True,
    help="Draw this at each validation, in OUT/validation/STEP; may be repeated. Of classes, a name or number.",
)
@click.option(
    "--tracker",
    "trackers",
    type=click.Choice(TRACKERS),
    multiple=True,
    help="Tell the rows of the log to this, too; may be repeated.",
)
@_setting("workers", "Processes that read data.")
@click.option(
    "--by-products/--no-by-products",
    default=_FIELDS["by_products"].default,
    help="Keep the model of each tenth that the mean keep ratio passes, in OUT/by-products.",
)
@click.option(
    "--pick",
    "picked",
    type=click.Choice(NAMES),
    help="Train nothing: write the by-product of OUT with this mean keep ratio to OUT/model-RATIO.",
)
@click.option("--overwrite", is_flag=True, help="Replace OUT/model and OUT/adapter, or what --pick writes.")
def command(
    choice: ModelChoice | None,
    data: Path | None,
    images: Path | None,
    column: str | None,
    height: int | None,
    width: int | None,
    output: Path,
    layerwise: bool,
    dtype: str,
    prompts: tuple[str, ...],
    picked: str | None,
    overwrite: bool,
    **settings: Any,
) -> None:
    """Fine-tune a diffusion transformer with learned token routing; write its pipeline to OUT/model, and with
    --train lora also what it adds to the dense model to OUT/adapter.

    The same command resumes a run that was stopped, with as many processes and samples as before. Several devices:
    accelerate launch -m torch_moddit.finetune ...
    """
    how: dict[str, Any] = {"dtype": _TYPES[dtype], "overwrite": overwrite}
    if picked is not None:
        _check_picking()
        click.echo(pick(output, picked, (choice or ModelChoice.read(output)).find(), **how))
        return
    if choice is None or settings["steps"] is None:
        raise click.UsageError("training needs --model and --steps")
    inputs = Inputs(data, images, column, height, width)
    inputs.check()
    if settings["task"] is Task.INPAINT:
        _check_inpainting(inputs, prompts)
    if layerwise:
        settings["regions"] = _check_layerwise(settings["regions"])
    _train(FinetuneConfig(output=output, **settings), choice, inputs, prompts, how)


def _train(
    config: FinetuneConfig, choice: ModelChoice, inputs: Inputs, prompts: tuple[str, ...], how: dict[str, Any]
) -> None:
    """Train, and write the result; `how` it is written is `_save`'s."""
    output = config.output
    check_output(output / "model", overwrite=how["overwrite"])
    check_adapter(output / "adapter", overwrite=how["overwrite"])
    if not sys.stderr.isatty():
        disable_progress_bar()  # of loading weights, which would fill a log
    sources = choice.find()
    description = describe(sources)
    dataset, null, components = inputs.open(description, sources)
    # as the trainer's Accelerator makes it, which shares its state
    process = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))
    # before the transformer is there
    draw = _find_painter(process, sources, description.spec, prompts, components, inputs)
    routed = load_checkpoint(sources)
    with _resumable(output):
        result = finetune(
            config,
            routed if config.mode is Mode.FIXED else _dense(routed, choice.model),
            dataset,
            description.spec.scheduler,
            null=null,
            components=components,
            draw_pictures=draw,
            on_start=partial(choice.write, output),
        )
        if process.is_main_process:
            _save(output, result, sources, **how)


def _save(output: Path, result: FinetuneResult, sources: Sources, *, dtype: torch.dtype, overwrite: bool) -> None:
    """Write what a run has made, and tell where it and what it left on its way are."""
    how: dict[str, Any] = {"dtype": dtype, "overwrite": overwrite}
    save_checkpoint(output / "model", result.model, source=sources, keep_ratio=result.keep_ratio, **how)
    if result.lora is not None:
        save_adapter(output / "adapter", result, **how)
    elif overwrite:
        drop_adapter(output / "adapter")  # of an earlier run, which would be taken for that of this model
    _tell_by_products(output)
    click.echo(output / "model")


def _find_painter(
    process: PartialState,
    sources: Sources,
    spec: ModelSpec,
    prompts: tuple[str, ...],
    components: Components,
    inputs: Inputs,
) -> DrawPictures | None:
    """Find what draws the pictures of validations: the main process does, the others wait for it."""
    if not prompts:
        return None
    if not process.is_main_process:
        return _leave_drawing
    size = {"height": inputs.height, "width": inputs.width}
    return Painter(sources, spec, prompts, components, device=process.device, **size)


def _leave_drawing(_: RoutedTransformer) -> Any:
    """Stand for a painter in processes that draw nothing."""


def _tell_by_products(output: Path) -> None:
    for by_product in list_by_products(output):
        loss = by_product.validation_loss
        score = "" if loss is None else f", validation loss {loss:.4f}"
        click.echo(f"--pick {by_product.name} has the model of step {by_product.step}{score}", err=True)


def _check_layerwise(regions: int) -> int:
    """Give the number of regions; raises UsageError if another was asked for."""
    source = click.get_current_context().get_parameter_source("regions")
    if source is ParameterSource.COMMANDLINE and regions != 1:
        raise click.UsageError("--layerwise is one region; leave out --regions")
    return 1


def _check_inpainting(inputs: Inputs, prompts: tuple[str, ...]) -> None:
    """Raise UsageError for what has no pixels to mask."""
    if inputs.images is None:
        raise click.UsageError(
            "--task inpaint encodes pictures under masks in every step, and a dataset of --data has no pixels; give "
            "pictures with --images"
        )
    if prompts:
        raise click.UsageError(
            "--task inpaint draws parts of images, and not what --validation-prompt says alone; leave it out, "
            "--validation-share measures"
        )


def _check_picking() -> None:
    """Raise UsageError if options of training are given beside --pick."""
    context = click.get_current_context()
    given = [name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    others = [f"--{name.replace('_', '-')}" for name in given if name not in _OF_PICKING]
    if others:
        raise click.UsageError(f"--pick trains nothing; leave out {', '.join(others)}")


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
