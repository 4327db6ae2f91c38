"""`mlx_moddit plan`: its options, and its tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

import click

from mlx_moddit.console import exit_on_error
from mlx_moddit.planner.calibration import calibrate
from mlx_moddit.planner.chips import CHIPS, find_chip
from mlx_moddit.planner.plan import Asked, aligned, describe, imagine
from moddit.benchmark.record import read_record
from moddit.benchmark.table import markdown
from moddit.bins import Size, parse_size
from moddit.configurations import CONFIGURATIONS, find_configuration
from moddit.errors import UnsupportedError
from moddit.manifest import read_manifest
from moddit.paths import expand
from moddit.quantization import BITS
from moddit.request import DEFAULT_STEPS, Request

GB: Final = 1e9
_DTYPES: Final = ("float16", "bfloat16", "float32")


@click.command()
@click.option("--model", metavar="DIR", help="Bundle to plan for.")
@click.option(
    "--config", type=click.Choice(tuple(CONFIGURATIONS)), help="Published model to plan for, before a download."
)
@click.option("--chip", metavar="NAME", help='Such as "M3 Pro".  [default: all]')
@click.option("--ram", type=click.FloatRange(1, 4096), help="GB of the machine.  [default: the least of the chip]")
@click.option("--size", metavar="HxW", help="Pixels.  [default: the model's]")
@click.option("--steps", type=click.IntRange(1), default=DEFAULT_STEPS, show_default=True, help="Denoising steps.")
@click.option("--guidance-scale", type=click.FloatRange(0), help="1 or less halves the batch.  [default: the model's]")
@click.option(
    "--keep", type=click.FloatRange(0.1, 1), help="Tokens that every layer of --config keeps.  [default: all]"
)
@click.option("--align", type=click.IntRange(1, 1024), help="Round what is kept to a multiple that kernels like.")
@click.option("--dtype", type=click.Choice(_DTYPES), default="float16", show_default=True, help="Weights of --config.")
@click.option("--bits", type=click.Choice(list(map(str, BITS))), help="Quantise the weights of --config.")
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
    if (options["model"] is None) == (options["config"] is None):
        raise UnsupportedError("[plan] want one of --model and --config")
    manifest = None if options["model"] is None else read_manifest(expand(options["model"]))
    spec = find_configuration(options["config"]) if manifest is None else manifest.spec
    size: Size = parse_size(options["size"]) if options["size"] else (spec.default_side, spec.default_side)
    asked = {"height": size[0], "width": size[1], **{name: options[name] for name in ("steps", "guidance_scale")}}
    batch = len(Request.complete(spec, **spec.conditioning.EXAMPLE, **asked).rows(spec))  # refuses what cannot be drawn
    if manifest is not None:
        return Asked(manifest.provenance.source, manifest, size, options["steps"], batch)
    keep = options["keep"]
    if keep is not None and options["align"] is not None:
        tokens = spec.transformer.tokens(*(side // spec.vae.downscale for side in size))
        keep = aligned(keep, tokens, options["align"])
    bits = None if options["bits"] is None else int(options["bits"])
    settings = {"keep": keep, "dtype": options["dtype"], "bits": bits, "steps": options["steps"], "batch": batch}
    return imagine(options["config"], spec, size, **settings)


def _write(facts: dict[str, Any]) -> Iterator[str]:
    height, width = facts["size"]
    total = sum(facts["bundle_bytes"].values())
    stored = facts["dtype"] if facts["bits"] is None else f"{facts['bits']:g}-bit"
    yield (
        f"{facts['model']}: {facts['parameters'] / 1e6:,.0f} M parameters, {total / GB:.2f} GB as a bundle in "
        f"{stored}; {height}x{width} pixels, {facts['steps']} steps, batch {facts['batch']}, "
        f"{facts['mean_keep_ratio']:.0%} of the tokens kept."
    )
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
