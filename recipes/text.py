"""The text side of the recipes: a word tokenizer in T5's own format and a tiny T5 encoder that can bind words.

Two findings shaped this file. A Unigram trainer sees only the unique words and splits them into characters, so the
vocabulary is written by hand. And T5's default relative bias is so small that positions are invisible: the encoder then
knows which words occur but not which of them belong together. The bias therefore starts as a penalty on distance.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from transformers import T5Config, T5EncoderModel, T5Tokenizer

WIDTH: Final = 128
SLOPES: Final = (1.0, 0.6, 0.4)  # penalty per token of distance in the first three heads; the fourth sees all alike
FORWARD_BIAS: Final = -8.0


def build_tokenizer(words: Iterable[str], *, length: int) -> T5Tokenizer:
    """Make a tokenizer of at most `length` tokens: one piece a word, and single characters for everything else."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"▁{word}", -4.0) for word in words]
    pieces += [(",", -4.0)]
    pieces += [(character, -14.0) for character in "▁abcdefghijklmnopqrstuvwxyz"]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=length)


def build_text_encoder(tokenizer: T5Tokenizer) -> T5EncoderModel:
    """Make an untrained encoder of 2 layers with the distance bias."""
    config = T5Config(
        vocab_size=-(-len(tokenizer) // 8) * 8,
        d_model=WIDTH,
        d_kv=32,
        d_ff=2 * WIDTH,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        is_encoder_decoder=False,
        use_cache=False,
    )
    encoder = T5EncoderModel(config)
    stack: Any = encoder.encoder
    with torch.no_grad():
        stack.block[0].layer[0].SelfAttention.relative_attention_bias.weight.copy_(_distance_bias(config))
    return encoder


def tokenize(tokenizer: T5Tokenizer, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return ids and mask, both (B, L) int64, padded to the L tokens that the tokenizer was made with."""
    encoded = tokenizer(list(texts), padding="max_length", truncation=True, return_tensors="pt")
    return encoded.input_ids, encoded.attention_mask


def _distance_bias(config: T5Config) -> Tensor:
    """Bias (buckets, heads): -slope * distance to earlier tokens, a constant to later ones, zero in the last head."""
    half = config.relative_attention_num_buckets // 2
    exact = half // 2
    growth = math.log(config.relative_attention_max_distance / exact) / (half - exact)
    distance = [float(i) if i < exact else exact * math.exp(growth * (i - exact)) for i in range(half)]
    bias = torch.zeros(2 * half, config.num_heads)
    for head, slope in enumerate(SLOPES):
        bias[:half, head] = -slope * torch.tensor(distance)
        bias[half:, head] = FORWARD_BIAS
    return bias
