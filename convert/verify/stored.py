"""`reference.npz`: the inputs and the reference's outputs of every function, stored when a bundle is written.

Read without trust: what a bundle's functions need is known from its manifest, so every array is expected by name, shape
and dtype before anything of it is in memory, and whatever else is in the file is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import stat
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from moddit.errors import FormatError, MissingError, ParityError
from moddit.graphs import Graphs, StepFunction
from moddit.manifest import Manifest
from moddit.routing import RoutingPlan, region_timesteps
from moddit.spec import ModelSpec
from moddit.tokens import TokenPolicy

REFERENCE_NAME: Final = "reference.npz"
DESCRIPTION: Final = "description_sha256"  # key of the hash of what the manifest says
OVERHEAD: Final = 4096  # bytes of an array's header and of its entries in the archive

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Wanted:
    """An array that must be there."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


_HASH: Final = Wanted((), np.dtype("<U64"))


def reference_file(folder: Path) -> Path:
    """Where the exporter stores the inputs and the reference's outputs of every function."""
    return folder / REFERENCE_NAME


def case_name(role: str, function: str, timestep: int | None) -> str:
    """Name a run of a function; its arrays are `NAME/output` and `NAME/input/FEATURE`."""
    return f"{role}/{function}" + ("" if timestep is None else f"/t{timestep}")


def region_edges(plan: RoutingPlan, item: StepFunction) -> list[tuple[int, int]]:
    """First and last timestep of each region that a function is for."""
    timesteps = (region_timesteps(region, plan.regions, plan.num_train_timesteps) for region in item.regions)
    return [(found[0], found[-1]) for found in timesteps]


def stored_cases(plan: RoutingPlan, graphs: Graphs) -> list[tuple[str, str, str]]:
    """List role, function and name of every run that is stored: a step's at the last timestep of its regions."""
    timesteps = {item.function: region_edges(plan, item)[-1][-1] for item in graphs.step_functions}
    return [
        (role, name, case_name(role, name, timesteps[name] if role == "transformer" else None))
        for role, names in graphs.runs().items()
        for name in names
    ]


def store(folder: Path, spec: ModelSpec, policy: TokenPolicy, graphs: Graphs, arrays: Mapping[str, Any]) -> None:
    """Write the arrays of all cases; raise OSError if they cannot be written."""
    path = reference_file(folder)
    digest = np.array(_digest(spec, policy, graphs))
    np.savez_compressed(path, allow_pickle=False, **{**arrays, DESCRIPTION: digest})


def read_stored(folder: Path, manifest: Manifest) -> Arrays:
    """Read the arrays of all cases, and check that they are of this bundle, which has packages.

    Raises:
        MissingError: there is no such file.
        FormatError: it is damaged, lacks an array, or has one that no function needs.
        ParityError: it was stored for another specification, plan or functions.
    """
    assert manifest.graphs is not None
    path = reference_file(folder)
    wanted = _wanted_arrays(manifest.tokens.plan, manifest.graphs)
    try:
        _check_file(path, wanted)
        with ZipFile(path) as archive:
            _check_description(archive, folder, _digest(manifest.spec, manifest.tokens, manifest.graphs))
            _check_members(archive, wanted)
            return {name: _read_array(archive, name, item) for name, item in wanted.items() if name != DESCRIPTION}
    except FileNotFoundError:
        raise MissingError(f"[verify] {path}: no such file; convert the checkpoint again") from None
    except (OSError, ValueError, EOFError, BadZipFile, zlib.error, RuntimeError) as error:
        raise FormatError(f"[verify] {path}: cannot be read ({error}); convert the checkpoint again") from None


def _wanted_arrays(plan: RoutingPlan, graphs: Graphs) -> dict[str, Wanted]:
    wanted = {DESCRIPTION: _HASH}
    for role, name, case in stored_cases(plan, graphs):
        for key, feature in graphs.told(role, name).items():
            wanted[f"{case}/input/{key}"] = Wanted(feature.shape, np.dtype(feature.dtype))
        (output,) = graphs.packages[role][-1].function(name).outputs.values()
        wanted[f"{case}/output"] = Wanted(output.shape, np.dtype(np.float32))
    return wanted


def _check_file(path: Path, wanted: Mapping[str, Wanted]) -> None:
    """Check that an archive is no larger than what is wanted of it."""
    status = path.stat()
    most = OVERHEAD + sum(OVERHEAD + item.bytes for item in wanted.values())
    if not stat.S_ISREG(status.st_mode) or status.st_size > most:
        raise ValueError(f"has {status.st_size} bytes, want a file of at most {most}")


def _check_description(archive: ZipFile, folder: Path, digest: str) -> None:
    if f"{DESCRIPTION}.npy" not in archive.namelist():
        raise ValueError(f"lacks {DESCRIPTION!r}")
    if str(_read_array(archive, DESCRIPTION, _HASH)) != digest:
        raise ParityError(
            f"[verify] {folder}: specification, plan or functions in the manifest are not those that were converted; "
            "convert the checkpoint again"
        )


def _check_members(archive: ZipFile, wanted: Mapping[str, Wanted]) -> None:
    """Check names and sizes, as the archive's directory tells them, before anything is unpacked."""
    names = [info.filename.removesuffix(".npy") for info in archive.infolist()]
    lacking, unknown = sorted(wanted.keys() - set(names)), sorted(set(names) - wanted.keys())
    if lacking or unknown:
        counts = [f"{len(items)} ({items[0]!r})" if items else "none" for items in (lacking, unknown)]
        raise ValueError(f"not whole: of the arrays wanted it lacks {counts[0]}, of others it has {counts[1]}")
    if len(names) != len(wanted):
        raise ValueError("has an array twice")
    for info in archive.infolist():
        most = wanted[info.filename.removesuffix(".npy")].bytes + OVERHEAD
        if info.file_size > most:
            raise ValueError(f"{info.filename!r} unpacks to {info.file_size} bytes, want at most {most}")


def _read_array(archive: ZipFile, name: str, wanted: Wanted) -> NDArray[Any]:
    """Read one array, of which the header must say what is wanted."""
    with archive.open(f"{name}.npy") as file:
        if npy.read_magic(file) != (1, 0):
            raise ValueError(f"{name!r} is of another version, want 1.0")
        shape, is_fortran, dtype = npy.read_array_header_1_0(file)
        if shape != wanted.shape or dtype != wanted.dtype:
            raise ValueError(f"{name!r} is {dtype} {shape}, want {wanted.dtype} {wanted.shape}")
        data = file.read(wanted.bytes)
        if len(data) != wanted.bytes or file.read(1):
            raise ValueError(f"{name!r} has another size than its shape says")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if is_fortran else "C")


def _digest(spec: ModelSpec, policy: TokenPolicy, graphs: Graphs) -> str:
    """Hash what a manifest says of the model: packages cannot tell, for one, whether their regions were swapped."""
    value = [spec.to_json(), policy.to_json(), graphs.to_json()]
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
