"""diffusers' transformer as a peer: what it computes is diffusers', with or without merged tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest
import torch
from torch import Tensor

from benchmarks.peer import Job, merge_tokens, run

JOB: Final = Job("diffusers", "dense", "pixart-sigma-xl", 1, 0.0, 64, 64, 2, 4, 1)


def test_merging_nothing_changes_nothing() -> None:
    x = torch.randn(2, 16, 8)

    def attend(rows: Tensor) -> Tensor:
        return torch.softmax(rows @ rows.transpose(1, 2), dim=-1) @ rows

    assert torch.allclose(merge_tokens(attend, 0.0)(x), attend(x), atol=1e-6)


def test_equal_tokens_merge_into_one() -> None:
    """Two kinds of tokens, merged as far as it goes: each gets what its kind is given."""
    kinds = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    x = kinds[torch.tensor([0, 1, 0, 1, 1, 0, 0, 1])][None]
    counts = []

    def attend(rows: Tensor) -> Tensor:
        counts.append(rows.shape[1])
        return 3 * rows

    assert torch.allclose(merge_tokens(attend, 0.75)(x), 3 * x)
    assert counts == [2]


@pytest.mark.parametrize("method", ["dense", "tome"])
def test_a_trial_is_recorded_as_ours(method: str) -> None:
    found = run(replace(JOB, method=method, merged=0.5))
    assert [stage["name"] for stage in found["stages"]] == ["first_step", "step"]
    assert found["arm"]["runtime"] == "torch"
