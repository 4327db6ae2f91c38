from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch

from mlx_moddit.t5 import T5Encoder
from moddit.embeddings import relative_buckets
from moddit.models.t5 import T5Spec
from tests import tiny
from tests.parity.bridge import STAGE_TOLERANCES, copy_weights, relative_error, round_weights

SWITCHES: list[dict[str, Any]] = [
    {},
    {"gated": False},
    {"relative_attention_num_buckets": 8, "relative_attention_max_distance": 20, "num_layers": 3},
    {"d_kv": 16, "layer_norm_epsilon": 1e-3},
]


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_encoder_equals_transformers(stored_dtype: str, switches: dict[str, Any]) -> None:
    reference = tiny.make_text_encoder(**switches)
    spec = _spec(reference)
    encoder = copy_weights(T5Encoder(spec), reference.state_dict())
    round_weights(encoder, spec.tensors(), stored_dtype)
    ids, mask = _batch(lengths=(24, 5, 1))
    with torch.no_grad():
        wanted = reference(ids, attention_mask=mask).last_hidden_state.numpy()

    found = encoder(mx.array(ids.numpy()), mx.array(mask.numpy()))

    for row, length in enumerate(mask.sum(dim=1).tolist()):
        alone = encoder(mx.array(ids[row : row + 1, :length].numpy()))[0]
        assert relative_error(found[row, :length], wanted[row, :length]) < STAGE_TOLERANCES[stored_dtype]
        assert relative_error(alone, wanted[row, :length]) < STAGE_TOLERANCES[stored_dtype]  # trimming equals masking


def test_releasing_blocks_changes_nothing() -> None:
    reference = tiny.make_text_encoder()
    encoder = copy_weights(T5Encoder(_spec(reference)), reference.state_dict())
    ids = mx.array([[4, 9, 11, 1]])
    np.testing.assert_array_equal(np.array(encoder(ids)), np.array(encoder(ids, release=True)))


@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (8, 20), (16, 64)])
def test_buckets_equal_transformers(buckets: int, max_distance: int) -> None:
    attention = tiny.make_text_encoder().encoder.block[0].layer[0].SelfAttention
    distance = torch.arange(300)[None, :] - torch.arange(300)[:, None]
    wanted = attention._relative_position_bucket(distance, num_buckets=buckets, max_distance=max_distance)
    np.testing.assert_array_equal(relative_buckets(300, buckets, max_distance), wanted.numpy())


def test_float16_weights_do_not_overflow() -> None:
    reference = tiny.make_text_encoder()
    with torch.no_grad():
        for block in reference.encoder.block:
            block.layer[1].DenseReluDense.wo.weight.mul_(1e5)  # the residual stream leaves float16's range
    encoder = copy_weights(T5Encoder(_spec(reference)), reference.state_dict())
    encoder.set_dtype(mx.float16)
    assert bool(mx.isfinite(encoder(mx.array([[4, 9, 11, 1]]))).all())


def _spec(reference: Any) -> T5Spec:
    return T5Spec.from_transformers(reference.config.to_dict(), "text_encoder")


def _batch(lengths: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(2, 40, (len(lengths), max(lengths)), generator=generator)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    return ids * mask, mask
