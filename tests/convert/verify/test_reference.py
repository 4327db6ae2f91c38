"""What the reference does otherwise than the libraries whose models it has."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers.models.embeddings import Timesteps
from numpy.typing import NDArray
from torch import nn

from convert.verify.reference import Sinusoid, build_t5
from moddit.embeddings import sinusoid_frequencies
from moddit.models.t5 import T5Spec
from tests.tiny import make_text_encoder


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("cosines_first", [True, False])
def test_sinusoids_have_frequencies_that_are_rounded_once(shift: int, cosines_first: bool) -> None:
    right = Timesteps(256, cosines_first, shift)
    ours = Sinusoid(right)
    assert np.array_equal(ours.frequencies.numpy(), sinusoid_frequencies(256, shift))
    for timestep in (0.0, 1.0, 250.5, 999.0):
        values = torch.full((2,), timestep)
        torch.testing.assert_close(ours(values), right(values), rtol=0, atol=1e-6 + 1.3e-7 * timestep)


def held(model: nn.Module) -> int:
    """Count the bytes that the parameters of a model have in memory."""
    storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in model.parameters()}
    return sum(storages.values())


def test_a_layer_has_its_weights_only_while_it_runs() -> None:
    whole = make_text_encoder()
    state = whole.state_dict()
    spec = T5Spec.from_transformers(json.loads(whole.config.to_json_string()), "test")
    reads: list[str] = []

    def values(name: str) -> NDArray[np.float32]:
        reads.append(name)
        return np.array(state[name].numpy())

    model, most = build_t5(spec, values), 0

    def measure(module: nn.Module, *_: object) -> None:
        nonlocal most
        most = max(most, held(model))

    for module in model.modules():
        module.register_forward_pre_hook(measure)
    ids = torch.arange(8)[None] + 3
    with torch.no_grad():
        found, wanted = (item(ids).last_hidden_state for item in (model, whole))
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert sorted(reads) == sorted(spec.tensors())  # each once
    largest = max(value.nbytes for value in state.values())
    outlines = 4 * len(list(model.parameters()))
    assert held(model) == outlines
    assert largest <= most <= largest + outlines < held(whole) / 4
