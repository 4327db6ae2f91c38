"""PixArt (alpha and Sigma) in PyTorch.

Source: diffusers/models/transformers/pixart_transformer_2d.py, models/attention.py (`BasicTransformerBlock` with
"ada_norm_single").
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, ClassVar, Final

import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor

from moddit.models.pixart import PixArtSpec
from moddit.models.transformer import TransformerSpec
from torch_moddit.model import Context, RoutedTransformer, Told, gate_branch

MASKED: Final = -10000.0  # attention bias of a text token that is padding, as in diffusers
_SIZES: Final = ("resolution", "aspect_ratio")


class RoutedPixArt(RoutedTransformer):
    """A PixArt.

    Its context: "text" (B, L, caption_channels); "text_mask" (B, L), 1 for tokens and 0 for padding, unless there is no
    padding; and with additional conditions "resolution" (B, 2) and "aspect_ratio" (B, 1).
    """

    SPEC: ClassVar[type[TransformerSpec]] = PixArtSpec
    spec: PixArtSpec

    @classmethod
    def make(cls, spec: PixArtSpec) -> Any:
        return PixArtTransformer2DModel(**asdict(spec))

    def tell(self, timestep: Tensor, context: Context, dtype: torch.dtype) -> dict[str, Tensor]:
        """Give the modulation (B, 6, C), the embedded timestep (B, C), the text (B, L, C) and its bias (B, 1, L)."""
        model, text = self.transformer, context["text"]
        sizes = {name: context[name] for name in _SIZES if name in context} or None
        batch = len(timestep)
        modulation, embedded = model.adaln_single(timestep, sizes, batch_size=batch, hidden_dtype=dtype)
        told = {
            "modulation": modulation.reshape(batch, 6, -1),
            "embedded": embedded,
            "text": model.caption_projection(text).view(batch, -1, self.spec.hidden_size),
        }
        if "text_mask" in context:
            told["text_bias"] = ((1 - context["text_mask"].to(dtype)) * MASKED).unsqueeze(1)
        return told

    def run_block(self, block: Any, tokens: Tensor, told: Told, gates: Tensor | None) -> Tensor:
        table = block.scale_shift_table[None] + told["modulation"]
        shift_attention, scale_attention, gate_attention, shift_mlp, scale_mlp, gate_mlp = table.chunk(6, dim=1)
        normed = block.norm1(tokens) * (1 + scale_attention) + shift_attention
        tokens = gate_attention * block.attn1(normed) + tokens
        # PixArt does not normalise before cross-attention; norm2 belongs to the MLP.
        bias = told.get("text_bias")
        tokens = block.attn2(tokens, encoder_hidden_states=told["text"], attention_mask=bias) + tokens
        normed = block.norm2(tokens) * (1 + scale_mlp) + shift_mlp
        return gate_branch(gate_mlp * block.ff(normed), gates) + tokens

    def project(self, tokens: Tensor, told: Told) -> Tensor:
        model = self.transformer
        shift, scale = (model.scale_shift_table[None] + told["embedded"][:, None]).chunk(2, dim=1)
        patches: Tensor = model.proj_out(model.norm_out(tokens) * (1 + scale) + shift)
        return patches
