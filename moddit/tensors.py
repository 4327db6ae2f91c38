"""The canonical tensors of a component: their names, shapes and roles. Its module in `moddit.models` lists them.

Canonical names are those of diffusers and transformers, per component; shapes are PyTorch's (a convolution is
(out, in, height, width), a linear layer (out, in)). A backend that stores another layout converts by role.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

from moddit.errors import ShapeError

_LISTED: Final = 12  # differences that a message spells out
TIMESTEP_CHANNELS: Final = 256  # width of the sinusoid of a timestep, resolution or aspect ratio (diffusers)
ROUTER: Final = "transformer_blocks.{layer}.router.weight"
# Training only; the snapped plan is the truth for inference.
KEEP_RATIO: Final = "transformer_blocks.{layer}.keep_ratio"


class Role(Enum):
    """What a tensor does, which decides its layout, precision and whether it may be quantised."""

    LINEAR = "linear"  # weight of a matrix product on tokens
    CONV = "conv"
    NORM = "norm"
    EMBEDDING = "embedding"
    MODULATION = "modulation"  # adaLN tables, and what computes the one of all blocks
    BLOCK_MODULATION = "block modulation"  # what computes a block's own: in all a third of a model
    ROUTER = "router"
    OUTPUT = "output"  # final projection
    BIAS = "bias"

    @property
    def is_quantisable(self) -> bool:
        """Whether error in this tensor stays small in the output: only the large matrix products."""
        return self is Role.LINEAR


UNCOMPRESSED: Final = frozenset({"vae"})  # components whose few matrices are stored whole
# Small, and errors in them reach every token: never stored or computed narrower than in the checkpoint.
PRECISE_ROLES: Final = frozenset({Role.NORM, Role.EMBEDDING, Role.MODULATION, Role.ROUTER, Role.OUTPUT})


@dataclass(frozen=True)
class TensorInfo:
    """One canonical tensor."""

    shape: tuple[int, ...]
    role: Role


Tensors = dict[str, TensorInfo]


def is_precise(name: str, tensors: Mapping[str, TensorInfo]) -> bool:
    """Say whether a tensor keeps its precision; a bias is as precise as the weight it goes with."""
    weight = tensors.get(name.removesuffix("bias") + "weight") if tensors[name].role is Role.BIAS else None
    return (weight or tensors[name]).role in PRECISE_ROLES


def check_names(
    found: Mapping[str, Sequence[int]],
    wanted: Mapping[str, TensorInfo],
    where: str,
    configuration: str,
    files: Mapping[str, Path] | None = None,
) -> None:
    """Compare a file's tensors, by their shapes in canonical layout, with the canonical ones, both ways.

    Messages name the file that says what is wanted, `configuration`, and the files of the tensors, if there are
    several.

    Raises:
        ShapeError: one sorted report of every missing, unexpected and mis-shaped tensor.
    """
    lines = sorted(_differences(found, wanted, files or {}))
    if lines:
        more = [f"... and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else []
        report = "\n  ".join([*lines[:_LISTED], *more])
        raise ShapeError(
            f"[tensors] {where}: {len(lines)} tensors differ from what {configuration} says; "
            f"check that it belongs to these weights:\n  {report}"
        )


def _differences(
    found: Mapping[str, Sequence[int]], wanted: Mapping[str, TensorInfo], files: Mapping[str, Path]
) -> Iterator[str]:
    places = {name: f" in {path.name}" for name, path in files.items()}
    for name in wanted.keys() - found.keys():
        yield f"missing     {name}, want {wanted[name].shape}"
    for name in found.keys() - wanted.keys():
        yield f"unexpected  {name}, got {tuple(found[name])}{places.get(name, '')}"
    for name in found.keys() & wanted.keys():
        if tuple(found[name]) != wanted[name].shape:
            yield f"mis-shaped  {name}, got {tuple(found[name])}, want {wanted[name].shape}{places.get(name, '')}"


def linear(name: str, width_out: int, width_in: int, *, bias: bool = True, role: Role = Role.LINEAR) -> Tensors:
    """List weight and bias of a linear layer."""
    tensors = {name + ".weight": TensorInfo((width_out, width_in), role)}
    if bias:
        tensors[name + ".bias"] = TensorInfo((width_out,), Role.BIAS)
    return tensors


def timestep_embedding(name: str, width: int, *, role: Role = Role.MODULATION) -> Tensors:
    """List the tensors of a TimestepEmbedding: two linear layers over a sinusoid."""
    first = linear(name + ".linear_1", width, TIMESTEP_CHANNELS, role=role)
    return first | linear(name + ".linear_2", width, width, role=role)


def conv(name: str, width_out: int, width_in: int, side: int) -> Tensors:
    """List weight and bias of a convolution."""
    return {
        name + ".weight": TensorInfo((width_out, width_in, side, side), Role.CONV),
        name + ".bias": TensorInfo((width_out,), Role.BIAS),
    }
