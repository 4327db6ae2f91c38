"""Which functions a package has: one for each distinct row, fewer rows if asked, times sizes and batches."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convert.coreml.variants import MAX_ROWS, list_functions, merge_rows
from moddit.errors import ShapeError, ValueRangeError
from moddit.routing import RoutingPlan, capacity
from moddit.tokens import TokenPolicy
from tests.moddit.specs import TEXT as SPEC

TOKENS, TEXT_TOKENS = 64, 12
DENSE = TokenPolicy.dense(2, 1000)


@st.composite
def plans(draw: st.DrawFn) -> RoutingPlan:
    layers, regions = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    row = st.lists(st.integers(1, 10), min_size=regions, max_size=regions)
    return RoutingPlan(tuple(tuple(draw(row)) for _ in range(layers)))


def flops(plan: RoutingPlan) -> list[list[int]]:
    """[regions][layers]"""
    return [
        [SPEC.transformer.block_flops(count, TEXT_TOKENS) for count in plan.capacities(region, TOKENS)]
        for region in range(plan.regions)
    ]


def change(old: RoutingPlan, new: RoutingPlan) -> int:
    pairs = zip(flops(old), flops(new), strict=True)
    return sum(abs(after - before) for one, two in pairs for before, after in zip(one, two, strict=True))


def groupings(regions: int, limit: int) -> Iterator[list[list[int]]]:
    """Every way to give each region one of `limit` labels."""
    for labels in product(range(limit), repeat=regions):
        yield [[region for region in range(regions) if labels[region] == label] for label in set(labels)]


def merged(plan: RoutingPlan, groups: list[list[int]]) -> RoutingPlan:
    """A plan whose groups of regions keep what the hungriest of them keeps."""
    group_of = {region: group for group in groups for region in group}
    return RoutingPlan(
        tuple(
            tuple(max(layer[other] for other in group_of[r]) for r in range(plan.regions)) for layer in plan.keep_tenths
        )
    )


def merge(plan: RoutingPlan, limit: int, *, allow_fewer: bool = False) -> tuple[RoutingPlan, float]:
    return merge_rows(SPEC.transformer, plan, limit, tokens=TOKENS, text_tokens=TEXT_TOKENS, allow_fewer=allow_fewer)


class TestMergeRows:
    @given(plan=plans(), limit=st.integers(1, 4))
    def test_never_keeps_fewer_at_the_least_cost(self, plan: RoutingPlan, limit: int) -> None:
        found, flops_change = merge(plan, limit)
        assert len(found.rows()) <= limit
        assert found.num_train_timesteps == plan.num_train_timesteps
        for new, old in zip(found.keep_tenths, plan.keep_tenths, strict=True):
            assert all(more >= less for more, less in zip(new, old, strict=True))
        assert change(plan, found) == min(
            change(plan, merged(plan, groups)) for groups in groupings(plan.regions, limit)
        )
        before, after = (sum(map(sum, flops(item))) for item in (plan, found))
        assert flops_change == pytest.approx(after / before - 1)
        assert flops_change >= 0

    @given(plan=plans(), limit=st.integers(1, 4))
    def test_may_keep_about_as_many(self, plan: RoutingPlan, limit: int) -> None:
        found, _ = merge(plan, limit, allow_fewer=True)
        assert len(found.rows()) <= limit
        for new, old in zip(found.keep_tenths, plan.keep_tenths, strict=True):
            assert min(old) <= min(new) <= max(new) <= max(old)
        if limit == 1:
            for new, old in zip(found.keep_tenths, plan.keep_tenths, strict=True):
                assert abs(new[0] - sum(old) / len(old)) <= 0.5

    @pytest.mark.parametrize("allow_fewer", [False, True])
    def test_enough_functions_change_nothing(self, allow_fewer: bool) -> None:
        plan = RoutingPlan(((10, 8, 8, 4), (5, 5, 5, 5)))
        assert merge(plan, 3, allow_fewer=allow_fewer) == (plan, 0.0)

    def test_an_example(self) -> None:
        plan = RoutingPlan(((10, 9, 2, 3), (5, 6, 1, 1)))
        assert merge(plan, 2)[0] == RoutingPlan(((10, 10, 3, 3), (6, 6, 1, 1)))
        assert merge(plan, 2, allow_fewer=True)[0] == RoutingPlan(((10, 10, 3, 3), (6, 6, 1, 1)))
        assert merge(plan, 1)[0] == RoutingPlan(((10,) * 4, (6,) * 4))
        assert merge(plan, 1, allow_fewer=True)[0] == RoutingPlan(((6,) * 4, (3,) * 4))

    def test_refusals(self) -> None:
        regions = range(MAX_ROWS + 1)
        plan = RoutingPlan(
            (tuple(1 + region % 10 for region in regions), tuple(1 + region // 10 for region in regions))
        )
        with pytest.raises(ValueRangeError, match="max-functions out of range, got 0, want at least 1"):
            merge(plan, 0)
        with pytest.raises(ValueRangeError, match=f"at most {MAX_ROWS} rows, got {MAX_ROWS + 1}"):
            merge(plan, 2)


class TestListFunctions:
    @given(plan=plans(), sizes=st.sets(st.sampled_from([(16, 16), (32, 16), (16, 32)]), min_size=1))
    def test_one_for_each_row_size_and_batch(self, plan: RoutingPlan, sizes: set[tuple[int, int]]) -> None:
        plan = RoutingPlan((plan.keep_tenths * 2)[:2])  # as many layers as the model
        functions = list_functions(SPEC, plan, sorted(sizes), (1, 2))
        names = [item.function for item in functions]
        assert len(set(names)) == len(names) == len(plan.rows()) * len(sizes) * 2
        seen = []
        for item in functions:
            assert re.fullmatch(r"[A-Za-z_]\w*", item.function)
            tokens = item.height * item.width // 16
            assert len({plan.row(region) for region in item.regions}) == 1
            for region in item.regions:
                assert item.capacities == tuple(capacity(tenths, tokens) for tenths in plan.row(region))
                seen.append((item.height, item.width, item.batch, region))
        assert sorted(seen) == sorted((*size, b, r) for size in sizes for b in (1, 2) for r in range(plan.regions))

    def test_names(self) -> None:
        plan = RoutingPlan(((10, 8, 8, 10), (5, 5, 5, 5)))
        names = [item.function for item in list_functions(SPEC, plan, [(16, 32)], [2])]
        assert names == ["px16x32_batch2_region0_3", "px16x32_batch2_region1_2"]

    def test_a_dense_model(self) -> None:
        (item,) = list_functions(SPEC, DENSE.plan, [(16, 32)], [1])
        assert (item.regions, item.capacities) == ((0,), (32, 32))

    @pytest.mark.parametrize("size", [(18, 16), (16, 2), (0, 16), (16, -16)])
    def test_sides_are_made_of_patches(self, size: tuple[int, int]) -> None:
        with pytest.raises(ShapeError, match=f"size {size[0]}x{size[1]}: sides must be multiples of 4 pixels"):
            list_functions(SPEC, DENSE.plan, [size], [1])
