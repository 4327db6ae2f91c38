"""Options of `python -m convert mlx`: how weights are stored."""

from __future__ import annotations

from typing import Any, Final

import click

from convert.mlx.layout import Choices
from convert.mlx.recipe import Mixed, Uniform
from convert.options import add_options
from moddit.checkpoint.precision import DTYPES
from moddit.paths import expand
from moddit.quantization import AFFINE, BITS, MODES, MXFP4, Packing
from moddit.sensitivity import QuantReport

_DEFAULTS: Final = {AFFINE: Packing(8, 64, AFFINE), MXFP4: Packing(4, 32, MXFP4)}


def storage_options(command: Any) -> Any:
    """Add what `take_choices` takes."""
    return add_options(
        command,
        click.option(
            "--dtype",
            type=click.Choice(list(DTYPES)),
            default="float16",
            show_default=True,
            help="Of the large weights; norms, embeddings, modulation, routers and the final projection keep theirs.",
        ),
        click.option("-q", "--quantize", is_flag=True, help="Quantise the matrices of transformer and text encoder."),
        click.option("--q-bits", type=_numbers(BITS), help="Bits of a weight; with -q. [default: 8, mxfp4: 4]"),
        click.option(
            "--q-group-size",
            type=_numbers(MODES[AFFINE].group_sizes),
            help="Weights that share a scale; with -q. [default: 64, mxfp4: 32]",
        ),
        click.option(
            "--q-mode",
            type=click.Choice(list(_DEFAULTS)),
            help=f"Integers with scale and bias for each group, or floats of 4 bits with a power of two; with -q. "
            f"[default: {AFFINE}]",
        ),
        click.option(
            "--target-bpw",
            type=click.FloatRange(1, 16),
            metavar="BITS",
            help="Mean bits of a weight, scales included, in place of --q-bits: products that matter more get more.",
        ),
        click.option(
            "--quant-report",
            metavar="FILE",
            help="What `mlx_moddit sensitivity` found to matter; with --target-bpw.",
        ),
    )


def take_choices(options: dict[str, Any]) -> Choices:
    """Take the options of `storage_options` out of others, and make the choices of what they say.

    Raises:
        click.UsageError: options that do not go together.
        InputError: there is no such report, or it is damaged.
    """
    dtype, is_quantised = options.pop("dtype"), options.pop("quantize")
    uniform = {name: options.pop(name) for name in ("q_bits", "q_group_size", "q_mode")}
    mixed = {name: options.pop(name) for name in ("target_bpw", "quant_report")}
    said = [name for name, value in (uniform | mixed).items() if value is not None]
    if not is_quantised:
        if said:
            raise click.UsageError(f"{_flag(said[0])} says how to quantise, which is not asked for; add -q")
        return Choices(dtype)
    if not any(mixed.values()):
        return Choices(dtype, Uniform(_packing(**uniform)))
    if said != list(mixed):
        raise click.UsageError(f"got {' and '.join(map(_flag, said))}, want {' and '.join(map(_flag, mixed))} alone")
    path = expand(mixed["quant_report"])
    return Choices(dtype, Mixed(QuantReport.read(path), str(path), mixed["target_bpw"]))


def _packing(q_bits: str | None, q_group_size: str | None, q_mode: str | None) -> Packing:
    usual = _DEFAULTS[q_mode or AFFINE]
    mode = MODES[usual.mode]
    bits = _allowed("--q-bits", q_bits, mode.bits, usual.bits, usual.mode)
    return Packing(
        bits, _allowed("--q-group-size", q_group_size, mode.group_sizes, usual.group_size, usual.mode), usual.mode
    )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _allowed(option: str, given: str | None, allowed: tuple[int, ...], usual: int, mode: str) -> int:
    value = usual if given is None else int(given)
    if value not in allowed:
        raise click.UsageError(f"--q-mode {mode} takes {option} {' or '.join(map(str, allowed))}, got {value}")
    return value


def _numbers(values: tuple[int, ...]) -> click.Choice[str]:
    return click.Choice(list(map(str, values)))
