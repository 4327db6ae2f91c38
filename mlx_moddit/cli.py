"""The command line: `mlx_moddit generate` and `mlx_moddit info`.

Results go to stdout, progress and warnings to stderr. Exit status 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import click
import mlx.core as mx
from tqdm import tqdm

import moddit
from mlx_moddit import info as bundle_info
from mlx_moddit.benchmark.cli import benchmark
from mlx_moddit.console import exit_on_error
from mlx_moddit.embedded import embedded_bundle
from mlx_moddit.estimate import Compute
from mlx_moddit.images import check_outputs, read_metadata, save_image, save_picture
from mlx_moddit.layers import has_bfloat16
from mlx_moddit.names import DEFAULT_PATTERN, default_names, file_key, name_files
from mlx_moddit.pipeline import Generation, Pipeline, default_dtype, spread_seeds
from mlx_moddit.planner.cli import plan
from mlx_moddit.report import Report, SavedPicture, versions
from mlx_moddit.routes import draw_routes
from mlx_moddit.sensitivity.cli import sensitivity
from mlx_moddit.stages import Encoded, Stage, Step
from moddit.bounds import JSON_BYTES, PICTURES, PROMPT
from moddit.conditioning import Label, Text
from moddit.errors import FormatError, ValueRangeError
from moddit.manifest import read_manifest
from moddit.memory import peak_rss_bytes
from moddit.metadata import DTYPE_NAMES, STORED, Metadata, ModelReference
from moddit.paths import expand
from moddit.record import Origin, read_bytes
from moddit.request import DEFAULT_STEPS, DEFAULT_VAE_TILE_SIZE, Request, choose_tile
from moddit.samplers import SAMPLERS
from moddit.spec import ModelSpec

STDIN: Final = "-"


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
    f"labels {Label.GUIDANCE_SCALE}]",
)
@click.option("--seed", "seeds", type=int, multiple=True, metavar="N", help="Seed; repeatable.  [default: 0]")
@click.option("--num-images", type=click.IntRange(1), default=1, show_default=True, help="Pictures for each seed.")
@click.option("--height", type=click.IntRange(1), help="Pixels.  [default: the model's]")
@click.option("--width", type=click.IntRange(1), help="Pixels.  [default: the model's]")
@click.option(
    "--resolution-binning/--no-resolution-binning",
    default=None,
    help="Generate at the nearest size the model was trained at, then resize and crop.  [default: keep the size]",
)
@click.option("--sampler", type=click.Choice(SAMPLERS), help="[default: the model's]")
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
@click.option(
    "--config-from",
    metavar="PNG",
    help="Repeat the picture in this file; other options override its settings.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of paths and a table.")
def generate(**options: Any) -> None:
    """Generate pictures of a prompt, or of a class.

    Every PNG tells how it was made, for --config-from.
    """
    with exit_on_error():
        subjects = [options[name] for name in ("prompt", "prompt_file") if options[name] is not None]
        subjects += [options["labels"]] if options["labels"] else []
        if len(subjects) > 1 or not (subjects or options["config_from"]):
            raise click.UsageError("Give one of --prompt, --prompt-file and --label, or --config-from.")
        report = _generate(options)
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


@dataclass(frozen=True)
class _Job:
    """The pictures of one run and where they go."""

    requests: tuple[Request, ...]
    paths: tuple[Path, ...]
    route_paths: tuple[Path, ...] | None
    overwrite: bool


def _generate(options: dict[str, Any]) -> Report:
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
    job = _plan(options, pipeline, repeated)
    check_outputs((*job.paths, *(job.route_paths or ())), overwrite=job.overwrite)
    metadata = Metadata(job.requests[0], reference, pipeline.dtype, versions())
    with _Progress(job.requests, pipeline.bundle.spec.text_tokens) as progress:
        run = pipeline.run(job.requests, routes=job.route_paths is not None, on_stage=progress)
        saved = _save(run, job, metadata)
    device = str(mx.default_device())
    return Report(saved, run.costs, peak_rss_bytes(), reference, pipeline.dtype, device, metadata.versions)


def _folder(model: str | None) -> Path:
    return embedded_bundle() if model is None else expand(model)


def _plan(options: dict[str, Any], pipeline: Pipeline, repeated: Metadata | None) -> _Job:
    """Work out requests and names of all pictures: from options, then the repeated picture, then defaults."""
    names = ("negative_prompt", "steps", "guidance_scale", "height", "width", "sampler", "resolution_binning")
    values = {} if repeated is None else repeated.settings.to_json()
    values |= {name: options[name] for name in names if options[name] is not None}
    subjects = _subjects(options, pipeline.bundle.spec) or [{name: values.get(name) for name in ("prompt", "label")}]
    seeds = spread_seeds(options["seeds"] or [values.get("seed", 0)], options["num_images"])
    given = {name: values[name] for name in names if name in values} | {"vae_tile_size": _tile(options, repeated)}
    if len(subjects) * len(seeds) > PICTURES:
        raise ValueRangeError(f"[prompts] got {len(subjects)} for {len(seeds)} seeds, want at most {PICTURES} pictures")
    complete = [Request.complete(pipeline.bundle.spec, **subject, **given) for subject in subjects]
    requests = tuple(replace(item, seed=seed) for item in complete for seed in seeds)
    output, routes = options["output"], options["save_routes"]
    job = _Job(
        requests=requests,
        paths=default_names(requests) if output is None else name_files(output, requests),
        route_paths=None if routes is None else name_files(routes, requests),
        overwrite=options["overwrite"],
    )
    routes_keys = set(map(file_key, job.route_paths or ()))
    for path in job.paths:
        if file_key(path) in routes_keys:
            raise ValueRangeError(f"[output] --save-routes and --output name the same file, {path}")
    return job


def _tile(options: dict[str, Any], repeated: Metadata | None) -> int | None:
    """Choose the VAE's tiles; a picture that was made with tiles is repeated with them."""
    default = None if repeated is None else repeated.settings.vae_tile_size
    return choose_tile(options["vae_tiling"], options["vae_tile_size"], default)


def _subjects(options: dict[str, Any], spec: ModelSpec) -> list[dict[str, Any]]:
    """List what to draw, as the arguments of a request."""
    if options["labels"]:
        return [{"label": spec.number(label)} for label in options["labels"]]
    return [{"prompt": prompt} for prompt in _prompts(options)]


def _prompts(options: dict[str, Any]) -> list[str]:
    file = options["prompt_file"]
    if file is None:
        return [] if options["prompt"] is None else [options["prompt"]]
    try:
        if file == STDIN:
            text = sys.stdin.read(JSON_BYTES + 1)
        else:
            origin = Origin("prompts", file)
            text = read_bytes(expand(file), origin, absent="want one prompt a line", most=JSON_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"[prompts] {file}: cannot read it ({error}), want UTF-8 text") from None
    if len(text) > JSON_BYTES:
        raise FormatError(f"[prompts] {file}: too long, want at most {JSON_BYTES} characters")
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise FormatError(f"[prompts] {file}: no prompts in it, want one a line")
    return prompts


def _save(run: Generation, job: _Job, metadata: Metadata) -> tuple[SavedPicture, ...]:
    saved = []
    for index, picture in enumerate(run):
        save_picture(
            job.paths[index], picture.image, replace(metadata, settings=picture.request), overwrite=job.overwrite
        )
        routes = None if job.route_paths is None else job.route_paths[index]
        if routes is not None:
            save_image(routes, draw_routes(picture.image, picture.routes), overwrite=job.overwrite)
        saved.append(SavedPicture(job.paths[index], routes, picture.request, picture.step_seconds))
    return tuple(saved)


class _Progress:
    """A bar on stderr for each picture, where stderr is a terminal, and warnings about texts that were cut."""

    def __init__(self, requests: Sequence[Request], max_tokens: int):
        self._requests = requests
        self._max_tokens = max_tokens
        self._bar: tqdm[Any] = tqdm(disable=True)  # of the picture that is drawn

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def __call__(self, stage: Stage) -> None:
        if isinstance(stage, Encoded) and max(stage.tokens) >= self._max_tokens:
            click.echo(f"warning: a text fills all {self._max_tokens} tokens; what is beyond them is ignored", err=True)
        if not isinstance(stage, Step):
            return
        if stage.index == 0:
            label = f"picture {stage.picture + 1}/{len(self._requests)}, seed {self._requests[stage.picture].seed}"
            self._bar = tqdm(total=stage.total, desc=label, unit="step", file=sys.stderr, disable=None)
        self._bar.update()
        if stage.is_last:
            self._bar.close()
