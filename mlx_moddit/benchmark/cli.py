"""The options of `mlx_moddit benchmark`."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any, Final

import click

from mlx_moddit.benchmark.command import ARMS, Choices, Turn, arms_of, measure
from mlx_moddit.benchmark.trial import PROMPT, Job
from mlx_moddit.console import exit_on_error
from mlx_moddit.embedded import embedded_bundle
from mlx_moddit.images import check_outputs
from moddit.benchmark.record import BenchmarkRecord
from moddit.benchmark.table import write_table
from moddit.bins import Size, parse_size
from moddit.configurations import CONFIGURATIONS
from moddit.errors import UnsupportedError
from moddit.files import new_file
from moddit.metadata import DTYPE_NAMES
from moddit.paths import expand
from moddit.quantization import BITS

_OF_JOB: Final = (  # options that a job has as they are
    *("config", "layers", "keep", "dtype", "encoder", "prompt", "steps", "guidance_scale", "reuse", "cache", "low_ram"),
    "decodes",
)


@click.command()
@click.option("--model", metavar="DIR", help="Bundle to measure.  [default: the embedded model]")
@click.option("--config", type=click.Choice(tuple(CONFIGURATIONS)), help="Measure random weights of this model.")
@click.option("--layers", type=click.IntRange(1), help="Layers of --config, for slow machines.  [default: all]")
@click.option("--encoder", is_flag=True, help="Measure the text encoder of --config too, which is large.")
@click.option(
    "--keep",
    type=click.FloatRange(0.1, 1),
    help="Share of the tokens in every layer; of a routed model that keeps more, in the mean, as generate.  [default: "
    "the model's]",
)
@click.option("--dtype", type=click.Choice(DTYPE_NAMES), help="Precision to compute in.  [default: as generate]")
@click.option("--bits", type=click.Choice(list(map(str, BITS))), help="Quantise the weights of --config.")
@click.option("--size", "sizes", multiple=True, metavar="HxW", help="Pixels; repeatable.  [default: the model's]")
@click.option("--arm", "arms", type=click.Choice(ARMS), multiple=True, help="Repeatable.  [default: all it has]")
@click.option("--steps", type=click.IntRange(2), default=Job.steps, show_default=True, help="Denoising steps.")
@click.option("--guidance-scale", type=click.FloatRange(0), help="1 or less halves the batch.  [default: the model's]")
@click.option("--reuse", type=click.IntRange(1), default=1, show_default=True, help="As generate.")
@click.option("--cache", type=click.FloatRange(0, 1), metavar="SHARE", help="As generate.")
@click.option("-p", "--prompt", default=PROMPT, help="What to draw; its length counts.  [default: 32 words]")
@click.option("--trials", type=click.IntRange(1, 100), default=5, show_default=True, help="Processes for each arm.")
@click.option("--delay", type=click.FloatRange(0, 3600), default=0.0, show_default=True, help="Seconds between them.")
@click.option("--low-ram", is_flag=True, help="As generate.")
@click.option("--decode/--no-decode", "decodes", default=True, help="Measure decoding, slow on a CPU.  [default: yes]")
@click.option("--json", "record", metavar="FILE", help="Write the record, with every sample.")
@click.option("--overwrite", is_flag=True, help="Replace the record if it exists.")
def benchmark(**options: Any) -> None:
    """Measure time and memory of every stage, dense and routed.

    Every trial is a cold process, and arms take turns: "dense", "routed", and "oracle", which processes as many tokens
    as routed, but the first ones, so that the rest is what routing itself costs.
    """
    with exit_on_error():
        made = run(options)
    click.echo(write_table(made))


def run(options: dict[str, Any]) -> BenchmarkRecord:
    """Measure what the options ask for, and write the record.

    Raises:
        InputError: options that do not go together, or a model that cannot be measured.
        OutputExistsError, StorageError: the record cannot be written.
    """
    target = None if options["record"] is None else expand(options["record"])
    if target is not None:
        check_outputs((target,), overwrite=options["overwrite"])
    _check(options)
    jobs = [_job(options, size) for size in map(parse_size, options["sizes"])] or [_job(options, None)]
    arms = options["arms"] or arms_of(jobs[0])
    turns = [Turn(asdict(replace(job, arm=name))) for job in jobs for name in arms]
    said = {name: _scalar(value) for name, value in options.items() if name not in ("record", "overwrite")}
    made = measure(turns, Choices(options["trials"], options["delay"]), said, "mlx_moddit benchmark")
    if target is not None:
        with new_file(target, overwrite=options["overwrite"]) as file:
            file.write(made.write().encode())
    return made


def _check(options: dict[str, Any]) -> None:
    if options["model"] is not None and options["config"] is not None:
        raise UnsupportedError("[benchmark] got --model and --config, want one of them")
    for name in ("layers", "bits", "encoder"):
        if options[name] and options["config"] is None:
            raise UnsupportedError(f"[benchmark] --{name} is only for --config; a bundle has its own")


def _job(options: dict[str, Any], size: Size | None) -> Job:
    height, width = size or (None, None)
    model = options["model"]
    if options["config"] is None:
        model = str(embedded_bundle() if model is None else expand(model))
    bits = None if options["bits"] is None else int(options["bits"])
    return Job(model=model, bits=bits, height=height, width=width, **{name: options[name] for name in _OF_JOB})


def _scalar(value: Any) -> Any:
    return " ".join(value) if isinstance(value, tuple) else value
