"""diffusers' transformer as a peer: what it computes is diffusers', also with merged tokens or a first-block cache."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import pytest
import torch
from torch import Tensor

from benchmarks.merging import merge_tokens, split_squares
from benchmarks.peer import FIRST_BLOCK_CACHE, TOME, Job, build, run

JOB: Final = Job("diffusers", "dense", "pixart-sigma-xl", 1, 0.0, 64, 64, 2, 4, 1)


def test_merging_nothing_changes_nothing() -> None:
    x = torch.randn(2, 16, 8)

    def attend(rows: Tensor) -> Tensor:
        return torch.softmax(rows @ rows.transpose(1, 2), dim=-1) @ rows

    assert torch.allclose(merge_tokens(attend, 0, columns=4)(x), attend(x), atol=1e-6)


def test_equal_tokens_merge_into_one() -> None:
    """Two kinds of tokens, merged as far as it goes: each gets what its kind is given."""
    kinds = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    x = kinds[torch.tensor([0, 1, 1, 1, 1, 0, 0, 1])][None]  # the destinations, 0 and 2, differ
    counts = []

    def attend(rows: Tensor) -> Tensor:
        counts.append(rows.shape[1])
        return 3 * rows

    assert torch.allclose(merge_tokens(attend, 6, columns=4)(x), 3 * x)
    assert counts == [2]


def test_destinations_are_one_of_each_square() -> None:
    target, source = split_squares(15, columns=5)
    assert target.tolist() == [0, 2, 4, 10, 12, 14]
    assert sorted([*target.tolist(), *source.tolist()]) == list(range(15))


def test_a_first_block_cache_computes_the_first_block_alone_but_at_the_first_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    computed: list[int] = []

    def build_counted(job: Job) -> Any:
        model = build(job)
        for number, block in enumerate(model.transformer_blocks):
            block.attn1.register_forward_hook(lambda *_, number=number: computed.append(number))
        return model

    monkeypatch.setattr("benchmarks.peer.build", build_counted)
    job = replace(JOB, layers=3, steps=3)
    cached, dense = (run(replace(job, method=method))["arm"] for method in (FIRST_BLOCK_CACHE, "dense"))
    assert computed == [0, 1, 2, 0, 0] + [0, 1, 2] * 3
    assert cached["kept_tokens"] == dense["kept_tokens"] / 3
    assert dense["step_flops"] / 3 < cached["step_flops"] < dense["step_flops"] / 2  # the ends of a step are no block


@pytest.mark.parametrize("method", ["dense", TOME, FIRST_BLOCK_CACHE])
def test_a_trial_is_recorded_as_ours(method: str) -> None:
    found = run(replace(JOB, method=method, layers=2, merged=0.5))
    assert [stage["name"] for stage in found["stages"]] == ["first_step", "step"]
    assert found["arm"]["runtime"] == "torch"
