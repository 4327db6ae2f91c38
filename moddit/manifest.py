"""The manifest of a bundle: what it holds, how it is stored, where it came from (docs/format.md)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final, TypeVar

from moddit.errors import FormatError, MissingError, ShapeError
from moddit.graphs import Graphs, relative_path
from moddit.routing import RoutingPlan
from moddit.spec import ModelSpec

FORMAT: Final = "moddit"
FORMAT_VERSION: Final = 3
MANIFEST_NAME: Final = "manifest.json"
BACKENDS: Final = ("mlx", "coreml")
COMPONENTS: Final = ("transformer", "text_encoder", "vae", "tokenizer")
_READ_SIZE: Final = 1 << 20  # bytes

T = TypeVar("T")


@dataclass(frozen=True)
class FileInfo:
    """One file of a component."""

    path: str  # relative to the bundle, with forward slashes
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Quantization:
    """Fewer bits for the tensors listed by name; the others stay as they are."""

    bits: int
    group_size: int  # numbers that share a scale (0: a whole row), or rows that share a palette
    mode: str  # "affine" (mlx), "symmetric" or "palette" (coreml)
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class Component:
    """One component of a bundle."""

    files: tuple[FileInfo, ...]
    dtype: str | None = None  # of its large tensors; None for files that are not tensors
    parameters: int = 0
    quantization: Quantization | None = None


@dataclass(frozen=True)
class Provenance:
    """Where a bundle came from."""

    source: str
    source_sha256: str
    tool_versions: Mapping[str, str]
    created: str  # ISO 8601, UTC


@dataclass(frozen=True)
class Manifest:
    """Everything that a runtime reads before it loads a tensor."""

    backend: str  # "mlx" or "coreml"
    spec: ModelSpec
    plan: RoutingPlan | None  # None for a dense model
    components: Mapping[str, Component]
    graphs: Graphs | None  # None where the runtime builds the model from tensors (mlx)
    provenance: Provenance

    def to_json(self) -> dict[str, Any]:
        """Write the manifest with its format and version first."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "backend": self.backend,
            "spec": self.spec.to_json(),
            "plan": self.plan.to_json() if self.plan else None,
            "components": {name: asdict(component) for name, component in self.components.items()},
            "graphs": self.graphs.to_json() if self.graphs else None,
            "provenance": asdict(self.provenance),
        }

    @classmethod
    def from_json(cls, value: object, where: str) -> Manifest:
        """Read a manifest strictly.

        Raises:
            FormatError: another format or version, unknown or missing fields, or paths that leave the bundle.
            ShapeError, ValueRangeError: from the plan and the specification.
        """
        if not isinstance(value, Mapping) or value.get("format") != FORMAT:
            raise FormatError(f'[manifest] {where}: not a moddit bundle, want "format": {FORMAT!r}')
        version = value.get("format_version")
        if version != FORMAT_VERSION:
            raise FormatError(
                f"[manifest] {where}: format_version is unknown, got {version!r}, want {FORMAT_VERSION}; "
                "convert the checkpoint again, or upgrade moddit if the bundle is newer"
            )
        wanted = {"format", "format_version", *(field.name for field in fields(cls))}
        _check_fields(value, wanted, where)
        _check_fields(value["components"], set(COMPONENTS), f"{where}.components")
        spec = ModelSpec.from_json(value["spec"], f"{where}.spec")
        plan = None if value["plan"] is None else RoutingPlan.from_json(value["plan"], f"{where}.plan")
        if plan is not None and plan.layers != spec.transformer.num_layers:
            raise ShapeError(
                f"[manifest] {where}: plan has {plan.layers} layers, the transformer {spec.transformer.num_layers}"
            )
        graphs = None if value["graphs"] is None else Graphs.from_json(value["graphs"], f"{where}.graphs")
        if value["backend"] not in BACKENDS or (graphs is None) != (value["backend"] == "mlx"):
            raise FormatError(
                f"[manifest] {where}: backend is {value['backend']!r} with{'out' if graphs is None else ''} graphs, "
                'want "mlx" without or "coreml" with them'
            )
        if graphs is not None:
            graphs.check(spec, plan, f"{where}.graphs")
        manifest = cls(
            backend=value["backend"],
            spec=spec,
            plan=plan,
            components={
                name: _read_component(item, f"{where}.components.{name}") for name, item in value["components"].items()
            },
            graphs=graphs,
            provenance=_read(Provenance, value["provenance"], f"{where}.provenance"),
        )
        manifest.check_packages(where)
        return manifest

    def check_packages(self, where: str) -> None:
        """Check that the files of every package are listed, so that their hashes are known.

        Raises:
            MissingError: a package has no files.
        """
        paths = [info.path for component in self.components.values() for info in component.files]
        for package in (item for chain in self.graphs.packages.values() for item in chain) if self.graphs else ():
            if not any(path.startswith(package.path + "/") for path in paths):
                raise MissingError(f"[manifest] {where}: no component lists files of {package.path}; convert again")


def read_manifest(folder: Path) -> Manifest:
    """Read `manifest.json` of a bundle.

    Raises:
        MissingError: if there is no such file.
        FormatError: if it is not JSON, or not a manifest this version can read.
    """
    path = folder / MANIFEST_NAME
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise MissingError(
            f"[manifest] {path}: no such file; make a bundle with `python -m convert --from hf-checkpoint`"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"[manifest] {path}: cannot be read ({error})") from None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(
            f"[manifest] {path}: not JSON ({error}); the bundle is damaged, convert the checkpoint again"
        ) from None
    return Manifest.from_json(value, str(path))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` into a folder that the caller renames when it is whole."""
    text = json.dumps(manifest.to_json(), indent=2) + "\n"
    (folder / MANIFEST_NAME).write_text(text, encoding="utf-8")


def describe_file(folder: Path, path: str) -> FileInfo:
    """Measure and hash one file of a bundle."""
    file = folder / path
    return FileInfo(path=path, bytes=file.stat().st_size, sha256=hash_file(file))


def hash_file(path: Path) -> str:
    """Hash a file with SHA-256, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_READ_SIZE):
            digest.update(chunk)
    return digest.hexdigest()


def verify_files(folder: Path, manifest: Manifest, *, hashes: bool = False) -> None:
    """Check that every file of a bundle is there with its size, and with its hash if `hashes` (reads everything).

    Raises:
        MissingError: a file is absent.
        FormatError: a file has another size or hash than the manifest says.
    """
    for component in manifest.components.values():
        for info in component.files:
            file = folder / info.path
            if not file.is_file():
                raise MissingError(
                    f"[manifest] {file}: no such file, though the manifest lists it; convert the checkpoint again"
                )
            if file.stat().st_size != info.bytes:
                raise FormatError(
                    f"[manifest] {file}: got {file.stat().st_size} bytes, want {info.bytes}; "
                    "the file is truncated or changed, convert the checkpoint again"
                )
            if hashes and hash_file(file) != info.sha256:
                raise FormatError(
                    f"[manifest] {file}: its sha256 is not the manifest's; "
                    "the file has changed, convert the checkpoint again"
                )


def _read_component(value: object, where: str) -> Component:
    component = _read(Component, value, where)
    listed: object = component.files
    if not isinstance(listed, list):
        raise FormatError(f"[manifest] {where}.files: got {listed!r}, want a list")
    files = tuple(_read(FileInfo, item, f"{where}.files") for item in listed)
    for info in files:
        relative_path(info.path, where)
    quantization = component.quantization
    if quantization is not None:
        quantization = _read(Quantization, quantization, f"{where}.quantization")
        quantization = Quantization(
            quantization.bits, quantization.group_size, quantization.mode, tuple(quantization.tensors)
        )
    return Component(files, component.dtype, component.parameters, quantization)


def _read(kind: type[T], value: object, where: str) -> T:
    _check_fields(value, {field.name for field in fields(kind)}, where)  # type: ignore[arg-type]
    assert isinstance(value, Mapping)
    return kind(**value)


def _check_fields(value: object, wanted: set[str], where: str) -> None:
    if not isinstance(value, Mapping) or set(value) != wanted:
        found = sorted(value) if isinstance(value, Mapping) else type(value).__name__
        raise FormatError(f"[manifest] {where}: got {found}, want an object with exactly {sorted(wanted)}")
