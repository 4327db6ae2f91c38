"""What the packages of a bundle compute, for backends that run finished graphs (Core ML) instead of building models.

A graph is static: picture size, batch and the capacity of every layer are fixed, so there is one function for each
combination that is used. A runtime finds the function of a step by the picture's size, the batch and the region of the
step's timestep, and feeds it features by name.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Final

from msgspec import Meta

from moddit.bounds import (
    DIMENSIONS,
    FEATURE_SIZE,
    FEATURES,
    FUNCTIONS,
    LAYERS,
    PACKAGES,
    REGIONS,
    TOKENS,
    Batch,
    Identifier,
    Name,
    RelativePath,
    Side,
    Version,
    choice,
)
from moddit.contract import (
    IMAGE,
    INTEGERS,
    LATENTS,
    MOMENTS,
    PREDICTION,
    PREPARE,
    TEXT_ENCODER,
    batch_name,
    handed_name,
    size_name,
    taken_name,
)
from moddit.errors import FormatError, MissingError, ShapeError, ValueRangeError
from moddit.models.transformer import Shapes
from moddit.record import escape, quote
from moddit.routing import PlanRecord, RoutingPlan, capacity
from moddit.spec import ModelSpec

# What the packages of each component do; a tokenizer has none, and not every transformer is prepared.
ROLES: Final[Mapping[str, tuple[str, ...]]] = {
    TEXT_ENCODER: (TEXT_ENCODER,),
    "transformer": (PREPARE, "transformer"),
    "vae": ("vae_decoder", "vae_encoder"),
}
DIVIDED: Final = ("transformer",)  # roles that may have several packages, which run one after the other
COMPUTE_UNITS: Final = ("cpuOnly", "cpuAndGPU", "cpuAndNeuralEngine", "all")
ROUTINGS: Final = ("rows", "onehot")
FEATURE_DTYPES: Final = ("float32", "float16", "int32")
PICTURE_CHANNELS: Final = 3


@dataclass(frozen=True)
class Feature:
    """An input or output of a function."""

    shape: Annotated[tuple[Annotated[int, Meta(ge=1, le=FEATURE_SIZE)], ...], Meta(min_length=1, max_length=DIMENSIONS)]
    dtype: Annotated[str, choice(*FEATURE_DTYPES)]

    def __post_init__(self) -> None:
        if math.prod(self.shape) > FEATURE_SIZE:
            raise ValueRangeError(f"[graphs] shape is {list(self.shape)}, want at most {FEATURE_SIZE} numbers")


Features = Annotated[Mapping[Name, Feature], Meta(min_length=1, max_length=FEATURES)]


@dataclass(frozen=True)
class GraphFunction:
    """One function of a package."""

    name: Identifier
    inputs: Features
    outputs: Features


@dataclass(frozen=True)
class Package:
    """One package of a bundle."""

    path: RelativePath
    functions: Annotated[tuple[GraphFunction, ...], Meta(min_length=1, max_length=FUNCTIONS)]

    def function(self, name: str) -> GraphFunction:
        """Find a function; raises MissingError if there is none of this name."""
        for function in self.functions:
            if function.name == name:
                return function
        raise MissingError(
            f"[graphs] {escape(self.path)}: has no function {name!r}, got {[item.name for item in self.functions]}"
        )


@dataclass(frozen=True)
class StepFunction:
    """One function of the transformer's packages, which all have it: the steps that it is for."""

    function: Identifier
    height: Side  # of the picture, pixels
    width: Side  # pixels
    batch: Batch  # 2 runs both halves of classifier-free guidance in one call
    regions: Annotated[  # of timesteps
        tuple[Annotated[int, Meta(ge=0, lt=REGIONS)], ...], Meta(min_length=1, max_length=REGIONS)
    ]
    capacities: Annotated[  # tokens that each layer keeps
        tuple[Annotated[int, Meta(ge=1, le=TOKENS)], ...], Meta(min_length=1, max_length=LAYERS)
    ]


@dataclass(frozen=True)
class Graphs:
    """All packages of a bundle."""

    minimum_os: Mapping[str, str]  # "iOS" and "macOS" to a version
    compute_units: str  # that the packages suit best, one of COMPUTE_UNITS
    routing: str  # one of ROUTINGS
    packages: Mapping[str, tuple[Package, ...]]  # role to packages, which run one after the other
    step_functions: tuple[StepFunction, ...]
    trained_plan: RoutingPlan  # the checkpoint's; the bundle's own may have fewer rows, or keep more

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """Picture heights and widths that the bundle can draw, pixels."""
        return tuple(dict.fromkeys((item.height, item.width) for item in self.step_functions))

    @property
    def batches(self) -> tuple[int, ...]:
        """Batches that the transformer runs in."""
        return tuple(dict.fromkeys(item.batch for item in self.step_functions))

    def step_function(self, height: int, width: int, batch: int, region: int) -> StepFunction:
        """Find the function for a picture size (pixels), a batch and a region of timesteps; raises MissingError."""
        for item in self.step_functions:
            if (item.height, item.width, item.batch) == (height, width, batch) and region in item.regions:
                return item
        raise MissingError(self._explain(height, width, batch, region))

    def runs(self) -> dict[str, list[str]]:
        """Name by role the functions that give something for itself, all but those that prepare others."""
        return {
            role: [function.name for function in chain[0].functions]
            for role, chain in self.packages.items()
            if role != PREPARE
        }

    def calls(self, role: str, name: str) -> list[tuple[Package, GraphFunction]]:
        """List what a run of a function calls, in order: every package of its role, and before a step what prepares it.

        Raises MissingError if a package has no such function.
        """
        found = [(package, package.function(name)) for package in self.packages[role]]
        if role != "transformer":
            return found
        batch = next(item.batch for item in self.step_functions if item.function == name)
        return [(package, package.function(batch_name(batch))) for package in self.packages.get(PREPARE, ())] + found

    def told(self, role: str, name: str) -> dict[str, Feature]:
        """List what a run of a function has to be told: what its calls take, but for what earlier ones give."""
        told: dict[str, Feature] = {}
        given: set[str] = set()
        for _, function in self.calls(role, name):
            told |= {key: feature for key, feature in function.inputs.items() if key not in given}
            given |= {taken_name(key) for key in function.outputs}
        return told

    def to_json(self) -> dict[str, Any]:
        """Write every field."""
        return {**asdict(self), "trained_plan": self.trained_plan.to_json()}

    @classmethod
    def of(cls, record: GraphsRecord, where: str) -> Graphs:
        """Make the graphs of a record; raises as `RoutingPlan.of`."""
        return cls(
            minimum_os=asdict(record.minimum_os),
            compute_units=record.compute_units,
            routing=record.routing,
            packages=record.packages,
            step_functions=record.step_functions,
            trained_plan=RoutingPlan.of(record.trained_plan, f"{where}.trained_plan"),
        )

    def check(self, spec: ModelSpec, plan: RoutingPlan, where: str) -> None:
        """Check that for every size and batch each region has one function, with the capacities that the plan gives it,
        and that packages have these functions, one for each picture size in the VAE's, and no others, with the features
        that the specification gives them.

        Raises:
            FormatError: other packages than the model needs.
            MissingError: a region or a package has no function.
            ShapeError: capacities are not the plan's, features not the model's, or nothing is said of a function.
        """
        self._check_roles(spec, where)
        rows = [plan.row(region) for region in range(plan.regions)]
        found = {(*_key(item), region): item for item in reversed(self.step_functions) for region in item.regions}
        for height, width in self.sizes:
            tokens = _count_tokens(spec, height, width, where)
            kept = {row: tuple(capacity(tenths, tokens) for tenths in row) for row in set(rows)}
            for batch in self.batches:
                for region, row in enumerate(rows):
                    if (height, width, batch, region) not in found:
                        raise MissingError(f"{self._explain(height, width, batch, region)} (in {where})")
                    self._check_region(found[height, width, batch, region], region, kept[row], where)
        named = [region for item in self.step_functions for region in item.regions]
        if len(named) != len(rows) * len(self.sizes) * len(self.batches) or not set(named) <= set(range(len(rows))):
            raise ShapeError(
                f"[graphs] {where}: want one function for each of {len(rows)} regions, got regions {quote(named)}"
            )
        for role, packages in self.packages.items():
            for number, package in enumerate(packages):
                self._check_names(spec, role, package, where)
                wanted_functions = self._functions(spec, role, number == 0, number == len(packages) - 1)
                _check_features(package, dict(wanted_functions), where)

    def _check_roles(self, spec: ModelSpec, where: str) -> None:
        wanted = package_roles(spec)
        if set(self.packages) != set(wanted):
            raise FormatError(
                f"[graphs] {where}: packages are {', '.join(map(quote, sorted(self.packages)))}, want exactly "
                f"{', '.join(map(quote, sorted(wanted)))}; convert the checkpoint again"
            )
        for role, packages in self.packages.items():
            if len(packages) > 1 and role not in DIVIDED:
                raise FormatError(f"[graphs] {where}: packages.{role} is of length {len(packages)}, want 1")

    def _explain(self, height: int, width: int, batch: int, region: int) -> str:
        return (
            f"[graphs] no function for {height}x{width} pixels, batch {batch}, region {region}; the bundle has sizes "
            f"{', '.join(f'{h}x{w}' for h, w in self.sizes)} and batches {', '.join(map(str, self.batches))}"
        )

    def _check_names(self, spec: ModelSpec, role: str, package: Package, where: str) -> None:
        found = sorted(function.name for function in package.functions)
        if role in spec.conditioning.features():
            wanted = found[:1] or ["any"]
        elif role == PREPARE:
            wanted = sorted(map(batch_name, self.batches))
        elif role == "transformer":
            wanted = sorted(item.function for item in self.step_functions)
        else:
            wanted = sorted(size_name(*size) for size in self.sizes)
        if found != wanted or len(set(found)) < len(found):
            raise ShapeError(f"[graphs] {where}: {escape(package.path)} has functions {found}, want {wanted or 'one'}")

    def _check_region(self, item: StepFunction, region: int, wanted: tuple[int, ...], where: str) -> None:
        if item.capacities != wanted:
            raise ShapeError(
                f"[graphs] {where}: function {item.function!r} keeps {list(item.capacities)} tokens by layer, the plan "
                f"says {list(wanted)} in region {region}; convert the checkpoint again"
            )

    def _functions(
        self, spec: ModelSpec, role: str, is_first: bool, is_last: bool
    ) -> Iterator[tuple[str, GraphFunction]]:
        """List the functions of a package, by name, with the features that they have to have."""
        if role in spec.conditioning.features():
            name = self.packages[role][0].functions[0].name
            yield name, encoder_function(spec, role, name)
        elif role == PREPARE:
            for batch in self.batches:
                yield batch_name(batch), prepare_function(spec, batch)
        elif role == "transformer":
            for item in self.step_functions:
                yield item.function, step_features(spec, item, is_first=is_first, is_last=is_last)
        else:
            for size in self.sizes:
                yield size_name(*size), vae_function(spec, role, *size)


Chain = Annotated[tuple[Package, ...], Meta(min_length=1, max_length=PACKAGES)]


@dataclass(frozen=True)
class SystemsRecord:
    """The oldest systems that run the packages."""

    iOS: Version  # noqa: N815 # as Apple writes it
    macOS: Version  # noqa: N815


@dataclass(frozen=True)
class GraphsRecord:
    """The "graphs" object of a manifest."""

    minimum_os: SystemsRecord
    compute_units: Annotated[str, choice(*COMPUTE_UNITS)]
    routing: Annotated[str, choice(*ROUTINGS)]
    packages: Annotated[Mapping[Name, Chain], Meta(min_length=1, max_length=FEATURES)]
    step_functions: Annotated[tuple[StepFunction, ...], Meta(min_length=1, max_length=FUNCTIONS)]
    trained_plan: PlanRecord


def package_roles(spec: ModelSpec) -> tuple[str, ...]:
    """List what the packages of a model do."""
    roles = tuple(role for component in spec.components for role in ROLES.get(component, ()))
    is_prepared = any(spec.transformer.prepare_features(1, spec.text_tokens))
    return roles if is_prepared else tuple(role for role in roles if role != PREPARE)


def encoder_function(spec: ModelSpec, role: str, name: str) -> GraphFunction:
    """Describe the function of a component that only a conditioning has."""
    inputs, outputs = spec.conditioning.features()[role]
    return GraphFunction(name, _features(inputs), _features(outputs))


def prepare_function(spec: ModelSpec, batch: int) -> GraphFunction:
    """Describe the function that prepares the steps of a batch, in float16."""
    inputs, outputs = spec.transformer.prepare_features(batch, spec.text_tokens)
    return GraphFunction(batch_name(batch), _features(inputs), _features(outputs, "float16"))


def step_features(spec: ModelSpec, item: StepFunction, *, is_first: bool, is_last: bool) -> GraphFunction:
    """Describe a step's function in one of the transformer's packages, which hand on float16."""
    model, sides = spec.transformer, (item.height // spec.vae.downscale, item.width // spec.vae.downscale)
    fed = model.step_features(item.batch, model.tokens(*sides), spec.text_tokens)
    first = {LATENTS: (item.batch, model.in_channels, *sides), **fed.first}
    inputs = _features(first) if is_first else _features(fed.handed, "float16")
    outputs = {handed_name(name): feature for name, feature in _features(fed.handed, "float16").items()}
    always = {**_features(fed.always), **prepare_function(spec, item.batch).outputs}
    prediction = {PREDICTION: (item.batch, model.latent_channels, *sides)}
    return GraphFunction(item.function, inputs | always, _features(prediction) if is_last else outputs)


def vae_function(spec: ModelSpec, role: str, height: int, width: int) -> GraphFunction:
    """Describe the function for a picture size (pixels) of the VAE's "vae_decoder" or "vae_encoder"."""
    channels, latents = spec.vae.latent_channels, (height // spec.vae.downscale, width // spec.vae.downscale)
    image = _features({IMAGE: (1, PICTURE_CHANNELS, height, width)})
    if role == "vae_decoder":
        return GraphFunction(size_name(height, width), _features({LATENTS: (1, channels, *latents)}), image)
    return GraphFunction(size_name(height, width), image, _features({MOMENTS: (1, 2 * channels, *latents)}))


def _features(shapes: Shapes, dtype: str = "float32") -> dict[str, Feature]:
    return {name: Feature(shape, "int32" if name in INTEGERS else dtype) for name, shape in shapes.items()}


def _key(item: StepFunction) -> tuple[int, int, int]:
    return item.height, item.width, item.batch


def _count_tokens(spec: ModelSpec, height: int, width: int, where: str) -> int:
    """Count the tokens of a picture; raises ShapeError if it is not made of whole patches, or has too many."""
    unit = spec.pixels_per_patch
    if height % unit or width % unit:
        raise ShapeError(f"[graphs] {where}: a size is {height}x{width} pixels, want multiples of {unit}")
    tokens = (height // unit) * (width // unit)
    if tokens > TOKENS:
        raise ShapeError(f"[graphs] {where}: {height}x{width} pixels are {tokens} tokens, want at most {TOKENS}")
    return tokens


def _check_features(package: Package, wanted: Mapping[str, GraphFunction], where: str) -> None:
    """Raise ShapeError if a function has other inputs or outputs than the model gives it."""
    for function in package.functions:
        for side in ("inputs", "outputs"):
            found, right = getattr(function, side), getattr(wanted[function.name], side)
            wrong = sorted(name for name in found.keys() | right.keys() if found.get(name) != right.get(name))
            if wrong:
                raise ShapeError(
                    f"[graphs] {where}: {escape(package.path)} has other {side} in {quote(function.name)} than the "
                    f"model, got {_describe(wrong[0], found)}, want {_describe(wrong[0], right)}; convert the "
                    "checkpoint again"
                )


def _describe(name: str, features: Mapping[str, Feature]) -> str:
    feature = features.get(name)
    return f"no {quote(name)}" if feature is None else f"{quote(name)} {list(feature.shape)} {feature.dtype}"
