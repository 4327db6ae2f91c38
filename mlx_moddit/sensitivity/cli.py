"""The options of `mlx_moddit sensitivity`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

import click
from tqdm import tqdm

from mlx_moddit.console import exit_on_error
from mlx_moddit.embedded import embedded_bundle
from mlx_moddit.images import check_outputs
from mlx_moddit.load import DTYPES, Bundle, load_bundle
from mlx_moddit.pipeline import default_dtype
from mlx_moddit.sensitivity.measure import measure
from moddit.bins import parse_size
from moddit.files import new_file
from moddit.paths import expand
from moddit.quantization import AFFINE, MODES
from moddit.request import Request

_STEPS: Final = 4


@click.command()
@click.option("--model", metavar="DIR", help="Bundle to measure, not quantised.  [default: the embedded model]")
@click.option("--quant-report", "report", required=True, metavar="FILE", help="Report to write, for `convert mlx`.")
@click.option("-p", "--prompt", "prompts", multiple=True, help="What to draw; repeatable.  [default: an example]")
@click.option("--label", "labels", multiple=True, metavar="NAME|N", help="Class to draw; repeatable.")
@click.option("--num-images", type=click.IntRange(1, 100), default=4, show_default=True, help="Pictures for each.")
@click.option("--steps", type=click.IntRange(1), default=_STEPS, show_default=True, help="Denoising steps.")
@click.option("--size", metavar="HxW", help="Pixels.  [default: the model's]")
@click.option(
    "--q-group-size",
    type=click.Choice(list(map(str, MODES[AFFINE].group_sizes))),
    default="64",
    show_default=True,
    help="Weights that share a scale in affine mode.",
)
@click.option("--overwrite", is_flag=True, help="Replace the report if it exists.")
def sensitivity(**options: Any) -> None:
    """Tell what pictures lose with each product of a model in fewer bits.

    `python -m convert mlx -q --target-bpw BITS --quant-report FILE` gives the more bits to those that lose most.
    """
    with exit_on_error():
        target = expand(options["report"])
        check_outputs((target,), overwrite=options["overwrite"])
        model = embedded_bundle() if options["model"] is None else expand(options["model"])
        bundle = load_bundle(model, DTYPES.get(default_dtype()))
        with tqdm(desc="measuring", file=sys.stderr, disable=None) as bar:

            def advance(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            found = measure(bundle, list(_requests(bundle, options)), int(options["q_group_size"]), advance)
        with new_file(target, overwrite=options["overwrite"]) as file:
            file.write(found.write().encode())
    click.echo(target)


def _requests(bundle: Bundle, options: dict[str, Any]) -> Iterator[Request]:
    spec = bundle.spec
    subjects: list[dict[str, Any]] = [{"prompt": prompt} for prompt in options["prompts"]]
    subjects += [{"label": spec.number(label)} for label in options["labels"]]
    height, width = (None, None) if options["size"] is None else parse_size(options["size"])
    for subject in subjects or [dict(spec.conditioning.EXAMPLE)]:
        first = Request.complete(spec, **subject, height=height, width=width, steps=options["steps"])
        for seed in range(options["num_images"]):
            yield replace(first, seed=seed)
