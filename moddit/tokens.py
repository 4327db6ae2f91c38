"""Token policies: which tokens each block processes at each step.

A policy is a name and a plan. The plan says how many tokens a block keeps, the name says which, and whether their
scores gate the MLP:

    dense    all of them; no routers, no gate
    topk     those that the block's router scores highest; sigmoid(score) gates the MLP (DiffCR, arXiv 2412.16822)
    random   any; no routers, no gate: in training, the control for what a router is worth
    first    those that come first; no routers, no gate: in benchmarks, what routing could reach at best

Each backend has one function that keeps a block's tokens and puts them back. What a policy remembers from one step to
the next belongs to a run, not to the model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any, Final

from moddit.bounds import choice
from moddit.errors import UnsupportedError, ValueRangeError
from moddit.routing import DENOMINATOR, PlanRecord, RoutingPlan

DENSE: Final = "dense"
TOPK: Final = "topk"
RANDOM: Final = "random"
FIRST: Final = "first"
POLICIES: Final = (DENSE, TOPK, RANDOM, FIRST)
STORED: Final = (DENSE, TOPK)  # that a checkpoint or a bundle may have


@dataclass(frozen=True)
class TokenPolicy:
    """Which tokens each block processes at each step; equal policies keep equally many everywhere."""

    name: str  # one of POLICIES
    plan: RoutingPlan  # of a dense model: one region, in which every layer keeps all tokens

    def __post_init__(self) -> None:
        if self.name == DENSE and (self.plan.regions != 1 or {*self.plan.row(0)} != {DENOMINATOR}):
            raise ValueRangeError(
                f"[tokens] the plan of a dense model keeps {self.plan.keep_tenths!r:.80}, want {DENOMINATOR} tenths of "
                "every layer in one region"
            )

    @classmethod
    def dense(cls, layers: int, num_train_timesteps: int) -> TokenPolicy:
        """Keep every token."""
        return cls(DENSE, RoutingPlan.uniform(layers, 1, DENOMINATOR, num_train_timesteps))

    @classmethod
    def topk(cls, plan: RoutingPlan) -> TokenPolicy:
        """Keep what the routers score highest."""
        return cls(TOPK, plan)

    @classmethod
    def random(cls, plan: RoutingPlan) -> TokenPolicy:
        """Keep any tokens."""
        return cls(RANDOM, plan)

    @classmethod
    def first(cls, plan: RoutingPlan) -> TokenPolicy:
        """Keep the tokens that come first."""
        return cls(FIRST, plan)

    @property
    def has_routers(self) -> bool:
        """Whether every block has a router, whose scores rank the tokens and gate the MLP."""
        return self.name == TOPK

    @property
    def is_dense(self) -> bool:
        """Whether no block ever leaves out a token or scores one."""
        return self.name == DENSE

    def keeping(self, keep_ratio: float | None) -> TokenPolicy:
        """Keep more tokens than trained, this share of them in the mean over layers and regions; None for as trained.

        Raises:
            UnsupportedError: a dense model, which keeps all of them.
            ValueRangeError: as `RoutingPlan.raised`.
        """
        if keep_ratio is None:
            return self
        if self.is_dense:
            raise UnsupportedError(
                f"[tokens] keep {keep_ratio} of the tokens of a dense model, which keeps all; leave it out"
            )
        return replace(self, plan=self.plan.raised(keep_ratio))

    def to_json(self) -> dict[str, Any]:
        """Write the "tokens" object of a manifest."""
        return {"policy": self.name, "plan": self.plan.to_json()}

    @classmethod
    def of(cls, record: TokensRecord, where: str) -> TokenPolicy:
        """Make the policy of a record; raises as `RoutingPlan.of`, and ValueRangeError for a dense plan that drops."""
        plan = RoutingPlan.of(record.plan, f"{where}.plan")
        try:
            return cls(record.policy, plan)
        except ValueRangeError as error:
            raise ValueRangeError(f"{error} (in {where})") from None


@dataclass(frozen=True)
class TokensRecord:
    """A policy as JSON has it."""

    policy: Annotated[str, choice(*STORED)]
    plan: PlanRecord
