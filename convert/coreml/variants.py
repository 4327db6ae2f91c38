"""Which functions a package needs: rows of the plan, fewer of them if asked, times sizes and batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from moddit.bins import Size
from moddit.contract import step_name
from moddit.errors import ShapeError, ValueRangeError
from moddit.graphs import StepFunction
from moddit.models.transformer import TransformerSpec
from moddit.routing import DENOMINATOR, RoutingPlan, capacity
from moddit.spec import ModelSpec

MAX_ROWS: Final = 10  # up to here all partitions are tried, 115975 of them

Row = tuple[int, ...]  # tenths of every layer


def merge_rows(
    spec: TransformerSpec, plan: RoutingPlan, limit: int, *, tokens: int, text_tokens: int, allow_fewer: bool
) -> tuple[RoutingPlan, float]:
    """Give regions common rows until at most `limit` are left, with the least change of FLOPs.

    A layer of a merged row keeps the most that any of its regions was trained with or, with `allow_fewer`, the mean,
    rounded: about the trained FLOPs, but fewer tokens in some regions. Beside the plan it gives the change of the
    blocks' FLOPs over all timesteps, as a share of the trained plan's.

    Raises:
        ValueRangeError: a limit below 1, or a plan of more rows than can be searched.
    """
    if limit < 1:
        raise ValueRangeError(f"[coreml] max-functions out of range, got {limit}, want at least 1")
    if len(plan.rows()) <= limit:
        return plan, 0.0
    rows = plan.rows()
    if len(rows) > MAX_ROWS:
        raise ValueRangeError(f"[coreml] max-functions needs a plan of at most {MAX_ROWS} rows, got {len(rows)}")
    cost = [spec.block_flops(capacity(tenths, tokens), text_tokens) for tenths in range(1, DENOMINATOR + 1)]
    regions = [plan.row(region) for region in range(plan.regions)]

    def change(groups: list[list[Row]]) -> int:
        """FLOPs that differ from the trained plan's, in either direction."""
        return sum(
            regions.count(row) * abs(cost[new - 1] - cost[old - 1])
            for group in groups
            for row in group
            for new, old in zip(_merged(group, regions, allow_fewer), row, strict=True)
        )

    best = min(_partitions(list(rows), limit), key=change)
    merged_rows = {row: _merged(group, regions, allow_fewer) for group in best for row in group}
    table = tuple(zip(*(merged_rows[row] for row in regions), strict=True))
    merged = RoutingPlan(table, plan.num_train_timesteps)
    before, after = (sum(cost[tenths - 1] for row in item.keep_tenths for tenths in row) for item in (plan, merged))
    return merged, after / before - 1


def _merged(group: Sequence[Row], regions: Sequence[Row], allow_fewer: bool) -> Row:
    """One row for a group of them."""
    if not allow_fewer:
        return tuple(max(column) for column in zip(*group, strict=True))
    columns = zip(*(row for row in regions if row in group), strict=True)  # a row as often as it has regions
    return tuple((2 * sum(column) + len(column)) // (2 * len(column)) for column in columns)


def _partitions(items: list[Row], limit: int) -> Iterator[list[list[Row]]]:
    """Divide items into 1..limit groups, in every way."""
    if not items:
        yield []
        return
    first, *rest = items
    for groups in _partitions(rest, limit):
        for index, group in enumerate(groups):
            yield [*groups[:index], [first, *group], *groups[index + 1 :]]
        if len(groups) < limit:
            yield [[first], *groups]


def list_functions(
    spec: ModelSpec, plan: RoutingPlan, sizes: Sequence[Size], batches: Sequence[int]
) -> list[StepFunction]:
    """List every function of the transformer, for pictures of some sizes in pixels and some batches.

    Raises:
        ShapeError: a side is not a multiple of the pixels of a patch.
    """
    functions = []
    downscale = spec.vae.downscale
    for height, width in sizes:
        if height < 1 or width < 1 or height % spec.pixels_per_patch or width % spec.pixels_per_patch:
            raise ShapeError(
                f"[coreml] size {height}x{width}: sides must be multiples of {spec.pixels_per_patch} pixels"
            )
        tokens = spec.transformer.tokens(height // downscale, width // downscale)
        for batch in batches:
            for row in plan.rows():
                regions = tuple(region for region in range(plan.regions) if plan.row(region) == row)
                name = step_name(height, width, batch, regions)
                kept = tuple(capacity(tenths, tokens) for tenths in row)
                functions.append(StepFunction(name, height, width, batch, regions, kept))
    return functions
