"""DiT in PyTorch.

Source: diffusers/models/transformers/dit_transformer_2d.py, models/attention.py (`BasicTransformerBlock` with
"ada_norm_zero").
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, ClassVar

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn

from moddit.models.dit import DiTSpec
from moddit.models.transformer import TransformerSpec
from torch_moddit.model import Context, RoutedTransformer, Told, gate_branch


class RoutedDiT(RoutedTransformer):
    """A DiT. Its context: "labels" (B,), numbers of classes; the one beyond the last is no class.

    Labels are never dropped here, in training neither: whoever trains puts no class in their place.
    """

    SPEC: ClassVar[type[TransformerSpec]] = DiTSpec
    spec: DiTSpec

    @classmethod
    def make(cls, spec: DiTSpec) -> Any:
        sizes = asdict(spec)
        return DiTTransformer2DModel(num_embeds_ada_norm=sizes.pop("num_classes"), **sizes)

    def tell(self, timestep: Tensor, context: Context, _: torch.dtype) -> dict[str, Tensor]:
        """Give timestep and labels, (B,) each, which every block embeds for itself."""
        return {"timestep": timestep, "labels": context["labels"]}

    def run_block(self, block: Any, tokens: Tensor, told: Told, gates: Tensor | None) -> Tensor:
        table = block.norm1.linear(nn.functional.silu(self._embed(block, told, tokens.dtype)))[:, None]  # (B, 1, 6 C)
        shift_attention, scale_attention, gate_attention, shift_mlp, scale_mlp, gate_mlp = table.chunk(6, dim=2)
        normed = block.norm1.norm(tokens) * (1 + scale_attention) + shift_attention
        tokens = gate_attention * block.attn1(normed) + tokens
        normed = block.norm3(tokens) * (1 + scale_mlp) + shift_mlp
        return gate_branch(gate_mlp * block.ff(normed), gates) + tokens

    def project(self, tokens: Tensor, told: Told) -> Tensor:
        model = self.transformer
        embedded = nn.functional.silu(self._embed(self.blocks[0], told, tokens.dtype))  # as in the first block
        shift, scale = model.proj_out_1(embedded)[:, None].chunk(2, dim=2)
        patches: Tensor = model.proj_out_2(model.norm_out(tokens) * (1 + scale) + shift)
        return patches

    def _embed(self, block: Any, told: Told, dtype: torch.dtype) -> Tensor:
        """Embed timestep and labels with a block's own weights. Shapes: -> (B, C)."""
        embedder = block.norm1.emb
        sinusoid = embedder.time_proj(told["timestep"]).to(dtype)
        embedded: Tensor = embedder.timestep_embedder(sinusoid)
        return embedded + embedder.class_embedder.embedding_table(told["labels"])
