"""Checkpoints with random weights: read as what they were asked to be, and drawn as transformers draws T5's."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np
import pytest
import torch
from transformers import T5Config, T5EncoderModel

from benchmarks.random_pixart import save_random
from moddit.checkpoint.description import Description, describe
from moddit.checkpoint.hub import find_checkpoint
from moddit.conditioning import Text
from moddit.configurations import find_configuration

TENTHS: Final = (10, 7, 5, 3)
ALIKE: Final = 0.1  # of a deviation: two draws of 1024 numbers, the smallest table, differ by 3 %


def small() -> Any:
    """PixArt-Sigma-XL with T5-XXL, narrow and of few layers."""
    spec: Any = find_configuration("pixart-sigma-xl")
    text = {"vocab_size": 64, "d_model": 96, "d_kv": 24, "d_ff": 160, "num_heads": 32, "num_layers": 2}
    heads = {"num_attention_heads": 2, "cross_attention_dim": 144, "caption_channels": 96}
    return replace(
        spec,
        transformer=replace(spec.transformer, num_layers=2, **heads),
        conditioning=Text(replace(spec.conditioning.encoder, **text), 300),
        vae=replace(spec.vae, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8),
    )


@pytest.fixture(scope="module")
def description(tmp_path_factory: pytest.TempPathFactory) -> Description:
    folder = save_random(tmp_path_factory.mktemp("random") / "checkpoint", small(), TENTHS)
    return describe(find_checkpoint(str(folder)).sources)


def test_it_is_what_was_asked_for(description: Description) -> None:
    assert replace(description.spec, scheduler=small().scheduler) == small()
    assert description.policy.plan.keep_tenths == (TENTHS,) * 2


def test_text_encoder_is_drawn_as_transformers_does(description: Description) -> None:
    """With queries as large as keys, scores of attention have a deviation of sqrt(d_kv), and it saturates."""
    fields = small().conditioning.encoder.to_json()
    del fields["is_gated"]
    torch.manual_seed(0)
    model: Any = T5EncoderModel(T5Config(**fields, feed_forward_proj="gated-gelu"))
    drawn = {name: value.detach().numpy() for name, value in model.named_parameters()}
    for name, tensor in description.parts["text_encoder"].tensors.items():
        found = tensor.read().astype(np.float32)
        assert found.mean() == pytest.approx(drawn[name].mean(), abs=ALIKE * max(found.std(), 1)), name
        assert found.std() == pytest.approx(drawn[name].std(), rel=ALIKE), name


def test_what_passes_through_a_layer_keeps_its_size(description: Description) -> None:
    for name in ("transformer", "vae"):
        for key, tensor in description.parts[name].tensors.items():
            values = tensor.read().astype(np.float32).reshape(tensor.shape[0], -1)
            if len(tensor.shape) > 1 and values.size > 1024:
                assert values.std() * values.shape[1] ** 0.5 == pytest.approx(1, rel=ALIKE), (name, key)
