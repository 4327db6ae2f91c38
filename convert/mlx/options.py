"""Options of `python -m convert mlx`: how weights are stored."""

from __future__ import annotations

from typing import Any, Final

import click

from convert.mlx.layout import Choices
from convert.options import add_options
from moddit.checkpoint.precision import DTYPES
from moddit.quantization import AFFINE, BITS, MODES, MXFP4, Packing

_DEFAULTS: Final = {AFFINE: Packing(8, 64, AFFINE), MXFP4: Packing(4, 32, MXFP4)}


def storage_options(command: Any) -> Any:
    """Add what `choose` takes."""
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
            default=AFFINE,
            show_default=True,
            help="Integers with scale and bias for each group, or floats of 4 bits with a power of two; with -q.",
        ),
    )


def choose(*, dtype: str, quantize: bool, q_bits: str | None, q_group_size: str | None, q_mode: str) -> Choices:
    """Make the choices of what the options say.

    Raises:
        click.UsageError: options that do not go together.
    """
    given = {"--q-bits": q_bits, "--q-group-size": q_group_size, "--q-mode": None if q_mode == AFFINE else q_mode}
    if not quantize:
        vain = [name for name, value in given.items() if value is not None]
        if vain:
            raise click.UsageError(f"{vain[0]} says how to quantise, which is not asked for; add -q")
        return Choices(dtype)
    usual, mode = _DEFAULTS[q_mode], MODES[q_mode]
    bits = _allowed("--q-bits", q_bits, mode.bits, usual.bits, q_mode)
    group_size = _allowed("--q-group-size", q_group_size, mode.group_sizes, usual.group_size, q_mode)
    return Choices(dtype, Packing(bits, group_size, q_mode))


def _allowed(option: str, given: str | None, allowed: tuple[int, ...], usual: int, mode: str) -> int:
    value = usual if given is None else int(given)
    if value not in allowed:
        raise click.UsageError(f"--q-mode {mode} takes {option} {' or '.join(map(str, allowed))}, got {value}")
    return value


def _numbers(values: tuple[int, ...]) -> click.Choice[str]:
    return click.Choice(list(map(str, values)))
