"""Methods without training: at keep ratio one they change nothing, below it they cost what is said."""

from __future__ import annotations

from typing import Final

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from moddit.cost import blocks_flops
from moddit.routing import RoutingPlan, capacity
from moddit.tokens import TokenPolicy
from recipes.comparison.rivals import MERGING, PRUNING, RANDOM_DROP, block_flops, rank
from tests import tiny
from torch_moddit.architectures import dense
from torch_moddit.model import RoutedTransformer

RIVALS: Final = {"merging": MERGING, "pruning": PRUNING, "random": RANDOM_DROP}
TOKENS: Final = 64


def make_model(kind: str) -> RoutedTransformer:
    transformer = tiny.make_dit() if kind == "dit" else tiny.make_transformer()
    return dense(transformer, 1000).eval()


@torch.no_grad()
def predict(model: RoutedTransformer) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 4, 16, 16, generator=generator)
    text = torch.randn(2, 5, tiny.TEXT_WIDTH, generator=generator)
    return model(latents, torch.tensor([700, 700]), {"text": text, "labels": torch.tensor([3, 4])})


@pytest.mark.parametrize("kind", ["pixart", "dit"])
@pytest.mark.parametrize("name", RIVALS)
def test_keeping_every_token_changes_nothing(name: str, kind: str) -> None:
    wanted, model = predict(make_model(kind)), make_model(kind)
    RIVALS[name].apply(model, 10)
    torch.testing.assert_close(predict(model), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["pixart", "dit"])
@pytest.mark.parametrize("name", RIVALS)
def test_keeping_fewer_costs_less_and_changes_more(name: str, kind: str) -> None:
    wanted, errors, costs = predict(make_model(kind)), [], []
    for tenths in (9, 5):
        model = make_model(kind)
        RIVALS[name].apply(model, tenths)
        errors.append(float((predict(model) - wanted).square().mean()))
        costs.append(block_flops(RIVALS[name], model.spec, model.policy, TOKENS, capacity(tenths, TOKENS), 5))
    assert 0 < errors[0] < errors[1]
    assert costs[1] < costs[0]


@pytest.mark.parametrize("name", ["merging", "pruning"])
def test_flops_are_those_spent(name: str) -> None:
    """What the library counts less at half of the tokens than at all of them is what is said to be saved."""
    counted, said = {}, {}
    for tenths in (10, 5):
        model = make_model("dit")
        RIVALS[name].apply(model, tenths)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # others are not counted on CPUs
            predict(model)
        counted[tenths] = counter.get_total_flops() / 2  # of a batch of two
        kept = capacity(tenths, TOKENS)
        said[tenths] = len(model.blocks) * block_flops(RIVALS[name], model.spec, model.policy, TOKENS, kept, 0)
    saved, wanted = counted[10] - counted[5], said[10] - said[5]
    assert saved == wanted


def test_a_model_as_it_is_costs_what_its_policy_says() -> None:
    model = make_model("dit")
    plan = RoutingPlan.uniform(3, 1, 5, 1000)
    kept = capacity(5, TOKENS)
    for policy in (TokenPolicy.topk(plan), TokenPolicy.random(plan)):
        said = 3 * block_flops(None, model.spec, policy, TOKENS, kept, 0)
        assert said == blocks_flops(model.spec, policy, 0, TOKENS, 0)
    assert said == 3 * block_flops(RANDOM_DROP, model.spec, policy, TOKENS, kept, 0)


def test_tokens_that_receive_attention_rank_first() -> None:
    weights = torch.tensor([[[0.1, 0.8, 0.1], [0.2, 0.6, 0.2], [0.3, 0.5, 0.2]]])
    assert rank(weights)[0].argsort(descending=True).tolist() == [1, 0, 2]
    torch.testing.assert_close(rank(weights).sum(), torch.tensor(1.0))
