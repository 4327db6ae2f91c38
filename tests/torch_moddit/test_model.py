"""The routed transformer against diffusers, and against a loop that routes token by token."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from moddit.errors import MissingError, ShapeError
from moddit.routing import RoutingPlan, capacity, select_tokens
from moddit.tokens import TokenPolicy
from tests import tiny
from torch_moddit.model import BlockTrace
from torch_moddit.pixart import RoutedPixArt
from torch_moddit.ratios import KeepRatios
from torch_moddit.tokens import BinUse, Routing
from torch_moddit.tokens import select_tokens as rank

# The operations are the same; matrix products at differently aligned addresses may differ in the last bit.
LAST_BIT = 1e-6
ROUNDING = 5e-6  # float32 sums taken in another order, on values of about 1
DENSE = TokenPolicy.dense(3, 1000)
TIMESTEPS = [3, 260, 510, 999]  # one of each of four regions


def inputs(kind: str, *, height: int = 12, width: int = 10, batch: int = 4) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(5)
    mask = (torch.arange(tiny.MAX_TOKENS) < torch.tensor([[5], [9], [1], [16]])[:batch]).long()
    sizes = {
        "resolution": torch.tensor([[24.0, 20.0]]).repeat(batch, 1),
        "aspect_ratio": torch.tensor([[1.2]]).repeat(batch, 1),
    }
    return {
        "latents": torch.randn(batch, 4, height, width, generator=generator),
        "timestep": torch.tensor(TIMESTEPS[:batch]),
        "context": {
            "text": torch.randn(batch, tiny.MAX_TOKENS, tiny.TEXT_WIDTH, generator=generator),
            "text_mask": mask,
            **(sizes if kind == "alpha-micro" else {}),
        },
    }


def diffusers_output(transformer: Any, values: dict[str, Any]) -> Tensor:
    context = values["context"]
    output: Tensor = transformer(
        values["latents"],
        encoder_hidden_states=context["text"],
        timestep=values["timestep"],
        encoder_attention_mask=context["text_mask"],
        added_cond_kwargs={name: context.get(name) for name in ("resolution", "aspect_ratio")},
    ).sample
    return output


def routed_model(kind: str, plan: RoutingPlan, **changes: Any) -> RoutedPixArt:
    transformer = tiny.make_transformer(kind, **changes)
    model = RoutedPixArt(transformer, TokenPolicy.topk(plan))
    weights = tiny.router_weights(plan.layers, 48)
    transformer.load_state_dict(weights, strict=False)
    return model


def random_plan(layers: int = 3) -> RoutingPlan:
    return RoutingPlan(tuple(tuple(row) for row in tiny.random_tenths(layers, 4)))


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("size", [(16, 16), (12, 10), (4, 22)])
@torch.no_grad()
def test_equals_diffusers_when_all_tokens_are_kept(kind: str, size: tuple[int, int]) -> None:
    transformer = tiny.make_transformer(kind)
    values = inputs(kind, height=size[0], width=size[1])
    wanted = diffusers_output(transformer, values)
    plan = RoutingPlan.uniform(3, 4, 10)
    models = {
        "dense": RoutedPixArt(copy.deepcopy(transformer), DENSE),
        "no gate": RoutedPixArt.from_dense(copy.deepcopy(transformer), TokenPolicy.random(plan)),
        "folded gate": RoutedPixArt.from_dense(copy.deepcopy(transformer), TokenPolicy.topk(plan)),
    }
    for name, model in models.items():
        assert float((model(**values) - wanted).abs().max()) <= LAST_BIT, name


@pytest.mark.parametrize(
    "changes",
    [
        {"interpolation_scale": 3},
        {"attention_bias": False},
        {"out_channels": 4},
        {"patch_size": 1},
        {"num_layers": 1, "norm_eps": 1e-5},
    ],
    ids=str,
)
@torch.no_grad()
def test_equals_diffusers_for_other_configurations(changes: dict[str, Any]) -> None:
    transformer = tiny.make_transformer("sigma", **changes)
    values = inputs("sigma")
    wanted = diffusers_output(transformer, values)
    dense = TokenPolicy.dense(transformer.config.num_layers, 1000)
    assert float((RoutedPixArt(transformer, dense)(**values) - wanted).abs().max()) <= LAST_BIT


def naive_block(block: Any, tokens: Tensor, modulation: Tensor, text: Tensor, mask: Tensor, tenths: int) -> Tensor:
    """Route one sample with plain matrix products: tokens (N, C), modulation (6, C), text (L, C) -> (N, C)."""

    def attend(attention: Any, rows: Tensor, sources: Tensor) -> Tensor:
        heads = []
        width = attention.to_q.weight.shape[0] // attention.heads
        q, k, v = attention.to_q(rows), attention.to_k(sources), attention.to_v(sources)
        for head in range(attention.heads):
            part = slice(head * width, (head + 1) * width)
            weights = torch.softmax(q[:, part] @ k[:, part].T / width**0.5, dim=-1)
            heads.append(weights @ v[:, part])
        result: Tensor = attention.to_out[0](torch.cat(heads, dim=-1))
        return result

    def norm(rows: Tensor) -> Tensor:
        centred = rows - rows.mean(dim=-1, keepdim=True)
        return centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()

    scores = [float(token @ block.router.weight[0]) for token in tokens]
    order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))
    kept = sorted(order[: capacity(tenths, len(scores))])
    shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = block.scale_shift_table + modulation
    rows = torch.stack([tokens[index] for index in kept])
    normed = norm(rows) * (1 + scale_a) + shift_a
    rows = rows + gate_a * attend(block.attn1, normed, normed)
    rows = rows + attend(block.attn2, rows, text[mask.bool()])
    branch = gate_m * block.ff(norm(rows) * (1 + scale_m) + shift_m)
    result = tokens.clone()
    for position, index in enumerate(kept):
        gate = 1 / (1 + np.exp(-scores[index]))
        result[index] = rows[position] + gate * branch[position]
    return result


@pytest.mark.parametrize("kind", tiny.KINDS)
@torch.no_grad()
def test_routed_blocks_equal_a_naive_loop(kind: str) -> None:
    plan = random_plan()
    model = routed_model(kind, plan)
    values = inputs(kind)
    traces: list[BlockTrace] = []
    model(**values, on_block=traces.append)
    transformer = model.transformer
    context = values["context"]
    sizes = {name: context[name] for name in ("resolution", "aspect_ratio") if name in context} or None
    tokens = transformer.pos_embed(values["latents"])
    modulation, _ = transformer.adaln_single(values["timestep"], sizes, batch_size=4)
    text = transformer.caption_projection(context["text"])
    for layer, block in enumerate(model.blocks):
        wanted = [
            naive_block(
                block,
                tokens[row],
                modulation[row].view(6, -1),
                text[row],
                context["text_mask"][row],
                plan.keep_tenths[layer][row],  # sample i lies in region i
            )
            for row in range(4)
        ]
        torch.testing.assert_close(traces[layer].output, torch.stack(wanted), rtol=1e-5, atol=1e-5)
        tokens = traces[layer].output


def rows_of(values: Any, rows: slice) -> Any:
    if isinstance(values, dict):
        return {name: rows_of(value, rows) for name, value in values.items()}
    return values[rows]


def to_half(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: to_half(value) for name, value in values.items()}
    return values.to(torch.bfloat16) if values.is_floating_point() else values


@torch.no_grad()
def test_mixed_regions_equal_samples_on_their_own() -> None:
    model = routed_model("sigma", random_plan())
    values = inputs("sigma")
    together = model(**values)
    for row in range(4):
        alone = model(**rows_of(values, slice(row, row + 1)))
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=ROUNDING)


@torch.no_grad()
def test_trace_tells_scores_and_kept_tokens() -> None:
    plan = random_plan()
    model = routed_model("sigma", plan)
    traces: list[BlockTrace] = []
    model(**inputs("sigma"), on_block=traces.append)
    for trace in traces:
        assert trace.scores is not None
        assert trace.scores.dtype == torch.float32
        for row, kept in enumerate(trace.kept):
            count = capacity(plan.keep_tenths[trace.layer][row], 30)
            wanted = select_tokens(trace.scores[row : row + 1].numpy(), count)[0]
            assert kept.tolist() == wanted.tolist()


@torch.no_grad()
def test_scores_are_float32_in_half_precision() -> None:
    model = routed_model("sigma", random_plan()).to(torch.bfloat16)
    traces: list[BlockTrace] = []
    output = model(**to_half(inputs("sigma")), on_block=traces.append)
    assert output.dtype == torch.bfloat16
    assert all(trace.scores is not None and trace.scores.dtype == torch.float32 for trace in traces)


@torch.no_grad()
def test_forced_tokens_replace_the_ranking() -> None:
    model = routed_model("sigma", RoutingPlan.uniform(3, 4, 5))
    values = inputs("sigma")
    traces: list[BlockTrace] = []
    free = model(**values, on_block=traces.append)
    kept = [torch.stack(trace.kept) for trace in traces]
    torch.testing.assert_close(model(**values, forced=kept), free, rtol=0, atol=LAST_BIT)
    first = torch.arange(15).expand(4, -1)
    assert not torch.equal(model(**values, forced=[first] * 3), free)


@pytest.mark.parametrize("seed", range(5))
def test_ranking_equals_the_reference(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(-2, 3, (3, 40), generator=generator).float()  # many ties
    for count in (1, 7, 40):
        assert np.array_equal(rank(scores, count).numpy(), select_tokens(scores.numpy(), count))


def test_gradients_reach_routers_ratios_and_weights() -> None:
    plan = RoutingPlan.uniform(3, 4, 10)
    model = RoutedPixArt.from_dense(tiny.make_transformer(), TokenPolicy.topk(plan))
    ratios = KeepRatios(3, 4)
    model(**inputs("sigma"), routing=ratios.bins).square().mean().backward()
    assert ratios.values.grad is not None
    assert bool((ratios.values.grad != 0).all())  # at 1, where bins must differ to give one
    for parameter in model.parameters():
        assert parameter.grad is not None
    assert all(bool((router.grad != 0).any()) for router in model.router_parameters() if router.grad is not None)


def test_mix_of_bins_is_linear_in_the_ratio() -> None:
    model = routed_model("sigma", RoutingPlan.uniform(3, 1, 10), num_layers=3)
    values = {**inputs("sigma"), "timestep": torch.tensor([5, 6, 7, 8])}

    def last_layer(uses: list[BinUse]) -> Routing:
        """Run all layers whole but the last, which runs at the uses given."""
        return lambda layer, _: uses if layer == 2 else [BinUse(10, None, None)]

    with torch.no_grad():
        blocks: dict[int, list[BlockTrace]] = {3: [], 4: []}
        for tenths, traces in blocks.items():
            model(**values, routing=last_layer([BinUse(tenths, None, None)]), on_block=traces.append)
        ratios = KeepRatios(3, 1)
        ratios.values[2] = 0.37
        outputs: list[Tensor] = []
        handle = model.transformer.norm_out.register_forward_pre_hook(lambda _, given: outputs.append(given[0]))
        model(**values, routing=last_layer(ratios.bins(2, [0, 0, 0, 0])))
        handle.remove()
    wanted = 0.3 * blocks[3][-1].output + 0.7 * blocks[4][-1].output
    torch.testing.assert_close(outputs[0], wanted, rtol=1e-5, atol=1e-5)


def test_gradient_checkpointing_changes_nothing() -> None:
    model = routed_model("sigma", random_plan())
    gradients = []
    for checkpointing in (False, True):
        model.gradient_checkpointing = checkpointing
        model.zero_grad()
        model(**inputs("sigma")).square().mean().backward()
        gradients.append(model.blocks[0].attn1.to_q.weight.grad.clone())
    torch.testing.assert_close(gradients[1], gradients[0])


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(ShapeError, match="plan has 2 layers"):
        RoutedPixArt(tiny.make_transformer(), TokenPolicy.topk(RoutingPlan.uniform(2, 4, 5)))
    model = RoutedPixArt(tiny.make_transformer("alpha-micro"), DENSE)
    with pytest.raises(MissingError, match="resolution"):
        model(**inputs("sigma"))
    with pytest.raises(ShapeError, match="whole patches"):
        model(**inputs("alpha-micro", height=13))
