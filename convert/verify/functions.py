"""Every function of every package against the reference, with inputs that depend on nothing but their shapes.

In exact arithmetic the packages compute the reference's formulas with the reference's weights, so they have to agree to
EXACT_TOLERANCE, and to keep the same tokens but for those whose scores tie within float32's rounding; if some do tie,
the reference is run again with the tokens that the package kept. In rounded arithmetic errors of float16 add up, and a
token whose score is nearly the last one kept may be routed otherwise: these are reported, not judged.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convert.verify.bundle import Packages
from convert.verify.reference import Reference
from convert.verify.stored import case_name, region_edges
from moddit.conditioning import Text
from moddit.contract import IMAGE, INPUT_IDS, LABELS, TEXT, TEXT_ENCODER, TEXT_MASK, TIMESTEP, kept_layer
from moddit.noise import torch_randn
from moddit.spec import ModelSpec
from torch_moddit.model import BlockTrace

EXACT_TOLERANCE: Final = 1e-4  # of the largest output: float32's rounding through all layers stays below a tenth of it
TIE_MARGIN: Final = 1e-5  # of a layer's range of scores: what the order of sums in float32 may move a score
TEXT_SHARE: Final = 0.6  # of the tokens are text in the second row of a batch, the rest padding

Arrays = dict[str, NDArray[Any]]
Kept = tuple[frozenset[int], ...]  # tokens of each sample


@dataclass(frozen=True)
class Case:
    """One run of a function."""

    role: str
    function: str
    timestep: int | None
    inputs: Arrays

    @property
    def name(self) -> str:
        """Key of its arrays in reference.npz."""
        return case_name(self.role, self.function, self.timestep)


@dataclass(frozen=True)
class Outcome:
    """How a case came out; errors are shares of the largest output."""

    case: str
    exact_error: float  # with the tokens that the package kept
    flipped_exact: int  # tokens routed otherwise than in the reference
    tie_margin: float  # largest distance of such a token's score to the last one kept, as a share of the scores' range
    rounded_mean: float | None = None
    rounded_p999: float | None = None
    flipped_rounded: tuple[int, ...] = ()  # by layer
    stored_error: float | None = None  # of the reference that was stored when the bundle was written

    @property
    def passed(self) -> bool:
        stored = self.stored_error is None or self.stored_error <= EXACT_TOLERANCE
        return self.exact_error <= EXACT_TOLERANCE and self.tie_margin <= TIE_MARGIN and stored


def list_cases(packages: Packages, reference: Reference, *, quick: bool) -> Iterator[Case]:
    """List the runs of all functions: a step at the edges of its regions, or if `quick` at one timestep.

    A step is run after what prepares it, which is not compared by itself: a fault in that shows in every step.

    The reference encodes the texts that steps are given, since routers and norms were trained on such states.
    """
    spec, texts = packages.spec, _Texts(reference)
    for role, names in packages.graphs.runs().items():
        for index, function in enumerate(names):
            shapes = {name: feature.shape for name, feature in packages.graphs.told(role, function).items()}
            inputs = _make_inputs(shapes, spec, index)
            if role != "transformer":
                yield Case(role, function, None, inputs)
                continue
            item = next(item for item in packages.graphs.step_functions if item.function == function)
            sizes = spec.transformer.size_features(item.height, item.width)
            inputs |= {name: np.array(values, np.float32) for name, values in sizes.items()}
            if TEXT in inputs:
                inputs[TEXT] = texts.encode(inputs[TEXT_MASK])
            edges = [edge for pair in region_edges(packages.policy.plan, item) for edge in pair]
            for timestep in edges[-1:] if quick else edges:
                yield Case(role, function, timestep, {**inputs, TIMESTEP: np.array([timestep], np.float32)})


class _Texts:
    """Texts as the reference encodes them, once for all functions of a batch."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        self._encoded: dict[tuple[int, ...], NDArray[np.float32]] = {}  # by the shape of the masks, which decides them

    def encode(self, masks: NDArray[np.float32]) -> NDArray[np.float32]:
        """Shapes: masks (B, L) -> (B, L, d_model)."""
        if masks.shape not in self._encoded:
            ids = _make_inputs({INPUT_IDS: (1, masks.shape[1])}, self.reference.spec, 0)[INPUT_IDS]
            inputs = {INPUT_IDS: np.repeat(ids, len(masks), axis=0), TEXT_MASK: masks}
            self._encoded[masks.shape] = self.reference.run(TEXT_ENCODER, inputs)
        return self._encoded[masks.shape]


def _make_inputs(shapes: Mapping[str, tuple[int, ...]], spec: ModelSpec, seed: int) -> Arrays:
    inputs: Arrays = {}
    for number, (name, shape) in enumerate(sorted(shapes.items())):
        if name == INPUT_IDS:
            assert isinstance(spec.conditioning, Text)
            inputs[name] = (np.arange(shape[1], dtype=np.int32)[None] * 7 + 3) % spec.conditioning.encoder.vocab_size
        elif name == LABELS:  # the first row is no class
            classes = spec.transformer.num_classes
            inputs[name] = (classes + np.arange(shape[0], dtype=np.int32) * 7) % (classes + 1)
        elif name == TEXT_MASK:
            inputs[name] = np.ones(shape, np.float32)
            inputs[name][-1, max(1, round(TEXT_SHARE * shape[1])) :] = 0
        else:
            inputs[name] = torch_randn(shape, 1000 * seed + number)
    if IMAGE in inputs:
        inputs[IMAGE] = np.clip(inputs[IMAGE] / 2, -1, 1)
    return inputs


def check_case(
    case: Case,
    reference: Reference,
    exact: Packages,
    rounded: Packages | None = None,
    stored: Mapping[str, NDArray[Any]] | None = None,
) -> tuple[Outcome, NDArray[np.float32]]:
    """Run one case; return its outcome and the reference's output."""
    wanted, routes = _run_reference(reference, case)
    real = _real_rows(case, wanted)
    found, kept = _run_packages(exact, case)
    flips = _count_flips(routes, kept)
    margin, target = _tie_margin(routes, kept), wanted
    if any(flips) and margin <= TIE_MARGIN:
        target, _ = _run_reference(reference, case, _as_indices(routes, kept))
    outcome = Outcome(case.name, _error(found, target, real), sum(flips), margin)
    if rounded is not None:
        found, kept = _run_packages(rounded, case)
        errors = np.abs(found - wanted)[real] / _largest(wanted, real)
        mean, p999 = float(errors.mean()), float(np.quantile(errors, 0.999))
        flips = _count_flips(routes, kept)
        outcome = replace(outcome, rounded_mean=mean, rounded_p999=p999, flipped_rounded=flips)
    if stored is not None and case.name in stored:
        outcome = replace(outcome, stored_error=_error(stored[case.name], wanted, real))
    return outcome, wanted


@dataclass(frozen=True)
class Route:
    """What a layer of the reference did."""

    kept: Kept
    scores: NDArray[np.float32]  # (B, N)


def _run_reference(
    reference: Reference, case: Case, forced: Sequence[Tensor] | None = None
) -> tuple[NDArray[np.float32], dict[int, Route]]:
    routes: dict[int, Route] = {}

    def on_block(trace: BlockTrace) -> None:
        if trace.scores is not None:
            kept = tuple(frozenset(sample.tolist()) for sample in trace.kept)
            routes[trace.layer] = Route(kept, trace.scores.numpy())

    return reference.run(case.role, case.inputs, on_block, forced), routes


def _run_packages(packages: Packages, case: Case) -> tuple[NDArray[np.float32], dict[int, Kept]]:
    kept: dict[int, Kept] = {}

    def watch(name: str, values: tuple[Tensor, ...]) -> None:
        layer = kept_layer(name)
        if layer is not None:
            is_onehot = values[-1].is_floating_point()  # 1 for the tokens kept
            rows = (row.nonzero().flatten() if is_onehot else row for row in values[-1])
            kept[layer] = tuple(frozenset(row.tolist()) for row in rows)

    return packages.run(case.role, case.function, case.inputs, watch), kept


def _count_flips(routes: Mapping[int, Route], kept: Mapping[int, Kept]) -> tuple[int, ...]:
    """Count by layer the tokens that the reference keeps and the package does not."""
    return tuple(
        sum(len(want - got) for want, got in zip(routes[layer].kept, _kept(routes[layer], kept, layer), strict=True))
        for layer in sorted(routes)
    )


def _kept(route: Route, kept: Mapping[int, Kept], layer: int) -> Kept:
    """What a package kept in a layer: all tokens where it chose none, as it does at full capacity."""
    everything = frozenset(range(route.scores.shape[1]))
    return kept.get(layer, (everything,) * len(route.kept))


def _tie_margin(routes: Mapping[int, Route], kept: Mapping[int, Kept]) -> float:
    """Measure how far the first layer's choice that differs is from a tie; later ones see other tokens."""
    for layer in sorted(routes):
        margins = []
        for want, got, scores in zip(
            routes[layer].kept, _kept(routes[layer], kept, layer), routes[layer].scores, strict=True
        ):
            if want != got:
                last = min(scores[list(want)])
                moved = [abs(float(scores[token] - last)) for token in want ^ got]
                margins.append(max(moved) / max(1e-12, float(np.ptp(scores))) if len(want) == len(got) else math.inf)
        if margins:
            return max(margins)
    return 0.0


def _as_indices(routes: Mapping[int, Route], kept: Mapping[int, Kept]) -> list[Tensor]:
    """Arrange the tokens that a package kept as the reference takes them: one tensor (B, K) for each layer."""
    return [torch.tensor([sorted(tokens) for tokens in _kept(routes[layer], kept, layer)]) for layer in sorted(routes)]


def _real_rows(case: Case, output: NDArray[np.float32]) -> Any:
    """What of an output counts: states of padding mean nothing."""
    if INPUT_IDS in case.inputs:
        return case.inputs[TEXT_MASK].astype(bool)
    return np.ones(output.shape, bool)


def _error(found: NDArray[np.float32], wanted: NDArray[np.float32], real: Any) -> float:
    error = float(np.abs(found - wanted)[real].max()) / _largest(wanted, real)
    return error if np.isfinite(error) else float("inf")


def _largest(output: NDArray[np.float32], real: Any) -> float:
    return max(1e-12, float(np.abs(output[real]).max()))
