"""How many operations a step takes: on a GPU each costs microseconds to start, whatever it computes."""

from __future__ import annotations

from collections import Counter
from typing import Final

import mlx.core as mx
import pytest

from mlx_moddit.architectures import TRANSFORMERS
from moddit.configurations import find_configuration
from moddit.routing import RoutingPlan
from moddit.tokens import TokenPolicy
from tests.mlx_moddit.operations import VIEWS, count_operations
from tests.mlx_moddit.test_compile import compiles

LAYERS: Final = 2
DENSE: Final = TokenPolicy.dense(LAYERS, 1000)
ROUTED: Final = TokenPolicy.topk(RoutingPlan.uniform(LAYERS, 1, 5, 1000))
# What a GPU joins: the gated sums of attention and MLP, in a DiT also the modulations of two norms.
JOINED_OPERATIONS: Final = {"pixart-sigma-xl": 2, "dit-xl-2": 4}  # a layer
# For 16-bit tokens: 2 to score, 3 to rank, 2 to number, 2 to gather tokens and scores, 3 to gate, 1 to scatter.
ROUTING_OPERATIONS: Final = 13  # a layer


def step(name: str, policy: TokenPolicy) -> Counter[str]:
    """Count what a step of a published size takes, in float16."""
    spec = find_configuration(name, LAYERS).transformer
    model = TRANSFORMERS[spec.ARCHITECTURE](spec, policy)
    model.set_dtype(mx.float16)
    for block in model.transformer_blocks if policy.has_routers else ():
        block.router.set_dtype(mx.float32)  # as in a bundle
    latents = mx.zeros((2, 8, 8, spec.in_channels))
    context = [mx.zeros((5, 4096)), mx.zeros((9, 4096))] if name.startswith("pixart") else [mx.array(1), mx.array(2)]
    conditions = model.prepare(context, (999.0, 500.0), 8, 8, sizes=spec.size_features(64, 64))
    mx.eval(latents, model.parameters())
    return count_operations(model(latents, 1, conditions, conditions.start()))


@pytest.mark.parametrize("name", ["pixart-sigma-xl", "dit-xl-2"])
class TestStep:
    def test_modulations_lie_ready(self, name: str) -> None:
        assert step(name, DENSE)["Gather"] == 0

    def test_routing_takes_few_operations(self, name: str) -> None:
        added = step(name, ROUTED) - step(name, DENSE)
        assert sum(number for kind, number in added.items() if kind not in VIEWS) <= LAYERS * ROUTING_OPERATIONS

    @compiles
    def test_a_gpu_joins_operations_on_single_numbers(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        apart = numbers(name, mx.cpu, monkeypatch)
        assert apart - numbers(name, mx.gpu, monkeypatch) >= LAYERS * JOINED_OPERATIONS[name]


def numbers(name: str, device: mx.DeviceType, monkeypatch: pytest.MonkeyPatch) -> int:
    """Count the operations of a dense step that are no views, where MLX says that it computes on a device."""
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(device, 0))
    return sum(number for kind, number in step(name, DENSE).items() if kind not in VIEWS)
