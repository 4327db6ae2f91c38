"""The weights of one component, under canonical names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from moddit.checkpoint.names import canonical_tensors
from moddit.checkpoint.precision import DOUBLE, SingleTensor, check_dtypes
from moddit.checkpoint.sources import SourceFiles, Sources
from moddit.checkpoint.stored import StoredTensor
from moddit.checkpoint.weights import Naming, read_weights
from moddit.errors import UnsupportedError
from moddit.tensors import Tensors, check_names


@dataclass(frozen=True)
class Part:
    """The weights of one component."""

    wanted: Tensors
    tensors: Mapping[str, StoredTensor]  # the same names
    unused: Mapping[str, str]  # tensors that no bundle holds, with the reason
    notes: tuple[str, ...]  # what a user should know, one sentence each

    @property
    def parameters(self) -> int:
        return sum(math.prod(info.shape) for info in self.wanted.values())

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())


def read_part(name: str, folder: Path, naming: Naming, wanted: Tensors, sources: Sources, files: SourceFiles) -> Part:
    """Read the weights of a component in its library's layout; raises as `read_weights` and `finish_part`."""
    weights = read_weights(folder, naming, sources.variant)
    files.add(*weights.files)
    tensors, unused = canonical_tensors(name, weights.tensors, str(folder))
    return finish_part(name, folder, tensors, wanted, unused, weights.notes)


def finish_part(
    component: str,
    where: Path,
    tensors: dict[str, StoredTensor],
    wanted: Tensors,
    unused: Mapping[str, str],
    notes: tuple[str, ...],
) -> Part:
    """Check a component's tensors, and leave out what is not of the model, as diffusers and transformers do.

    If a wanted tensor is missing, nothing is left out: the names that are there may say why. `unused` and `notes` are
    what is known already, as in the result.

    Raises:
        ShapeError: tensors are missing or mis-shaped.
        UnsupportedError: weights of another model, or numbers that are no floats of 16, 32 or 64 bits.
    """
    if not wanted.keys() & tensors.keys():
        raise UnsupportedError(
            f"[{component}] {where}: weights of another model, got {len(tensors)} tensors such as "
            f"{min(tensors, default='none')!r}, want {next(iter(wanted))!r} and the others of this kind of {component}"
        )
    unexpected = sorted(tensors.keys() - wanted.keys()) if wanted.keys() <= tensors.keys() else []
    unused = {**unused, **dict.fromkeys(unexpected, "not of this model; left out, as diffusers and transformers do")}
    tensors = {name: tensor for name, tensor in tensors.items() if name not in unexpected}
    files = {name: tensor.path for name, tensor in tensors.items()}
    place = next(iter(files.values())) if len(set(files.values())) == 1 else where
    check_names({name: tensor.shape for name, tensor in tensors.items()}, wanted, str(place), "config.json", files)
    check_dtypes(component, tensors)
    single = {name: SingleTensor.of(tensor) if tensor.dtype == DOUBLE else tensor for name, tensor in tensors.items()}
    return Part(wanted, single, unused, notes)
