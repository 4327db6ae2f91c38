"""`mlx_moddit plan`: its options, and its tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

import click

from mlx_moddit.console import exit_on_error
from mlx_moddit.planner.calibration import calibrate
from mlx_moddit.planner.chips import CHIPS, find_chip
from mlx_moddit.planner.model import find_model
from mlx_moddit.planner.plan import Asked, align, change, describe
from moddit.benchmark.record import read_record
from moddit.benchmark.table import markdown
from moddit.bins import Size, parse_size
from moddit.configurations import CONFIGURATIONS
from moddit.paths import expand
from moddit.quantization import BITS
from moddit.request import DEFAULT_STEPS, Request

GB: Final = 1e9
_DTYPES: Final = ("float16", "bfloat16", "float32")


@click.command()
@click.option(
    "--model",
    metavar="DIR|ID",
    help="Bundle, diffusers folder with or without weights, or an id on the Hugging Face Hub (owner/name), of which "
    "only configuration is downloaded.",
)
@click.option("--base", metavar="DIR|ID", help="Pipeline that has the components which --model has not.")
@click.option("--revision", metavar="REV", help="Branch, tag or commit of --model on the Hub.")
@click.option("--variant", metavar="NAME", help="Of the weights to download, such as fp16.  [default: the plain ones]")
@click.option("--config", type=click.Choice(tuple(CONFIGURATIONS)), help="Published model, without asking the Hub.")
@click.option("--chip", metavar="NAME", help='Such as "M3 Pro".  [default: all]')
@click.option("--ram", type=click.FloatRange(1, 4096), help="GB of the machine.  [default: the least of the chip]")
@click.option("--size", metavar="HxW", help="Pixels.  [default: the model's]")
@click.option("--steps", type=click.IntRange(1), default=DEFAULT_STEPS, show_default=True, help="Denoising steps.")
@click.option(
    "--reuse", type=click.IntRange(1), default=1, show_default=True, help="Ask the model in the first of so many steps."
)
@click.option(
    "--cache",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help="As generate: count what a first-block cache keeps in memory.  Seconds are those of full steps.",
)
@click.option("--guidance-scale", type=click.FloatRange(0), help="1 or less halves the batch.  [default: the model's]")
@click.option(
    "--keep",
    type=click.FloatRange(0.1, 1),
    help="Share of the tokens in every layer; of a routed model that keeps more, in the mean, as generate.  [default: "
    "the model's]",
)
@click.option(
    "--align",
    type=click.IntRange(1, 1024),
    metavar="N",
    help="What if layers kept multiples of N tokens; no runtime does.",
)
@click.option("--dtype", type=click.Choice(_DTYPES), help="Of the weights.  [default: the bundle's, or float16]")
@click.option("--bits", type=click.Choice(list(map(str, BITS))), help="Quantise the weights.  [default: as the bundle]")
@click.option(
    "--record", "records", multiple=True, metavar="FILE", help="Benchmark of this machine to go by; repeatable."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def plan(**options: Any) -> None:
    """Tell what a model needs and takes on a Mac, from its configuration alone: bytes, memory, seconds.

    Seconds are predicted from a chip's peaks, or, with --record, from what was measured on a machine, with the range in
    which they should lie.
    """
    with exit_on_error():
        asked = _ask(options)
        chips = CHIPS if options["chip"] is None else (find_chip(options["chip"]),)
        rates = calibrate(read_record(expand(path)) for path in options["records"]) if options["records"] else None
        facts = describe(asked, chips, options["ram"], rates)
    click.echo(json.dumps(facts, indent=2) if options["as_json"] else "\n\n".join(_write(facts)))


def _ask(options: dict[str, Any]) -> Asked:
    places = {name: options[name] for name in ("base", "revision", "variant")}
    model = find_model(options["model"], options["config"], **places)
    spec = model.manifest.spec
    size: Size = parse_size(options["size"]) if options["size"] else (spec.default_side, spec.default_side)
    sampling = {name: options[name] for name in ("steps", "guidance_scale", "reuse", "cache")}
    request = Request.complete(spec, **spec.conditioning.EXAMPLE, height=size[0], width=size[1], **sampling)
    batch, has_cache = len(request.rows(spec)), request.cache is not None  # after what cannot be drawn is refused
    found = Asked(model.name, model.manifest, size, request.steps, batch, model.download, request.reuse, has_cache)
    keep, dtype, bits = (options[name] for name in ("keep", "dtype", "bits"))
    if any((keep, dtype, bits)):
        found = change(found, keep=keep, dtype=dtype, bits=None if bits is None else int(bits))
    return found if options["align"] is None else align(found, options["align"])


def _write(facts: dict[str, Any]) -> Iterator[str]:
    height, width = facts["size"]
    total = sum(facts["bundle_bytes"].values())
    steps = f"{facts['steps']} steps" + (f" with reuse {facts['reuse']}" if facts["reuse"] > 1 else "")
    steps += " with a cache, as if all were full" if facts["has_cache"] else ""
    stored = facts["dtype"] if facts["bits"] is None else f"{facts['bits']:g}-bit"
    yield (
        f"{facts['model']}: {facts['parameters'] / 1e6:,.0f} M parameters, {total / GB:.2f} GB as a bundle in "
        f"{stored}; {height}x{width} pixels, {steps}, batch {facts['batch']}, "
        f"{facts['mean_keep_ratio']:.0%} of the tokens kept."
    )
    yield from _notes(facts)
    memory = [("memory on a GPU", "GB"), *((name, f"{size / GB:.2f}") for name, size in facts["memory_bytes"].items())]
    yield "\n".join(markdown(memory))
    if "machine" in facts:
        yield "\n".join(
            markdown([("stage", "seconds"), *((name, _range(item)) for name, item in facts["machine"].items())])
        )
        return
    yield "\n".join(markdown(_chip_rows(facts["chips"])))
    if len(facts["chips"]) == 1:
        yield "\n".join(markdown(_variant_rows(facts)))
    yield (
        "Seconds are predicted from peaks and published efficiencies; no Mac has confirmed them yet. `mlx_moddit "
        "benchmark --json FILE` on one, and --record FILE here, do. Reading weights is left out, "
        "which --low-ram does for every picture."
    )


def _notes(facts: dict[str, Any]) -> Iterator[str]:
    download, aligned = facts["download"], facts["aligned"]
    if download["size"]:
        source = "as the Hub lists it" if download["is_listed"] else "computed from shapes; the Hub was not asked"
        yield f"To download: {download['size'] / GB:.2f} GB ({source}), {download['present'] / GB:.2f} GB of it here."
    if aligned is not None:
        changes = [f"{after} tokens in place of {before}" for before, after in aligned["capacities"]]
        changed = f"layers keep {', '.join(changes)} of {aligned['tokens']}" if changes else "changes nothing"
        yield f"--align {aligned['multiple']}: {changed}."


def _chip_rows(chips: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    names = list(chips[0]["seconds"])
    rows: list[tuple[str, ...]] = [("chip", "RAM GB", "runs as", *(f"{name} s" for name in names))]
    for item in chips:
        seconds = (_range(item["seconds"][name]) for name in names)
        rows.append((item["chip"], f"{item['memory_gb']:g}", item["runs_as"] or "does not fit", *seconds))
    return rows


def _variant_rows(facts: dict[str, Any]) -> list[tuple[str, ...]]:
    limit = facts["chips"][0]["limit_bytes"]
    rows = [(item["words"], item["peak_bytes"]) for item in facts["variants"]]
    head = ("run as", "peak GB", f"fits in {limit / GB:.1f} GB")
    return [head, *((words, f"{peak / GB:.2f}", "yes" if peak <= limit else "no") for words, peak in rows)]


def _range(values: Sequence[float]) -> str:
    low, value, high = map(_short, values)
    return f"{value} ({low}-{high})"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"
