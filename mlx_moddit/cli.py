"""The command line: `mlx_moddit generate` and `mlx_moddit info`.

Results go to stdout, progress and warnings to stderr. Exit status 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
import mlx.core as mx
from PIL import Image
from tqdm import tqdm

import moddit
from mlx_moddit import info as bundle_info
from mlx_moddit.benchmark.cli import benchmark
from mlx_moddit.console import exit_on_error
from mlx_moddit.embedded import embedded_bundle
from mlx_moddit.estimate import Compute
from mlx_moddit.images import check_outputs, read_metadata, save_image, save_picture
from mlx_moddit.job import SHEETS, STDIN, Job
from mlx_moddit.layers import has_bfloat16
from mlx_moddit.memory import StageCost
from mlx_moddit.names import DEFAULT_PATTERN
from mlx_moddit.pipeline import Picture, Pipeline, default_dtype
from mlx_moddit.planner.cli import plan
from mlx_moddit.ranks import Ranks, name_some
from mlx_moddit.report import Report, SavedPicture, slowest, versions
from mlx_moddit.sensitivity.cli import sensitivity
from mlx_moddit.sheets import draw_edit, draw_routes
from mlx_moddit.stages import Encoded, Stage, Step
from moddit.bounds import PROMPT
from moddit.conditioning import Label, Text
from moddit.errors import ModditError, UnsupportedError, ValueRangeError
from moddit.manifest import read_manifest
from moddit.memory import peak_rss_bytes
from moddit.metadata import DTYPE_NAMES, STORED, Metadata, ModelReference
from moddit.paths import expand
from moddit.request import (
    CAPTIONLESS_GUIDANCE,
    DEFAULT_STEPS,
    DEFAULT_VAE_TILE_SIZE,
    IMAGE_STRENGTH,
    INPAINTING_GUIDANCE,
    MASK_STRENGTH,
    Request,
)
from moddit.samplers import SAMPLERS


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(moddit.__version__, prog_name="mlx_moddit")
def main() -> None:
    """Generate pictures with routed diffusion transformers on MLX."""


@main.command()
@click.option("--model", metavar="DIR", help="Bundle to use.  [default: the embedded model]")
@click.option("-p", "--prompt", help=f"What to draw, in at most {PROMPT:,} characters.")
@click.option("--prompt-file", metavar="FILE", help="Prompts, one a line, - for stdin; empty lines are skipped.")
@click.option("--label", "labels", multiple=True, metavar="NAME|N", help="Class to draw; repeatable.")
@click.option("--negative-prompt", help='What to avoid.  [default: ""]')
@click.option("--steps", type=click.IntRange(1), help=f"Denoising steps.  [default: {DEFAULT_STEPS}]")
@click.option(
    "--guidance-scale",
    "--guidance",
    type=click.FloatRange(0),
    help=f"How much to follow the prompt or label; 1 or less turns guidance off.  [default: {Text.GUIDANCE_SCALE}, of "
    f"labels {Label.GUIDANCE_SCALE}, of a model that inpaints {INPAINTING_GUIDANCE}, with an empty prompt "
    f"{CAPTIONLESS_GUIDANCE}]",
)
@click.option("--seed", "seeds", type=int, multiple=True, metavar="N", help="Seed; repeatable.  [default: 0]")
@click.option("--num-images", type=click.IntRange(1), default=1, show_default=True, help="Pictures for each seed.")
@click.option("--height", type=click.IntRange(1), help="Pixels.  [default: the model's]")
@click.option("--width", type=click.IntRange(1), help="Pixels.  [default: the model's]")
@click.option("--image", "--image-path", "image", metavar="FILE", help="Picture to start from.")
@click.option(
    "--mask",
    metavar="FILE|BOX",
    help="What of the image to draw anew: a picture of its size, white where it is, or with transparency, transparent "
    "where it is; or box:x,y,w,h in pixels.  [default: all]",
)
@click.option(
    "--padding-mask-crop",
    type=click.IntRange(0),
    metavar="PIXELS",
    help="Draw a square around what the mask marks alone, with so many pixels around it, at the model's full size.",
)
@click.option(
    "--strength",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help=f"Share of the steps to take from the image, the last ones.  [default: {IMAGE_STRENGTH}, with a mask "
    f"{MASK_STRENGTH:g}]",
)
@click.option(
    "--image-strength",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help="The same said as mflux does: how much of the image to keep, 1 less --strength.",
)
@click.option(
    "--resolution-binning/--no-resolution-binning",
    default=None,
    help="Generate at the nearest size the model was trained at, then resize and crop.  [default: keep the size]",
)
@click.option("--sampler", type=click.Choice(SAMPLERS), help="[default: the model's]")
@click.option(
    "--reuse",
    type=click.IntRange(1),
    metavar="N",
    help="Ask the model in the first of every N steps only, and take its clean latents again in the others.  "
    "[default: 1]",
)
@click.option(
    "--cache",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help="Leave out the blocks behind the first in steps in which that one changes by no more than this share, such as "
    "0.1.  [default: 0, run all]",
)
@click.option(
    "--keep",
    type=click.FloatRange(0.1, 1),
    metavar="SHARE",
    help="Keep more tokens than a routed model was trained to, this share in the mean.  [default: as trained]",
)
@click.option(
    "-o",
    "--output",
    metavar="PATTERN",
    help=f"File to write; {{prompt}}, {{seed}} and {{index}} are filled in.  [default: {DEFAULT_PATTERN}, and a number "
    "where two would be the same]",
)
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
@click.option(
    "--dtype",
    type=click.Choice(DTYPE_NAMES),
    help="Precision to compute in.  [default: stored, on a CPU float32]",
)
@click.option("--low-ram", is_flag=True, help="Keep one component in memory at a time, and decode in strips.")
@click.option(
    "--vae-tiling/--no-vae-tiling",
    default=None,
    help="Decode in tiles that overlap, as diffusers does: less memory, slightly other pixels.  [default: off]",
)
@click.option(
    "--vae-tile-size",
    type=click.IntRange(1),
    metavar="PIXELS",
    help=f"Side of a tile; turns tiling on.  [default: {DEFAULT_VAE_TILE_SIZE}]",
)
@click.option("--save-routes", metavar="PATTERN", help="Draw which tokens each region keeps into a second PNG.")
@click.option("--save-edit", metavar="PATTERN", help="Draw image, mask and result of an edit into a further PNG.")
@click.option(
    "--config-from",
    metavar="PNG",
    help="Repeat the picture in this file; other options override its settings.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of paths and a table.")
def generate(**options: Any) -> None:
    """Generate pictures of a prompt, or of a class.

    Every PNG tells how it was made, for --config-from. Processes that `mlx.launch` starts share the pictures.
    """
    with exit_on_error():
        subjects = [options[name] for name in ("prompt", "prompt_file") if options[name] is not None]
        subjects += [options["labels"]] if options["labels"] else []
        if len(subjects) > 1 or not (subjects or options["config_from"]):
            raise click.UsageError("Give one of --prompt, --prompt-file and --label, or --config-from.")
        if options["strength"] is not None and options["image_strength"] is not None:
            raise click.UsageError("Give one of --strength and --image-strength.")
        ranks = Ranks.join()
    with exit_on_error(ranks.label):
        report = _generate(options, ranks)
    if not ranks.is_first:
        return
    if options["as_json"]:
        click.echo(json.dumps(report.to_json(), indent=2))
    else:
        for picture in report.pictures:
            click.echo(picture.path)
        click.echo(report.table(), err=True)


@main.command()
@click.option("--model", metavar="DIR", help="Bundle to describe.  [default: the embedded model]")
@click.option("--height", type=click.IntRange(1), help="Pixels, for capacities and memory.  [default: the model's]")
@click.option("--width", type=click.IntRange(1), help="Pixels, for capacities and memory.  [default: the model's]")
@click.option(
    "--vae-tile-size",
    type=click.IntRange(1),
    default=DEFAULT_VAE_TILE_SIZE,
    show_default=True,
    metavar="PIXELS",
    help="Side of a tile, for memory with --vae-tiling.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def info(model: str | None, height: int | None, width: int | None, vae_tile_size: int, as_json: bool) -> None:
    """Describe a bundle: components, capacities per region, memory."""
    with exit_on_error():
        manifest = read_manifest(_folder(model))
        anything = manifest.spec.conditioning.EXAMPLE
        request = Request.complete(manifest.spec, **anything, height=height, width=width, vae_tile_size=vae_tile_size)
        dtype = default_dtype()
        compute = Compute(mx.default_device() != mx.cpu, None if dtype == STORED else dtype, has_bfloat16())
        facts = bundle_info.describe(manifest, compute, height=request.height, width=request.width, tile=vae_tile_size)
    click.echo(json.dumps(facts, indent=2) if as_json else bundle_info.write(facts))


main.add_command(benchmark)
main.add_command(plan)
main.add_command(sensitivity)


def _generate(options: dict[str, Any], ranks: Ranks) -> Report:
    if options["prompt_file"] == STDIN and not ranks.is_alone:
        raise UnsupportedError("[prompts] -: ranks cannot share standard input, want a file that each can read")
    repeated = None if options["config_from"] is None else read_metadata(expand(options["config_from"]))
    chosen, dtype = options["model"], options["dtype"]
    if repeated is not None:
        chosen = repeated.model.path if chosen is None else chosen
        dtype = repeated.dtype if dtype is None else dtype
    pipeline = Pipeline.load(_folder(chosen), dtype=dtype, low_ram=options["low_ram"])
    reference = ModelReference.of(pipeline.bundle.manifest, chosen)
    if repeated is not None and options["model"] is None and reference.fingerprint != repeated.model.fingerprint:
        raise ValueRangeError(
            f"[metadata] {options['config_from']} was made with another model than "
            f"{chosen or 'the embedded one'} is now; name the one to use with --model"
        )
    job = Job.plan(options, pipeline.bundle.spec, repeated)
    for name in [] if repeated is None else job.replaced(repeated):
        ranks.say(f"note: {options[name]} is not the {name} that {options['config_from']} was made from")
    check_outputs(job.files, overwrite=job.overwrite)  # of all ranks: none has begun before they agree
    metadata = Metadata(job.requests[0], reference, pipeline.dtype, versions())
    with ranks.watch(job.files):
        facts = {"model": reference.fingerprint, "dtype": pipeline.dtype, "versions": dict(metadata.versions)}
        ranks.agree({**facts, "prompts or settings": job.digest})
        shares = ranks.gather("share", _draw(pipeline, job, metadata, ranks))
    return _report(pipeline, job, shares, metadata, ranks)


def _draw(pipeline: Pipeline, job: Job, metadata: Metadata, ranks: Ranks) -> dict[str, Any]:
    """Draw the pictures of this rank; return what `_report` needs to know of them, as JSON can tell it.

    Where there are others, an error does not keep them from drawing theirs.
    """
    mine = job.part(ranks.parts(len(job.requests))[ranks.rank])
    steps: list[tuple[float, ...]] = []  # seconds of those of each picture that was written
    with _Progress(mine.requests, pipeline.bundle.spec.text_tokens, ranks) as progress:
        run = pipeline.run(mine.requests, mine.edit, routes="routes" in mine.sheet_paths, on_stage=progress)
        try:
            for index, picture in enumerate(run):
                _save(picture, mine.part(slice(index, index + 1)), metadata)
                steps.append(picture.step_seconds)
        except ModditError as error:
            if ranks.is_alone:
                raise
            ranks.say(f"error: {error}")
    return {"steps": steps, "costs": [asdict(cost) for cost in run.costs], "peak_rss_bytes": peak_rss_bytes()}


def _report(
    pipeline: Pipeline, job: Job, shares: Sequence[Mapping[str, Any]], metadata: Metadata, ranks: Ranks
) -> Report:
    """Put what all ranks did together; raise ModditError where pictures are missing, which the first rank tells."""
    pictures: list[SavedPicture] = []
    missing: list[Path] = []
    for share, part in zip(shares, map(job.part, ranks.parts(len(job.requests))), strict=True):
        sheets = [part.sheet_paths.get(name, (None,) * len(part.paths)) for name in SHEETS]
        written = zip(part.paths, *sheets, part.requests, map(tuple, share["steps"]), strict=False)
        pictures += [SavedPicture(*fields) for fields in written]
        missing += part.paths[len(share["steps"]) :]
    if missing and not ranks.is_first:
        sys.exit(1)
    if missing:
        raise ModditError(f"[ranks] {len(missing)} of {len(job.paths)} pictures are missing: {name_some(missing)}")
    return Report(
        tuple(pictures),
        slowest([StageCost(**cost) for share in shares for cost in share["costs"]]),
        max(share["peak_rss_bytes"] for share in shares),
        metadata.model,
        pipeline.dtype,
        str(mx.default_device()),
        metadata.versions,
    )


def _folder(model: str | None) -> Path:
    return embedded_bundle() if model is None else expand(model)


def _save(picture: Picture, job: Job, metadata: Metadata) -> None:
    """Write the files of a job of one picture."""
    (path,) = job.paths
    save_picture(path, picture.image, replace(metadata, settings=picture.request), overwrite=job.overwrite)
    drawn = picture.pixels if job.edit is None else picture.pixels[job.edit.window]
    for sheet in job.sheet_paths.get("routes", ()):
        save_image(sheet, draw_routes(Image.fromarray(drawn), picture.routes), overwrite=job.overwrite)
    for sheet in job.sheet_paths.get("edit", ()):
        assert job.edit is not None
        save_image(sheet, draw_edit(picture.image, job.edit), overwrite=job.overwrite)


class _Progress:
    """A bar on stderr for each picture, where stderr is a terminal, and warnings about texts that were cut."""

    def __init__(self, requests: Sequence[Request], max_tokens: int, ranks: Ranks):
        self._requests = requests
        self._ranks = ranks  # only the first shows its bars
        self._max_tokens = max_tokens
        self._bar: tqdm[Any] = tqdm(disable=True)  # of the picture that is drawn

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def __call__(self, stage: Stage) -> None:
        if isinstance(stage, Encoded) and max(stage.tokens) >= self._max_tokens:
            self._ranks.say(f"warning: a text fills all {self._max_tokens} tokens; what is beyond them is ignored")
        if not isinstance(stage, Step):
            return
        if stage.index == 0:
            label = f"picture {stage.picture + 1}/{len(self._requests)}, seed {self._requests[stage.picture].seed}"
            shown = None if self._ranks.is_first else True
            self._bar = tqdm(total=stage.total, desc=label, unit="step", file=sys.stderr, disable=shown)
        self._bar.update()
        if stage.is_last:
            self._bar.close()
