"""What a user is told of a checkpoint: what is left out of a bundle, and which of two things counts."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

from moddit.checkpoint.description import describe
from tests.parity.published import CASES

# Tensors that no bundle holds: component and name, and a part of the reason.
UNUSED: Final = [
    ("official_alpha_with_the_caption_that_is_left_out", "transformer/caption_projection.y_embedding", "left out"),
    ("leftovers_everywhere", "vae/lm_head.weight", "not of this model"),
    ("a_whole_encoder_decoder_as_text_encoder", "text_encoder/decoder.final_layer_norm.weight", "not of this model"),
    ("both_names_of_the_embedding", "text_encoder/encoder.embed_tokens.weight", "equal to shared.weight"),
    ("two_embeddings_that_differ", "text_encoder/shared.weight", "differs from encoder.embed_tokens.weight"),
    ("original_alpha", "transformer/y_embedder.y_embedding", "training only"),
]
NOTES: Final = [
    ("transformer_whole_beside_the_shards_of_another", "the index is used, as in diffusers"),
    ("a_vae_that_shifts", "the VAE's shift_factor 0.4 is not used"),
    ("original_sigma_as_one_file_of_comfyui", "original layout of PixArt: 2 heads, trained at 32 pixels"),
    ("an_adapter", "style/pytorch_lora_weights.safetensors is merged into "),
]


@pytest.mark.parametrize(("name", "tensor", "reason"), UNUSED, ids=lambda item: item)
def test_what_is_left_out_is_named(tmp_path: Path, name: str, tensor: str, reason: str) -> None:
    assert reason in describe(CASES[name](tmp_path).sources).unused[tensor]


@pytest.mark.parametrize(("name", "note"), NOTES)
def test_a_choice_between_two_is_told(tmp_path: Path, name: str, note: str) -> None:
    assert any(note in found for found in describe(CASES[name](tmp_path).sources).notes)


def test_nothing_is_told_where_all_is_plain(tmp_path: Path) -> None:
    found = describe(CASES["untouched"](tmp_path).sources)
    assert (dict(found.unused), found.notes) == ({}, ())
