"""The manifest of a bundle: what it holds, how it is stored, where it came from (docs/format.md)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final

from msgspec import Meta

from moddit.bounds import (
    FEATURES,
    FILE_BYTES,
    FILES,
    PARAMETERS,
    TENSORS,
    WIDTH,
    Name,
    RelativePath,
    Sha256,
    Text,
    Versions,
    choice,
)
from moddit.errors import FormatError, MissingError, ShapeError, UnsupportedError, ValueRangeError
from moddit.graphs import Graphs, GraphsRecord
from moddit.record import Origin, decode, escape, quote, read_json, system_errors
from moddit.routing import RoutingPlan
from moddit.spec import ModelRecord, ModelSpec
from moddit.tokens import TokenPolicy, TokensRecord

FORMAT: Final = "moddit"
FORMAT_VERSION: Final = 4
MANIFEST_NAME: Final = "manifest.json"
BACKENDS: Final = ("mlx", "coreml")
WITHOUT_TENSORS: Final = ("tokenizer",)
DTYPES: Final = ("float16", "bfloat16", "float32")
# Bits of the modes of quantisation.
MODES: Final[Mapping[str, tuple[int, ...]]] = {"affine": (4, 8), "symmetric": (4, 8), "palette": (4, 6)}
AFFINE_GROUPS: Final = (32, 64, 128)
ADVICE: Final = "convert the checkpoint again"
_READ_SIZE: Final = 1 << 20  # bytes

DType = Annotated[str, choice(*DTYPES)]


@dataclass(frozen=True)
class FileInfo:
    """One file of a component."""

    path: RelativePath
    bytes: Annotated[int, Meta(ge=0, le=FILE_BYTES)]
    sha256: Sha256


@dataclass(frozen=True)
class Quantization:
    """Fewer bits for the tensors listed by name; the others stay as they are."""

    bits: Annotated[int, Meta(ge=1, le=16)]
    group_size: Annotated[int, Meta(ge=0, le=WIDTH)]  # that share a scale (0: a whole row), or rows with one palette
    mode: Annotated[str, choice(*MODES)]  # "affine" (mlx), "symmetric" or "palette" (coreml)
    tensors: Annotated[tuple[Name, ...], Meta(min_length=1, max_length=TENSORS)]

    def __post_init__(self) -> None:
        if self.bits not in MODES[self.mode]:
            raise UnsupportedError(
                f"[manifest] quantization of mode {self.mode} has {self.bits} bits, want one of {MODES[self.mode]}"
            )
        if self.mode == "affine" and self.group_size not in AFFINE_GROUPS:
            raise UnsupportedError(f"[manifest] group_size is {self.group_size}, want one of {AFFINE_GROUPS}")
        if len(set(self.tensors)) < len(self.tensors):
            raise FormatError("[manifest] quantization lists tensors twice")


@dataclass(frozen=True)
class Component:
    """One component of a bundle."""

    files: Annotated[tuple[FileInfo, ...], Meta(min_length=1, max_length=FILES)]
    dtype: DType | None = None  # of its large tensors; None for files that are not tensors
    parameters: Annotated[int, Meta(ge=0, le=PARAMETERS)] = 0
    quantization: Quantization | None = None


@dataclass(frozen=True)
class Provenance:
    """Where a bundle came from."""

    source: Text
    source_sha256: Sha256
    tool_versions: Versions
    created: Annotated[  # ISO 8601, UTC
        str,
        Meta(
            pattern=r"^[0-9]{4}(?:-[0-9]{2}){2}T[0-9]{2}(?::[0-9]{2}){2}(?:Z|\+00:00)(?![\s\S])",
            max_length=25,
            description="a time in UTC such as 2026-01-31T12:00:00Z",
        ),
    ]


@dataclass(frozen=True)
class Manifest:
    """Everything that a runtime reads before it loads a tensor."""

    fingerprint: str  # of what the bundle holds (`fingerprint`)
    backend: str  # "mlx" or "coreml"
    spec: ModelSpec
    tokens: TokenPolicy
    components: Mapping[str, Component]  # those of the specification
    graphs: Graphs | None  # None where the runtime builds the model from tensors (mlx)
    provenance: Provenance

    def to_json(self) -> dict[str, Any]:
        """Write the manifest with its format and version first."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "fingerprint": self.fingerprint,
            "backend": self.backend,
            "spec": self.spec.to_json(),
            "tokens": self.tokens.to_json(),
            "components": {name: asdict(component) for name, component in self.components.items()},
            "graphs": self.graphs.to_json() if self.graphs else None,
            "provenance": asdict(self.provenance),
        }

    @classmethod
    def from_json(cls, value: object, where: str) -> Manifest:
        """Read a manifest strictly.

        Raises:
            FormatError: another format or version, unknown or missing fields, or paths that leave the bundle.
            InputError: what does not fit together, or is out of bounds.
        """
        if not isinstance(value, Mapping) or value.get("format") != FORMAT:
            raise FormatError(f'[manifest] {escape(where)}: not a moddit bundle, want "format": {FORMAT!r}')
        version = value.get("format_version")
        if version != FORMAT_VERSION:
            raise FormatError(
                f"[manifest] {escape(where)}: format_version is unknown, got {quote(version)}, want {FORMAT_VERSION}; "
                f"{ADVICE}, or upgrade moddit if the bundle is newer"
            )
        record = decode(value, ManifestRecord, Origin("manifest", where, ADVICE))
        manifest = cls(
            fingerprint=record.fingerprint,
            backend=record.backend,
            spec=ModelSpec.of(record.spec, f"{where}.spec"),
            tokens=TokenPolicy.of(record.tokens, f"{where}.tokens"),
            components=record.components,
            graphs=None if record.graphs is None else Graphs.of(record.graphs, f"{where}.graphs"),
            provenance=record.provenance,
        )
        manifest.check(where)
        return manifest

    def check(self, where: str) -> None:
        """Check that the parts fit together.

        Raises:
            ShapeError, ValueRangeError: the plan is one of another model.
            FormatError: other components than the model has, graphs for the wrong backend, or a model without a dtype.
            InputError: as `Graphs.check` and `check_packages`.
        """
        self._check_components(where)
        self._check_plan(self.tokens.plan, where)
        if (self.graphs is None) != (self.backend == "mlx"):
            raise FormatError(
                f"[manifest] {where}: backend is {self.backend!r} with{'out' if self.graphs is None else ''} graphs, "
                'want "mlx" without or "coreml" with them'
            )
        for name in self.components:
            if self.components[name].dtype is None and name not in WITHOUT_TENSORS:
                raise FormatError(f"[manifest] {where}: components.{name}.dtype is null, want {' or '.join(DTYPES)}")
        if self.graphs is not None:
            self._check_plan(self.graphs.trained_plan, where)
            self.graphs.check(self.spec, self.tokens.plan, f"{where}.graphs")
        self.check_packages(where)

    def _check_components(self, where: str) -> None:
        wanted = self.spec.components
        if set(self.components) != set(wanted):
            raise FormatError(
                f"[manifest] {where}: components are {', '.join(map(quote, sorted(self.components)))}, want exactly "
                f"{', '.join(map(quote, sorted(wanted)))}; {ADVICE}"
            )

    def _check_plan(self, plan: RoutingPlan, where: str) -> None:
        layers, timesteps = self.spec.transformer.num_layers, self.spec.scheduler.num_train_timesteps
        if plan.layers != layers:
            raise ShapeError(
                f"[manifest] {where}: keep_tenths of the plan has {plan.layers} layers, the transformer {layers}"
            )
        if plan.num_train_timesteps != timesteps:
            raise ValueRangeError(
                f"[manifest] {where}: num_train_timesteps is {plan.num_train_timesteps} in the plan and {timesteps} in "
                "the scheduler"
            )

    def check_packages(self, where: str) -> None:
        """Raise MissingError unless files of every package are listed, so that their hashes are known."""
        paths = [info.path for component in self.components.values() for info in component.files]
        for package in (item for chain in self.graphs.packages.values() for item in chain) if self.graphs else ():
            if not any(path.startswith(package.path + "/") for path in paths):
                raise MissingError(
                    f"[manifest] {where}: no component lists files of {escape(package.path)}; convert again"
                )


def read_manifest(folder: Path) -> Manifest:
    """Read `manifest.json` of a bundle; raises MissingError if there is none, otherwise as `Manifest.from_json`."""
    path = folder / MANIFEST_NAME
    absent = "make a bundle with `python -m convert --from hf-checkpoint`"
    value = read_json(path, Origin("manifest", str(path), f"the bundle is damaged, {ADVICE}"), absent=absent)
    return Manifest.from_json(value, str(path))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json` into a folder that the caller renames when it is whole."""
    text = json.dumps(manifest.to_json(), indent=2) + "\n"
    (folder / MANIFEST_NAME).write_text(text, encoding="utf-8")


def describe_file(folder: Path, path: str) -> FileInfo:
    """Measure and hash one file of a bundle."""
    file = folder / path
    return FileInfo(path=path, bytes=file.stat().st_size, sha256=hash_file(file))


def hash_file(path: Path, advance: Callable[[int], object] = lambda _: None) -> str:
    """Hash a file with SHA-256, hexadecimal; `advance` is told how many more bytes are done."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_READ_SIZE):
            digest.update(chunk)
            advance(len(chunk))
    return digest.hexdigest()


def verify_files(folder: Path, manifest: Manifest, *, hashes: bool = False) -> None:
    """Check that every file of a bundle is there with its size, and with its hash if `hashes` (reads everything).

    Files may be links, as downloads from the Hub are, but not their folders, to another place.

    Raises:
        MissingError: a file is absent.
        FormatError: a file has another size or hash than the manifest says, or cannot be read.
    """
    for component in manifest.components.values():
        for info in component.files:
            with system_errors("manifest"):
                _verify_file(folder, info, hashes=hashes)


def fingerprint(spec: ModelSpec, tokens: TokenPolicy, components: Mapping[str, Component]) -> str:
    """Hash what a bundle holds, independent of where it lies and when it was made."""
    files = sorted((info.path, info.sha256) for item in components.values() for info in item.files)
    text = json.dumps([files, spec.to_json(), tokens.to_json()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _verify_file(folder: Path, info: FileInfo, *, hashes: bool) -> None:
    file = folder / info.path
    name = escape(str(file))
    if not file.is_file():
        raise MissingError(f"[manifest] {name}: no such file, though the manifest lists it; {ADVICE}")
    if not file.parent.resolve().is_relative_to(folder.resolve()):
        raise FormatError(f"[manifest] {name}: its folder is a link that leaves the bundle; copy the bundle again")
    size = file.stat().st_size
    if size != info.bytes:
        raise FormatError(
            f"[manifest] {name}: got {size} bytes, want {info.bytes}; the file is truncated or changed, {ADVICE}"
        )
    if hashes and hash_file(file) != info.sha256:
        raise FormatError(f"[manifest] {name}: its sha256 is not the manifest's; the file has changed, {ADVICE}")


@dataclass(frozen=True)
class ManifestRecord:
    """`manifest.json`, of which docs/manifest.schema.json is made."""

    format: Annotated[str, choice(FORMAT)]
    format_version: Annotated[int, Meta(ge=FORMAT_VERSION, le=FORMAT_VERSION)]
    fingerprint: Sha256
    backend: Annotated[str, choice(*BACKENDS)]
    spec: ModelRecord
    tokens: TokensRecord
    components: Annotated[Mapping[Name, Component], Meta(min_length=1, max_length=FEATURES)]
    graphs: GraphsRecord | None
    provenance: Provenance
