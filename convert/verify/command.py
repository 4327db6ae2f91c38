"""`python -m convert verify`: does a bundle for Core ML compute what its checkpoint does?"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import click

from convert.installed import VERIFY_MODULES, WRITE_MODULES, check_installed
from convert.verify.device_process import TIMEOUT
from convert.verify.framework import UNITS
from moddit.conditioning import Text
from moddit.edits import Edit
from moddit.errors import ParityError
from moddit.manifest import Manifest, read_manifest
from moddit.request import Request
from moddit.signals import uninterrupted
from moddit.text import printable

PROMPT: Final = Text.EXAMPLE["prompt"]


@click.command(short_help="Compare a bundle for Core ML with PyTorch.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--prompt", help=f"Of the picture that is compared.  [default: {PROMPT}]")
@click.option("--label", help="Class of the picture that is compared, of a model of classes.  [default: 0]")
@click.option("--seed", type=int, default=0, show_default=True, help="Of its noise.")
@click.option("--steps", type=click.IntRange(1), default=20, show_default=True, help="Of its sampling run.")
@click.option("--reuse", type=click.IntRange(1), default=1, show_default=True, help="As mlx_moddit generate.")
@click.option(
    "--guidance-scale",
    "--guidance",
    type=float,
    help="Of its classifier-free guidance.  [default: as mlx_moddit generate]",
)
@click.option("--image", metavar="FILE", help="Picture that it is drawn over, as mlx_moddit generate.")
@click.option("--mask", metavar="FILE|BOX", help="What of the image is drawn anew.")
@click.option("--strength", type=click.FloatRange(0, 1), metavar="SHARE", help="Of an edit.")
@click.option("--picture/--no-picture", default=True, show_default=True, help="Compare a whole picture too.")
@click.option("--on-device", is_flag=True, help="macOS: compile, predict and time every function with Core ML instead.")
@click.option(
    "--compute-units",
    type=click.Choice(UNITS),
    help="With --on-device: where Core ML may compute. [default: what the manifest says]",
)
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=click.FloatRange(0, min_open=True),
    default=TIMEOUT,
    show_default=True,
    help="With --on-device: that a function may take, its first load included.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(
    bundle: Path,
    picture: bool,
    on_device: bool,
    compute_units: str | None,
    timeout: float,
    as_json: bool,
    **wanted: Any,
) -> None:
    """Run every function of BUNDLE, from its saved packages alone, and compare with PyTorch.

    Works on any machine. The report goes to standard output and to parity.json in the bundle, the pictures to
    verify-*.png beside it. The exit status is 1 if something differs by more than rounding.

    With --on-device each function runs in a process of its own: one that crashes or does not end is reported, and the
    others run nevertheless. The exit status is 1 then too.
    """
    if compute_units is not None and not on_device:
        raise click.UsageError("--compute-units means something with --on-device only")
    asked = [name for name in ("image", "mask", "strength") if wanted[name] is not None]
    if asked and (on_device or not picture):
        raise click.UsageError(f"--{asked[0]} means something for the picture that is compared only")
    check_installed(*WRITE_MODULES, *VERIFY_MODULES)
    manifest = read_manifest(bundle)
    if on_device:
        _verify_on_device(bundle, manifest, compute_units, timeout, as_json)
        return
    with uninterrupted():  # the libraries that this loads may swallow exceptions
        from convert.verify.verification import verify_bundle
    request, edit = _request(manifest, **wanted) if picture else (None, None)
    report = verify_bundle(bundle, manifest, request, edit)
    report.write(bundle)
    click.echo(json.dumps(report.to_json(), indent=2) if as_json else report.to_text())
    if not report.passed:
        raise ParityError(f"[verify] {bundle}: does not compute what the reference does; convert the checkpoint again")


def _request(
    manifest: Manifest,
    *,
    prompt: str | None = None,
    label: str | None = None,
    image: str | None = None,
    mask: str | None = None,
    **given: Any,
) -> tuple[Request, Edit | None]:
    """Ask for a picture, or an edit, of the size that the model was trained at, or one that there is a function for."""
    from moddit.pictures import open_edit

    spec, sizes = manifest.spec, manifest.graphs.sizes if manifest.graphs else ()
    trained = (spec.default_side, spec.default_side)
    height, width = sizes[0] if sizes and trained not in sizes else trained
    subject: dict[str, Any] = {} if prompt is None else {"prompt": prompt}
    subject |= {} if label is None else {"label": spec.number(label)}
    edit = open_edit(spec, image, mask, height=height, width=width)
    request = Request.complete(spec, **(subject or spec.conditioning.EXAMPLE), **given, edit=edit)
    return replace(request, height=height, width=width), edit  # whatever the exporter has made a function for


def _verify_on_device(bundle: Path, manifest: Manifest, units: str | None, timeout: float, as_json: bool) -> None:
    with uninterrupted():
        from convert.verify.device import check_on_device
    report = check_on_device(
        bundle, manifest, units, seconds=timeout, told=lambda what: click.echo(printable(what), err=True)
    )
    click.echo(json.dumps(report.to_json(), indent=2) if as_json else report.to_text())
    if not report.passed:
        raise ParityError(f"[verify] {bundle}: with Core ML these failed: {'; '.join(report.failures)}")
