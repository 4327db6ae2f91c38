"""What the packages of a bundle compute, for backends that run finished graphs (Core ML) instead of building models.

A graph is static: picture size, batch and the capacity of every layer are fixed, so there is one function for each
combination that is used. A runtime finds the function of a step by the picture's size, the batch and the region of the
step's timestep, and feeds it features by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import PurePosixPath
from typing import Any, Final

from moddit.errors import FormatError, MissingError, ShapeError
from moddit.routing import RoutingPlan
from moddit.spec import ModelSpec

ROLES: Final = ("text_encoder", "transformer", "vae_decoder", "vae_encoder")
COMPUTE_UNITS: Final = ("cpuAndGPU", "cpuAndNeuralEngine", "all")
ROUTINGS: Final = ("rows", "onehot")
FEATURE_DTYPES: Final = ("float32", "float16", "int32")


@dataclass(frozen=True)
class Feature:
    """An input or output of a function."""

    shape: tuple[int, ...]
    dtype: str  # one of FEATURE_DTYPES


@dataclass(frozen=True)
class GraphFunction:
    """One function of a package."""

    name: str
    inputs: Mapping[str, Feature]
    outputs: Mapping[str, Feature]


@dataclass(frozen=True)
class Package:
    """One package of a bundle."""

    path: str  # relative to the bundle
    functions: tuple[GraphFunction, ...]

    def function(self, name: str) -> GraphFunction:
        """Find a function.

        Raises:
            MissingError: there is none of this name.
        """
        for function in self.functions:
            if function.name == name:
                return function
        raise MissingError(
            f"[graphs] {self.path}: has no function {name!r}, got {[item.name for item in self.functions]}"
        )


@dataclass(frozen=True)
class Denoiser:
    """One function of the transformer's packages, which all have it: what it is for."""

    function: str
    height: int  # of the picture, pixels
    width: int  # pixels
    batch: int  # 2 runs both halves of classifier-free guidance in one call
    regions: tuple[int, ...]  # of timesteps; (0,) for a dense model
    capacities: tuple[int, ...]  # tokens that each layer keeps


@dataclass(frozen=True)
class Graphs:
    """All packages of a bundle."""

    minimum_os: Mapping[str, str]  # "iOS" and "macOS" to a version
    compute_units: str  # that the packages suit best, one of COMPUTE_UNITS
    routing: str  # one of ROUTINGS
    packages: Mapping[str, tuple[Package, ...]]  # role to packages, which run one after the other
    denoisers: tuple[Denoiser, ...]
    trained_plan: RoutingPlan | None  # the checkpoint's, where the bundle's plan has fewer rows

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Picture heights and widths that the bundle can draw, pixels."""
        return tuple(dict.fromkeys((denoiser.height, denoiser.width) for denoiser in self.denoisers))

    @property
    def batches(self) -> tuple[int, ...]:
        """Batches that the transformer runs in."""
        return tuple(dict.fromkeys(denoiser.batch for denoiser in self.denoisers))

    def denoiser(self, height: int, width: int, batch: int, region: int) -> Denoiser:
        """Find the function for a picture size (pixels), a batch and a region of timesteps.

        Raises:
            MissingError: the bundle has none.
        """
        for item in self.denoisers:
            if (item.height, item.width, item.batch) == (height, width, batch) and region in item.regions:
                return item
        raise MissingError(
            f"[graphs] no function for {height}x{width} pixels, batch {batch}, region {region}; the bundle has sizes "
            f"{', '.join(f'{h}x{w}' for h, w in self.sizes)} and batches {', '.join(map(str, self.batches))}"
        )

    def to_json(self) -> dict[str, Any]:
        """Write every field."""
        return {
            "minimum_os": dict(self.minimum_os),
            "compute_units": self.compute_units,
            "routing": self.routing,
            "packages": {role: [asdict(package) for package in packages] for role, packages in self.packages.items()},
            "denoisers": [asdict(denoiser) for denoiser in self.denoisers],
            "trained_plan": self.trained_plan.to_json() if self.trained_plan else None,
        }

    @classmethod
    def from_json(cls, value: object, where: str) -> Graphs:
        """Read what `to_json` wrote.

        Raises:
            FormatError: unknown or missing fields, or values of the wrong type.
        """
        found = _object(value, {field.name for field in fields(cls)}, where)
        packages = _object(found["packages"], set(ROLES), f"{where}.packages")
        plan = found["trained_plan"]
        return cls(
            minimum_os={
                name: _text(item, f"{where}.minimum_os.{name}")
                for name, item in _object(found["minimum_os"], {"iOS", "macOS"}, f"{where}.minimum_os").items()
            },
            compute_units=_choice(found["compute_units"], COMPUTE_UNITS, f"{where}.compute_units"),
            routing=_choice(found["routing"], ROUTINGS, f"{where}.routing"),
            packages={
                role: tuple(_read_package(item, f"{where}.packages.{role}") for item in _list(items, f"{where}.{role}"))
                for role, items in packages.items()
            },
            denoisers=tuple(
                _read_denoiser(item, f"{where}.denoisers[{index}]")
                for index, item in enumerate(_list(found["denoisers"], f"{where}.denoisers"))
            ),
            trained_plan=None if plan is None else RoutingPlan.from_json(plan, f"{where}.trained_plan"),
        )

    def check(self, spec: ModelSpec, plan: RoutingPlan | None, where: str) -> None:
        """Check that for every size and batch each region has one function, with the capacities that the plan gives it,
        and that packages have these functions, one for each picture size in the VAE's, and no others.

        Raises:
            MissingError: a region or a package has no function.
            ShapeError: capacities are not the plan's, or there are functions that nothing is said of.
        """
        regions = plan.regions if plan else 1
        for height, width in self.sizes:
            tokens = spec.transformer.tokens(height // spec.vae.downscale, width // spec.vae.downscale)
            for batch in self.batches:
                for region in range(regions):
                    wanted = plan.capacities(region, tokens) if plan else (tokens,) * spec.transformer.num_layers
                    self._check_region(self.denoiser(height, width, batch, region), region, wanted, where)
        named = [region for item in self.denoisers for region in item.regions]
        if len(named) != regions * len(self.sizes) * len(self.batches) or not set(named) <= set(range(regions)):
            raise ShapeError(f"[graphs] {where}: want one function for each of {regions} regions, got regions {named}")
        for role, packages in self.packages.items():
            for package in packages:
                self._check_functions(role, package, where)

    def _check_functions(self, role: str, package: Package, where: str) -> None:
        found = sorted(function.name for function in package.functions)
        wanted = {
            "text_encoder": found[:1] or ["any"],
            "transformer": sorted(item.function for item in self.denoisers),
        }.get(role, sorted(size_name(*size) for size in self.sizes))
        if found != wanted or len(set(found)) < len(found):
            raise ShapeError(f"[graphs] {where}: {package.path} has functions {found}, want {wanted or 'one'}")

    def _check_region(self, item: Denoiser, region: int, wanted: tuple[int, ...], where: str) -> None:
        if item.capacities != wanted:
            raise ShapeError(
                f"[graphs] {where}: function {item.function!r} keeps {list(item.capacities)} tokens by layer, the plan "
                f"says {list(wanted)} in region {region}; convert the checkpoint again"
            )


def _read_package(value: object, where: str) -> Package:
    found = _object(value, {"path", "functions"}, where)
    functions = tuple(_read_function(item, f"{where}.functions") for item in _list(found["functions"], where))
    return Package(relative_path(found["path"], f"{where}.path"), functions)


def _read_function(value: object, where: str) -> GraphFunction:
    found = _object(value, {field.name for field in fields(GraphFunction)}, where)
    return GraphFunction(
        _text(found["name"], f"{where}.name"),
        _read_features(found["inputs"], where),
        _read_features(found["outputs"], where),
    )


def _read_features(value: object, where: str) -> dict[str, Feature]:
    if not isinstance(value, Mapping):
        raise FormatError(f"[graphs] {where}: got {type(value).__name__}, want an object of features")
    features = {}
    for name, item in value.items():
        found = _object(item, {"shape", "dtype"}, f"{where}.{name}")
        if found["dtype"] not in FEATURE_DTYPES:
            raise FormatError(f"[graphs] {where}.{name}: dtype is {found['dtype']!r}, want {', '.join(FEATURE_DTYPES)}")
        features[name] = Feature(_integers(found["shape"], f"{where}.{name}.shape"), found["dtype"])
    return features


def _read_denoiser(value: object, where: str) -> Denoiser:
    found = _object(value, {field.name for field in fields(Denoiser)}, where)
    height, width, batch = _integers([found["height"], found["width"], found["batch"]], where)
    return Denoiser(
        _text(found["function"], f"{where}.function"),
        height,
        width,
        batch,
        regions=_integers(found["regions"], f"{where}.regions", least=0),
        capacities=_integers(found["capacities"], f"{where}.capacities"),
    )


def _integers(value: object, where: str, *, least: int = 1) -> tuple[int, ...]:
    items = _list(value, where)
    if not all(type(item) is int and item >= least for item in items):
        raise FormatError(f"[graphs] {where}: got {items}, want integers of at least {least}")
    return tuple(items)


def size_name(height: int, width: int) -> str:
    """Name a picture size in pixels as functions are named."""
    return f"px{height}x{width}"


def relative_path(value: object, where: str) -> str:
    """Check that a path stays within the bundle.

    Raises:
        FormatError: it does not, or is no path.
    """
    path = PurePosixPath(_text(value, where))
    if path.is_absolute() or ".." in path.parts or not path.parts or "\\" in str(path):
        raise FormatError(f"[manifest] {where}: path {value!r} leaves the bundle, want a relative path inside it")
    return str(value)


def _choice(value: object, allowed: tuple[str, ...], where: str) -> str:
    if value not in allowed:
        raise FormatError(f"[graphs] {where}: got {value!r}, want {' or '.join(allowed)}")
    return str(value)


def _text(value: object, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise FormatError(f"[graphs] {where}: got {value!r}, want a text")
    return value


def _list(value: object, where: str) -> Sequence[Any]:
    if not isinstance(value, list):
        raise FormatError(f"[graphs] {where}: got {type(value).__name__}, want a list")
    if not value:
        raise FormatError(f"[graphs] {where}: got an empty list, want at least one entry")
    return value


def _object(value: object, wanted: set[str], where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or set(value) != wanted:
        found = sorted(value) if isinstance(value, Mapping) else type(value).__name__
        raise FormatError(f"[graphs] {where}: got {found}, want an object with exactly {sorted(wanted)}")
    return value
