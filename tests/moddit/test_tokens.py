"""A policy says what is kept and whether there are routers; a dense one has a plan that keeps everything."""

from __future__ import annotations

import json

import pytest

from moddit.errors import FormatError, InputError, ShapeError, UnsupportedError, ValueRangeError
from moddit.record import Origin, decode
from moddit.routing import RoutingPlan
from moddit.tokens import POLICIES, STORED, TokenPolicy, TokensRecord

PLAN = RoutingPlan(((10, 5), (3, 1)))


def read(value: object) -> TokenPolicy:
    record = decode(value, TokensRecord, Origin("tokens", "manifest.json"))
    return TokenPolicy.of(record, "manifest.json.tokens")


def test_a_dense_model_keeps_all_tokens_of_every_layer() -> None:
    policy = TokenPolicy.dense(3, 500)
    assert policy.plan == RoutingPlan(((10,), (10,), (10,)), 500)
    assert policy.plan.capacities(policy.plan.region(499), 77) == (77, 77, 77)


@pytest.mark.parametrize(
    ("policy", "name", "has_routers", "is_dense"),
    [
        (TokenPolicy.dense(2, 1000), "dense", False, True),
        (TokenPolicy.topk(PLAN), "topk", True, False),
        (TokenPolicy.topk(RoutingPlan.uniform(2, 1, 10)), "topk", True, False),  # scores gate, though all are kept
        (TokenPolicy.random(PLAN), "random", False, False),
    ],
    ids=["dense", "topk", "topk that keeps all", "random"],
)
def test_what_a_policy_has(policy: TokenPolicy, name: str, has_routers: bool, is_dense: bool) -> None:
    assert (policy.name, policy.has_routers, policy.is_dense) == (name, has_routers, is_dense)
    assert policy.name in POLICIES


def test_a_routed_model_may_keep_more_than_trained_and_a_dense_one_keeps_all() -> None:
    policy = TokenPolicy.topk(PLAN)
    assert policy.keeping(None) is policy
    assert policy.keeping(0.6) == TokenPolicy.topk(PLAN.raised(0.6))
    with pytest.raises(ValueRangeError, match=r"keep 0.4 of the tokens, want 0.475..1"):
        policy.keeping(0.4)
    dense = TokenPolicy.dense(2, 1000)
    assert dense.keeping(None) is dense
    with pytest.raises(UnsupportedError, match=r"keep 1.0 of the tokens of a dense model"):
        dense.keeping(1.0)


@pytest.mark.parametrize(
    "plan",
    [RoutingPlan(((9,), (10,))), RoutingPlan(((10,), (1,))), RoutingPlan.uniform(2, 2, 10), PLAN],
    ids=lambda plan: str(plan.keep_tenths),
)
def test_a_dense_plan_that_drops_or_has_regions_is_refused(plan: RoutingPlan) -> None:
    with pytest.raises(ValueRangeError, match=r"plan of a dense model keeps .* want 10 tenths of every layer in one"):
        TokenPolicy("dense", plan)
    with pytest.raises(ValueRangeError, match=r"\[tokens\] .*\(in manifest\.json\.tokens\)"):
        read({"policy": "dense", "plan": plan.to_json()})


@pytest.mark.parametrize("policy", [TokenPolicy.dense(2, 100), TokenPolicy.topk(PLAN)], ids=STORED)
def test_json_round_trip(policy: TokenPolicy) -> None:
    value = json.loads(json.dumps(policy.to_json()))
    assert value == {"policy": policy.name, "plan": policy.plan.to_json()}
    assert read(value) == policy


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (TokenPolicy.random(PLAN).to_json(), UnsupportedError, "policy is 'random', want dense or topk"),
        ({"policy": "TOPK", "plan": PLAN.to_json()}, UnsupportedError, "policy is 'TOPK', want dense or topk"),
        ({"policy": None, "plan": PLAN.to_json()}, FormatError, "policy is null, want a text"),
        ({"policy": "topk", "plan": None}, FormatError, "plan is null, want an object"),
        ({"policy": "topk"}, FormatError, "lacks 'plan'"),
        ({"policy": "topk", "plan": PLAN.to_json(), "seed": 1}, FormatError, "has 'seed'"),
        (
            {"policy": "topk", "plan": PLAN.to_json() | {"regions": 3}},
            ShapeError,
            r"tokens\.plan: keep_tenths has rows",
        ),
    ],
)
def test_what_no_bundle_has_is_refused(value: object, error: type[InputError], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        read(value)
    assert "manifest.json" in str(raised.value)
