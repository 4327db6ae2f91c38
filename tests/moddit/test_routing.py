"""The routing plan: integers only, equal along every route through the code."""

import json
import math
import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from moddit.errors import FormatError, ModditError, ShapeError, ValueRangeError
from moddit.routing import RoutingPlan, capacity, region_timesteps, select_tokens, snap

TOKENS = st.integers(1, 1 << 20)
TENTHS = st.integers(1, 10)
ROUNDING = Fraction(1, 10**12)  # of a mean as a float


@st.composite
def plans(draw):
    layers, regions = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    row = st.lists(TENTHS, min_size=regions, max_size=regions).map(tuple)
    table = tuple(draw(st.lists(row, min_size=layers, max_size=layers)))
    return RoutingPlan(table, draw(st.integers(regions, 4000)))


@given(TENTHS, TOKENS)
def test_capacity_is_the_exact_ceiling(tenths, tokens):
    kept = capacity(tenths, tokens)
    assert type(kept) is int
    assert 1 <= kept <= tokens
    assert kept == math.ceil(Fraction(tenths, 10) * tokens)


@given(TOKENS)
def test_capacity_grows_with_the_ratio_and_ends_at_all_tokens(tokens):
    counts = [capacity(tenths, tokens) for tenths in range(1, 11)]
    assert counts == sorted(counts)
    assert counts[-1] == tokens


def test_capacity_where_float32_is_wrong():
    assert int(np.ceil(np.float32(0.3) * np.float32(720))) == 217
    assert capacity(3, 720) == 216


@pytest.mark.parametrize(("tenths", "tokens"), [(0, 8), (11, 8), (5, 0)])
def test_capacity_refuses_what_is_out_of_range(tenths, tokens):
    with pytest.raises(ValueRangeError, match="out of range"):
        capacity(tenths, tokens)


@pytest.mark.parametrize(
    ("ratio", "tenths"), [(1.0, 10), (0.0, 1), (2.0, 10), (0.449, 4), (0.45, 5), (0.85, 9), (0.1, 1)]
)
def test_snap(ratio, tenths):
    assert snap(ratio) == tenths


def test_snap_refuses_nan():
    with pytest.raises(ValueRangeError, match="not a number"):
        snap(math.nan)


@given(plans(), st.integers(1, 5000))
def test_every_route_gives_the_same_capacity(plan, tokens):
    again = RoutingPlan.from_json(json.loads(json.dumps(plan.to_json())), "test")
    assert again == plan
    for region in range(plan.regions):
        direct = tuple(capacity(layer[region], tokens) for layer in plan.keep_tenths)
        assert plan.capacities(region, tokens) == again.capacities(region, tokens) == direct
        assert all(type(kept) is int and 1 <= kept <= tokens for kept in direct)
        assert plan.row(region) in plan.rows()


@given(plans())
def test_regions_cover_all_timesteps_in_order(plan):
    schedule = plan.schedule(range(plan.num_train_timesteps))
    assert schedule == tuple(t * plan.regions // plan.num_train_timesteps for t in range(plan.num_train_timesteps))
    assert schedule[0] == 0
    assert schedule[-1] == plan.regions - 1


def test_regions_of_the_papers_four():
    plan = RoutingPlan.uniform(2, 4, 5)
    assert plan.schedule([0, 249, 249.9, 250, 499, 500, 750, 999]) == (0, 0, 0, 1, 1, 2, 3, 3)
    with pytest.raises(ValueRangeError, match="timestep out of range, got 1000"):
        plan.region(1000)


def test_rows_are_distinct_and_in_order():
    plan = RoutingPlan(((10, 5, 10, 3), (8, 8, 8, 8)))
    assert plan.rows() == ((10, 8), (5, 8), (3, 8))
    assert plan.mean_keep_ratio == (28 + 32) / 80


def mean(plan):
    return Fraction(sum(map(sum, plan.keep_tenths)), 10 * plan.layers * plan.regions)


@given(plans(), st.floats(0, 1), st.floats(0, 1))
def test_a_raised_plan_keeps_more_everywhere_and_never_less_for_a_larger_mean(plan, one, two):
    least = plan.mean_keep_ratio
    wanted = sorted(least + share * (1 - least) for share in (one, two))
    low, high = (plan.raised(min(1.0, ratio)) for ratio in wanted)
    for rows in zip(plan.keep_tenths, low.keep_tenths, high.keep_tenths, strict=True):
        for trained, less, more in zip(*rows, strict=True):
            assert type(less) is int
            assert trained <= less <= more <= 10
    for raised, ratio in zip((low, high), wanted, strict=True):
        assert abs(mean(raised) - Fraction(min(1.0, ratio))) <= Fraction(1, 20 * plan.layers * plan.regions) + ROUNDING
        assert raised.num_train_timesteps == plan.num_train_timesteps


@given(plans(), st.floats(0, 1))
def test_entries_of_a_raised_plan_stay_in_order(plan, share):
    raised = plan.raised(min(1.0, plan.mean_keep_ratio + share * (1 - plan.mean_keep_ratio)))
    pairs = [
        pair for rows in zip(plan.keep_tenths, raised.keep_tenths, strict=True) for pair in zip(*rows, strict=True)
    ]
    for trained, more in pairs:
        assert all(more <= other for before, other in pairs if trained < before)
        assert all(abs(more - other) <= 1 for before, other in pairs if trained == before)


@given(plans())
def test_a_plan_is_raised_from_its_own_mean_to_one(plan):
    assert plan.raised(plan.mean_keep_ratio) == plan
    assert set(sum(plan.raised(1.0).keep_tenths, ())) == {10}


def test_the_least_that_a_refusal_names_is_accepted():
    tenths = np.random.default_rng(2).integers(1, 11, (28, 100))  # of whose mean, 0.551821, four digits are too few
    plan = RoutingPlan(tuple(tuple(map(int, row)) for row in tenths))
    with pytest.raises(ValueRangeError) as refusal:
        plan.raised(0.1)
    (least,) = re.findall(r"want (.*?)\.\.1:", str(refusal.value))
    assert plan.raised(float(least)) == plan


def test_a_plan_is_raised_by_hand():
    plan = RoutingPlan(((2, 6), (10, 8)))  # room for 8, 4, 0, 2: gains from 1/16, 3/16 .., 1/8, 3/8 .., 1/4, 3/4
    assert plan.raised(0.675).keep_tenths == ((3, 6), (10, 8))
    assert plan.raised(0.7).keep_tenths == ((3, 7), (10, 8))
    assert plan.raised(0.75).keep_tenths == ((4, 7), (10, 9))


@pytest.mark.parametrize("ratio", [0.3, 0.57, 1.01, -1.0, math.nan, math.inf])
def test_a_plan_is_not_lowered(ratio):
    with pytest.raises(ValueRangeError, match=r"want 0\.6\.\.1: the model was trained to keep 0\.6 of them"):
        RoutingPlan(((2, 10),)).raised(ratio)


@pytest.mark.parametrize("table", [(), ((),), ((1, 2), (3,))])
def test_ragged_tables_are_refused(table):
    with pytest.raises(ShapeError, match="ragged or empty"):
        RoutingPlan(table)


@pytest.mark.parametrize("value", [0, 11, 0.5, True, "5"])
def test_only_integer_tenths(value):
    with pytest.raises(ValueRangeError, match=r"keep_tenths\[1\]\[0\]"):
        RoutingPlan(((5,), (value,)))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"extra": 1}, FormatError, "has 'extra', want an object with exactly"),
        ({"keep_tenths": 3}, FormatError, "keep_tenths is 3, want a list"),
        ({"keep_tenths": [3]}, FormatError, r"keep_tenths\[0\] is 3, want a list"),
        ({"keep_tenths": []}, FormatError, "keep_tenths is of length 0"),
        ({"keep_tenths": [[5]] * 1001, "regions": 1}, FormatError, "keep_tenths is of length 1001, want at most 1000"),
        ({"keep_tenths": [[5.0, 5]]}, FormatError, r"keep_tenths\[0\]\[0\] is 5.0, want an integer"),
        ({"num_train_timesteps": 10**9}, ValueRangeError, "num_train_timesteps"),
        ({"num_train_timesteps": "x"}, FormatError, "num_train_timesteps"),
        ({"regions": "2"}, FormatError, "regions is '2', want an integer"),
        ({"regions": 3}, ShapeError, "rows of"),
        ({"keep_tenths": [[0, 5]]}, ValueRangeError, r"keep_tenths\[0\]\[0\] is 0, want at least 1"),
        ({"num_train_timesteps": 1}, ValueRangeError, "num_train_timesteps"),
    ],
)
def test_bad_json_names_the_field_and_the_file(change, error, message):
    value = {"regions": 2, "num_train_timesteps": 1000, "keep_tenths": [[10, 5]]} | change
    with pytest.raises(error, match=message) as caught:
        RoutingPlan.from_json(value, "config.json")
    assert isinstance(caught.value, ModditError)
    assert "config.json" in str(caught.value)


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 40)), elements=st.integers(-3, 3).map(float)),
    st.data(),
)
def test_select_keeps_the_largest_and_breaks_ties_low(scores, data):
    count = data.draw(st.integers(1, scores.shape[1]))
    kept = select_tokens(scores, count)
    for row, chosen in zip(scores, kept, strict=True):
        ranked = sorted(range(len(row)), key=lambda index: (-row[index], index))
        assert chosen.tolist() == sorted(ranked[:count])


def test_select_refuses_a_count_beyond_the_tokens():
    with pytest.raises(ShapeError, match="cannot keep 5"):
        select_tokens(np.zeros((1, 4), np.float32), 5)


def test_timesteps_of_a_region_are_those_that_are_in_it() -> None:
    for total in range(1, 130):
        for regions in range(1, min(total, 30) + 1):
            plan = RoutingPlan.uniform(1, regions, 5, total)
            listed = [timestep for region in range(regions) for timestep in region_timesteps(region, regions, total)]
            assert listed == list(range(total))
            assert all(
                plan.region(region_timesteps(region, regions, total)[end]) == region
                for region in range(regions)
                for end in (0, -1)
            )
