"""Which tokens each block keeps: keep ratios, regions of timesteps, capacities, and the ranking rule of all backends.

A block of a routed transformer processes the `capacity` tokens with the largest router scores and leaves the others
unchanged. The share it keeps depends on the layer and on the region of the timestep, and is an integer number of
tenths, so that every backend derives the same capacity from it.

Source: DiffCR (arXiv 2412.16822), section 3.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Annotated, Any, Final

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from moddit.bounds import LAYERS, REGIONS, Regions, Timesteps
from moddit.errors import ShapeError, ValueRangeError
from moddit.record import Origin, decode

DENOMINATOR: Final = 10  # keep ratios are tenths: 1/10 .. 10/10
Tenths = Annotated[int, Meta(ge=1, le=DENOMINATOR)]
Row = Annotated[tuple[Tenths, ...], Meta(min_length=1, max_length=REGIONS)]


def capacity(tenths: int, tokens: int) -> int:
    """Count the tokens a block keeps of `tokens` at a keep ratio of `tenths` / 10: the exact ceiling, at least 1.

    Integers only: in float32 `ceil(ratio * tokens)` is one too many for some sizes (720 tokens at 3/10 gives 217).

    Raises:
        ValueRangeError: if `tenths` is not in 1..10 or `tokens` is not positive.
    """
    if not 1 <= tenths <= DENOMINATOR:
        raise ValueRangeError(
            f"[routing] keep ratio out of range, got {tenths}/{DENOMINATOR}, want 1..{DENOMINATOR} tenths"
        )
    if tokens < 1:
        raise ValueRangeError(f"[routing] token count out of range, got {tokens}, want at least 1")
    return max(1, -(-tenths * tokens // DENOMINATOR))


def region_timesteps(region: int, regions: int, num_train_timesteps: int) -> range:
    """List the timesteps t of a region: those with t * regions // num_train_timesteps == region, in integers only."""
    first, after = (-(-edge * num_train_timesteps // regions) for edge in (region, region + 1))
    return range(first, after)


def snap(keep_ratio: float) -> int:
    """Round a learned keep ratio to its nearest bin, in tenths: clamped to 1..10, halves up.

    Raises ValueRangeError if the ratio is NaN or infinite.
    """
    if not math.isfinite(keep_ratio):
        raise ValueRangeError(f"[routing] keep ratio is not a number, got {keep_ratio}, want 0.1..1.0")
    return min(DENOMINATOR, max(1, math.floor(keep_ratio * DENOMINATOR + 0.5)))


def select_tokens(scores: NDArray[np.floating[Any]], count: int) -> NDArray[np.int64]:
    """Pick the tokens with the largest raw router scores: the reference ranking that every backend must equal.

    Ties go to the lower index; the result is in ascending index order.

    Shapes:
        scores (B, N), finite -> kept (B, count)

    Raises ShapeError if `scores` is not two-dimensional or `count` is not in 1..N.
    """
    if scores.ndim != 2 or not 1 <= count <= scores.shape[1]:
        raise ShapeError(
            f"[routing] cannot keep {count} tokens of scores {scores.shape}, want (B, N) with 1 <= count <= N"
        )
    order = np.argsort(-scores, axis=-1, kind="stable")[:, :count]
    return np.sort(order, axis=-1).astype(np.int64)


@dataclass(frozen=True)
class RoutingPlan:
    """The keep ratio of every layer in every region of timesteps.

    Region r covers the timesteps t with ``t * regions // num_train_timesteps == r``; region 0 is the cleanest.
    """

    keep_tenths: tuple[tuple[int, ...], ...]  # [layers][regions], 1..10
    num_train_timesteps: int = 1000

    def __post_init__(self) -> None:
        widths = {len(row) for row in self.keep_tenths}
        if len(widths) != 1 or 0 in widths:
            raise ShapeError(
                f"[routing] keep_tenths is ragged or empty, got rows of {sorted(widths)}, want [layers][regions]"
            )
        for layer, row in enumerate(self.keep_tenths):
            for region, tenths in enumerate(row):
                if type(tenths) is not int or not 1 <= tenths <= DENOMINATOR:
                    raise ValueRangeError(
                        f"[routing] keep_tenths[{layer}][{region}] out of range, "
                        f"got {tenths!r}, want an integer in 1..{DENOMINATOR}"
                    )
        if type(self.num_train_timesteps) is not int or self.num_train_timesteps < self.regions:
            raise ValueRangeError(
                f"[routing] num_train_timesteps out of range, "
                f"got {self.num_train_timesteps!r}, want an integer of at least {self.regions}"
            )

    @classmethod
    def uniform(cls, layers: int, regions: int, tenths: int, num_train_timesteps: int = 1000) -> RoutingPlan:
        """Make a plan with one keep ratio everywhere."""
        return cls(((tenths,) * regions,) * layers, num_train_timesteps)

    @property
    def layers(self) -> int:
        return len(self.keep_tenths)

    @property
    def regions(self) -> int:
        return len(self.keep_tenths[0])

    @property
    def mean_keep_ratio(self) -> float:
        """Mean over layers and regions, 0.1..1.0."""
        return sum(map(sum, self.keep_tenths)) / (DENOMINATOR * self.layers * self.regions)

    def region(self, timestep: float) -> int:
        """Find the region of a timestep; a fractional one (Euler) counts as its floor.

        Raises ValueRangeError unless 0 <= timestep < num_train_timesteps.
        """
        if not 0 <= timestep < self.num_train_timesteps:
            raise ValueRangeError(
                f"[routing] timestep out of range, got {timestep}, want 0 <= t < {self.num_train_timesteps}"
            )
        return math.floor(timestep) * self.regions // self.num_train_timesteps

    def schedule(self, timesteps: Sequence[float]) -> tuple[int, ...]:
        """Find the region of every step of a sampling run; runtimes then address steps by index."""
        return tuple(self.region(timestep) for timestep in timesteps)

    def row(self, region: int) -> tuple[int, ...]:
        """Keep ratios of all layers in one region, in tenths."""
        return tuple(layer[region] for layer in self.keep_tenths)

    def rows(self) -> tuple[tuple[int, ...], ...]:
        """List the distinct rows in order of their first region; where graphs are static each needs its own."""
        return tuple(dict.fromkeys(self.row(region) for region in range(self.regions)))

    def capacities(self, region: int, tokens: int) -> tuple[int, ...]:
        """Count the tokens that every layer keeps of `tokens` in one region."""
        return tuple(capacity(tenths, tokens) for tenths in self.row(region))

    def raised(self, keep_ratio: float) -> RoutingPlan:
        """Keep more: bring the mean to the nearest that whole tenths give to `keep_ratio`, no entry below what it is.

        Every entry goes the same share of its way to 10 tenths, rounded: an entry p has gained k tenths from the share
        (2 k - 1) / 2 (10 - p) on, and where entries gain at the same share, lower layers and regions come first. So a
        larger mean never takes a tenth from an entry, and entries keep their order.

        Raises ValueRangeError for a mean above 1, or below that of the plan: what was trained to keep so much draws
        nothing of use with less.
        """
        kept = sum(map(sum, self.keep_tenths))
        entries = DENOMINATOR * self.layers * self.regions
        if not (keep_ratio <= 1 and (wanted := math.floor(keep_ratio * entries + 0.5)) >= kept):
            raise ValueRangeError(
                f"[routing] keep {keep_ratio} of the tokens, want {self.mean_keep_ratio:.6g}..1: the model was trained "
                f"to keep {self.mean_keep_ratio:.6g} of them, and with fewer its pictures fall apart"
            )
        gains = sorted(
            (Fraction(2 * gain - 1, 2 * (DENOMINATOR - tenths)), layer, region)
            for layer, row in enumerate(self.keep_tenths)
            for region, tenths in enumerate(row)
            for gain in range(1, DENOMINATOR - tenths + 1)
        )
        added = Counter((layer, region) for _, layer, region in gains[: wanted - kept])
        rows = enumerate(self.keep_tenths)
        table = (tuple(tenths + added[layer, region] for region, tenths in enumerate(row)) for layer, row in rows)
        return replace(self, keep_tenths=tuple(table))

    def to_json(self) -> dict[str, Any]:
        """Write the plan as the "diffcr" object of a checkpoint and the "plan" object of a manifest."""
        return {
            "regions": self.regions,
            "num_train_timesteps": self.num_train_timesteps,
            "keep_tenths": [list(row) for row in self.keep_tenths],
        }

    @classmethod
    def from_json(cls, value: object, where: str) -> RoutingPlan:
        """Read a plan strictly.

        Raises:
            FormatError: unknown or missing fields, or values of the wrong type.
            ShapeError: a ragged table, or one whose width is not `regions`.
            ValueRangeError: a keep ratio or timestep count outside its range.
        """
        return cls.of(decode(value, PlanRecord, Origin("routing", where)), where)

    @classmethod
    def of(cls, record: PlanRecord, where: str) -> RoutingPlan:
        """Make the plan of a record; raises as `from_json`."""
        widths = sorted({len(row) for row in record.keep_tenths})
        if widths != [record.regions]:
            raise ShapeError(
                f"[routing] {where}: keep_tenths has rows of {widths} regions, 'regions' says {record.regions}"
            )
        try:
            return cls(record.keep_tenths, record.num_train_timesteps)
        except (ShapeError, ValueRangeError) as error:
            raise type(error)(f"{error} (in {where})") from None


@dataclass(frozen=True)
class PlanRecord:
    """A plan as JSON has it, which says twice how many regions there are."""

    regions: Regions
    num_train_timesteps: Timesteps
    keep_tenths: Annotated[tuple[Row, ...], Meta(min_length=1, max_length=LAYERS)]
