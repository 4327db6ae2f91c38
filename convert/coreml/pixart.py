"""PixArt (alpha and Sigma) for Core ML: one modulation for the whole batch, cross-attention to the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from coremltools.converters.mil import Builder as mb

from convert.coreml.layers import MASKED, attention, cast, linear, project_heads
from convert.coreml.transformer import Told, TransformerGraph, Vars, as_rows, modulate
from convert.coreml.weights import Var
from moddit.contract import (
    ASPECT_RATIO,
    EMBEDDED,
    MODULATION,
    RESOLUTION,
    TEXT,
    TEXT_KEYS,
    TEXT_MASK,
    TEXT_VALUES,
    TIMESTEP,
    block_name,
)
from moddit.models.pixart import PixArtSpec

_EMBEDDER: Final = "adaln_single.emb."


class PixArtGraph(TransformerGraph):
    """Builds the programs of a PixArt."""

    spec: PixArtSpec

    def prepare(self, inputs: Vars) -> list[Var]:
        text = self._project_text(inputs[TEXT])  # (B, L, C)
        return [self._project_blocks(text, "k", TEXT_KEYS), self._project_blocks(text, "v", TEXT_VALUES)]

    def start(self, inputs: Vars) -> Vars:
        embedded, modulation = self._embed_timestep(inputs)  # (1, 1, C), (1, 6, C)
        return {MODULATION: modulation, EMBEDDED: embedded}

    def share(self, inputs: Vars) -> Vars:
        bias = self._mask_bias(inputs[TEXT_MASK])  # (B, 1, 1, L)
        return {"text_bias": bias, TEXT_KEYS: inputs[TEXT_KEYS], TEXT_VALUES: inputs[TEXT_VALUES]}

    def block(self, layer: int, x: Var, gates: Sequence[Var], told: Told) -> Var:
        name, tensor = block_name(layer), f"transformer_blocks.{layer}."
        weights, eps = self.weights, self.spec.norm_eps
        own = weights.emit(tensor + "scale_shift_table", "fp16", as_rows)
        table = mb.add(x=told[MODULATION], y=own, name=name + "_modulation")
        parts = mb.split(x=table, num_splits=6, axis=1, name=name + "_modulation_parts")  # six of (1, 1, C)
        shift_attention, scale_attention, gate_attention, shift_mlp, scale_mlp, gate_mlp = parts
        normed = modulate(x, shift_attention, scale_attention, eps, name + "_norm1")
        x = mb.add(x=x, y=self.attend(layer, normed, gate_attention), name=name + "_attn1_residual")
        # PixArt does not normalise before cross-attention; norm2 belongs to the MLP
        keys, values = (self._of_block(layer, told[part], part) for part in (TEXT_KEYS, TEXT_VALUES))
        branch = attention(weights, x, keys, values, tensor + "attn2", name + "_attn2", told["text_bias"])
        x = mb.add(x=x, y=branch, name=name + "_attn2_residual")
        normed = modulate(x, shift_mlp, scale_mlp, eps, name + "_norm2")
        return mb.add(x=x, y=self.feed_forward(layer, normed, gate_mlp, gates), name=name + "_ff_residual")

    def modulate_output(self, told: Told) -> Var:
        own = self.weights.emit("scale_shift_table", "fp16", as_rows)
        return mb.add(x=own, y=told[EMBEDDED], name="output_modulation")

    def _embed_timestep(self, inputs: Vars) -> tuple[Var, Var]:
        """Shapes: timestep (1,) -> embedded (1, 1, C), modulation (1, 6, C)."""
        width = self.spec.hidden_size
        embedded = self.embed_number(inputs[TIMESTEP], _EMBEDDER + "timestep_embedder", "timestep")  # (1, C)
        if self.spec.use_additional_conditions:
            sides = self.embed_number(inputs[RESOLUTION], _EMBEDDER + "resolution_embedder", "resolution")
            shape = self.embed_number(inputs[ASPECT_RATIO], _EMBEDDER + "aspect_ratio_embedder", "aspect_ratio")
            sides = mb.reshape(x=sides, shape=[1, 2 * (width // 3)], name="resolution_sides")
            size = mb.concat(values=[sides, shape], axis=1, name="size_embedded")
            embedded = mb.add(x=embedded, y=size, name="timestep_and_size")
        modulation = linear(
            self.weights, mb.silu(x=embedded, name="timestep_silu"), "adaln_single.linear", "modulation_linear"
        )
        modulation = mb.reshape(x=modulation, shape=[1, 6, width], name="modulation_rows")
        return mb.expand_dims(x=embedded, axes=[1], name="timestep_row"), modulation

    def _project_text(self, text: Var) -> Var:
        """Shapes: text (B, L, caption_channels) float32 -> (B, L, C) float16."""
        narrow = cast(text, "fp16", "text_fp16")
        hidden = linear(self.weights, narrow, "caption_projection.linear_1", "text_linear_1")
        hidden = mb.gelu(x=hidden, mode="TANH_APPROXIMATION", name="text_gelu")
        return linear(self.weights, hidden, "caption_projection.linear_2", "text_linear_2")

    def _project_blocks(self, text: Var, part: str, name: str) -> Var:
        """Project the text for every block. Shapes: text (B, L, C) -> (layers * B, H, L, D)."""
        heads = self.spec.num_attention_heads
        parts = [
            project_heads(
                self.weights, text, f"transformer_blocks.{layer}.attn2", part, heads, block_name(layer) + "_attn2"
            )
            for layer in range(self.spec.num_layers)
        ]
        return mb.concat(values=parts, axis=0, name=name)

    def _of_block(self, layer: int, prepared: Var, name: str) -> Var:
        """Take what was prepared for a block. Shapes: prepared (layers * B, H, L, D) -> (B, H, L, D)."""
        rows, *sizes = prepared.shape
        batch = rows // self.spec.num_layers
        begin, end = [layer * batch, 0, 0, 0], [(layer + 1) * batch, *sizes]
        return mb.slice_by_index(x=prepared, begin=begin, end=end, name=f"{block_name(layer)}_{name}")

    def _mask_bias(self, mask: Var) -> Var:
        """Shapes: mask (B, L) float32, 1 for tokens and 0 for padding -> attention bias (B, 1, 1, L) float16."""
        padding = mb.sub(x=np.float32(1), y=mask, name="text_padding")
        bias = cast(mb.mul(x=padding, y=np.float32(MASKED), name="text_bias"), "fp16", "text_bias_fp16")
        return mb.expand_dims(x=bias, axes=[1, 2], name="text_bias_rows")
