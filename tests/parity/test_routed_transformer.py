"""The routed transformer against the PyTorch reference: every block's output, scores, and the very tokens it keeps.

Three numbers where precision is halved, as near-tied scores may then fall on either side: how many tokens both keep,
the error with the reference's tokens forced on both, and the free-running error.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import mlx.core as mx
import numpy as np
import pytest
import torch
from mlx.utils import tree_map
from numpy.typing import NDArray

from mlx_moddit.load import DTYPES
from mlx_moddit.pixart import PixArt
from mlx_moddit.transformer import Conditions
from moddit.routing import RoutingPlan, select_tokens
from moddit.tokens import TokenPolicy
from tests import tiny
from tests.parity.bridge import (
    STAGE_TOLERANCE,
    STAGE_TOLERANCES,
    copy_weights,
    relative_error,
    round_weights,
    share_alike,
    to_nchw,
)
from torch_moddit.model import BlockTrace
from torch_moddit.pixart import RoutedPixArt

TIMESTEPS: Final = (999.0, 600.0, 312.5, 0.0)  # one of every region
LENGTHS: Final = (9, 3)  # text tokens of the two rows
SIZE: Final = (64, 48)  # height and width of the picture, pixels
SIDES: Final = [(16, 16), (8, 24), (20, 12)]  # latent pixels
# Share of tokens that both keep in one step; in half precision a few of the ties fall apart.
KEPT_ALIKE: Final = {"float32": 1.0, "float16": 0.98, "bfloat16": 0.95}


@dataclass
class Trace:
    """What the blocks of one framework did."""

    scores: list[NDArray[np.float32]] = field(default_factory=list)
    kept: list[NDArray[np.int64]] = field(default_factory=list)
    outputs: list[NDArray[np.float32]] = field(default_factory=list)

    def add_reference(self, block: BlockTrace) -> None:
        assert block.scores is not None
        self.scores.append(block.scores.numpy())
        self.kept.append(torch.stack(block.kept).numpy())
        self.outputs.append(block.output.numpy())

    def add(self, layer: int, scores: mx.array, kept: mx.array) -> None:
        assert layer == len(self.scores)
        self.scores.append(np.array(scores))
        self.kept.append(np.array(kept))


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize(("height", "width"), SIDES)
class TestRouted:
    @pytest.mark.parametrize("step", range(len(TIMESTEPS)))
    def test_every_block_equals_the_reference(
        self, stored_dtype: str, kind: str, height: int, width: int, step: int
    ) -> None:
        """In half precision each block keeps the reference's tokens, so that its error is that of its arithmetic."""
        case, tolerance = Case(kind, height, width), STAGE_TOLERANCES[stored_dtype]
        round_weights(case.model, case.model.spec.tensors(has_routers=True), stored_dtype)
        wanted, output = case.run_reference(TIMESTEPS[step])
        conditions = case.prepare()
        found, x = Trace(), case.model.embed(case.nhwc, conditions)
        forced = [mx.array(kept.astype(np.uint32)) for kept in wanted.kept]
        for layer in range(case.model.spec.num_layers):
            case.model.run_block(x, layer, step, conditions, conditions.start(on_block=found.add))
            x = case.model.run_block(x, layer, step, conditions, conditions.start(forced=forced))
            assert relative_error(x, wanted.outputs[layer]) < tolerance, layer
            assert relative_error(found.scores[layer], wanted.scores[layer]) < tolerance, layer
        assert share_alike([found.kept], [wanted.kept]) >= KEPT_ALIKE[stored_dtype]
        assert relative_error(to_nchw(case.model.project(x, step, conditions)), output) < tolerance

    def test_kept_tokens_are_the_core_ranking_of_the_scores(self, kind: str, height: int, width: int) -> None:
        case, found = Case(kind, height, width), Trace()
        case.run(1, case.prepare(), on_block=found.add)
        counts = case.plan.capacities(case.plan.region(TIMESTEPS[1]), case.model.spec.tokens(height, width))
        for scores, kept, count in zip(found.scores, found.kept, counts, strict=True):
            np.testing.assert_array_equal(kept, select_tokens(scores, count))


class TestGate:
    def test_keeping_every_token_still_gates(self) -> None:
        case = Case("sigma", 16, 16, RoutingPlan.uniform(3, 1, 10))
        _, output = case.run_reference(500.0)
        found = case.run(1, case.prepare((999.0, 500.0)))
        assert relative_error(to_nchw(found), output) < STAGE_TOLERANCE

    def test_dense_model_has_no_gate(self) -> None:
        case = Case("sigma", 16, 16, RoutingPlan.uniform(3, 1, 10))
        dense = PixArt(case.model.spec, TokenPolicy.dense(3, case.plan.num_train_timesteps))
        weights = {
            name: value for name, value in case.reference.transformer.state_dict().items() if "router" not in name
        }
        copy_weights(dense, weights)
        conditions = dense.prepare(case.rows, (500.0,), 16, 16)
        gated = case.run(0, case.prepare((500.0,)))
        assert relative_error(dense(case.nhwc, 0, conditions, conditions.start()), gated) > 100 * STAGE_TOLERANCE


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_stays_near_the_reference(dtype: str) -> None:
    """All weights in half precision, the precise ones too."""
    case = Case("sigma", 16, 16)
    wanted, output = case.run_reference(TIMESTEPS[1])
    case.model.update(tree_map(lambda array: array.astype(DTYPES[dtype]), case.model.parameters()))
    conditions, found = case.prepare(), Trace()
    free = case.run(1, conditions, on_block=found.add)
    forced = case.run(1, conditions, forced=[mx.array(kept.astype(np.uint32)) for kept in wanted.kept])

    assert share_alike([found.kept], [wanted.kept]) >= KEPT_ALIKE[dtype]
    assert relative_error(to_nchw(forced), output) < STAGE_TOLERANCES[dtype]
    assert bool(mx.isfinite(free).all())


class Case:
    """One random model in both frameworks, and inputs for it."""

    def __init__(self, kind: str, height: int, width: int, plan: RoutingPlan | None = None) -> None:
        transformer = tiny.make_transformer(kind)
        layers, hidden = transformer.config.num_layers, transformer.inner_dim
        table = tiny.random_tenths(layers, 4)
        self.plan = plan or RoutingPlan(tuple(tuple(row) for row in table))
        policy = TokenPolicy.topk(self.plan)
        self.reference = RoutedPixArt(transformer, policy)
        transformer.load_state_dict(tiny.router_weights(layers, hidden), strict=False)
        self.model = copy_weights(PixArt(self.reference.spec, policy), transformer.state_dict())
        generator = torch.Generator().manual_seed(3)
        self.latents = torch.randn(len(LENGTHS), 4, height, width, generator=generator)
        self.text = torch.randn(len(LENGTHS), max(LENGTHS), tiny.TEXT_WIDTH, generator=generator)
        self.mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).float()
        self.nhwc = mx.array(self.latents.permute(0, 2, 3, 1).numpy())
        self.rows = [mx.array(row[:length].numpy()) for row, length in zip(self.text, LENGTHS, strict=True)]

    def prepare(self, timesteps: tuple[float, ...] = TIMESTEPS) -> Conditions:
        height, width = self.latents.shape[2:]
        sizes = self.model.spec.size_features(*SIZE)
        return self.model.prepare(self.rows, timesteps, height, width, sizes=sizes)

    def run(self, step: int, conditions: Conditions, **watched: Any) -> mx.array:
        return self.model(self.nhwc, step, conditions, conditions.start(**watched))

    @torch.no_grad()
    def run_reference(self, timestep: float) -> tuple[Trace, torch.Tensor]:
        trace, context = Trace(), {"text": self.text, "text_mask": self.mask}
        if self.model.spec.use_additional_conditions:
            height, width = SIZE
            context["resolution"] = torch.tensor([[float(height), float(width)]] * len(LENGTHS))
            context["aspect_ratio"] = torch.tensor([[height / width]] * len(LENGTHS))
        timesteps = torch.tensor([timestep] * len(LENGTHS))
        output = self.reference(self.latents, timesteps, context, on_block=trace.add_reference)
        return trace, output
