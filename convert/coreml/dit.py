"""DiT for Core ML: every block computes its own modulation from timestep and class label, which every package takes."""

from __future__ import annotations

from collections.abc import Sequence

from coremltools.converters.mil import Builder as mb

from convert.coreml.layers import linear
from convert.coreml.transformer import Told, TransformerGraph, Vars, modulate
from convert.coreml.weights import Var
from moddit.contract import LABELS, TIMESTEP, block_name
from moddit.models.dit import FREQ_SHIFT, NORM_EPS, DiTSpec


class DiTGraph(TransformerGraph):
    """Builds the programs of a DiT."""

    spec: DiTSpec

    def start(self, _: Vars) -> Vars:
        return {}

    def share(self, inputs: Vars) -> Vars:
        return {"sinusoid": self.sinusoid(inputs[TIMESTEP], "timestep", FREQ_SHIFT), LABELS: inputs[LABELS]}

    def block(self, layer: int, x: Var, gates: Sequence[Var], told: Told) -> Var:
        name = block_name(layer)
        embedded = self._embed(layer, told)
        table = linear(self.weights, embedded, f"transformer_blocks.{layer}.norm1.linear", name + "_modulation")
        table = mb.reshape(x=table, shape=[-1, 6, self.spec.hidden_size], name=name + "_modulation_rows")
        parts = mb.split(x=table, num_splits=6, axis=1, name=name + "_modulation_parts")  # six of (B, 1, C)
        shift_attention, scale_attention, gate_attention, shift_mlp, scale_mlp, gate_mlp = parts
        normed = modulate(x, shift_attention, scale_attention, NORM_EPS, name + "_norm1")
        x = mb.add(x=x, y=self.attend(layer, normed, gate_attention), name=name + "_attn1_residual")
        normed = modulate(x, shift_mlp, scale_mlp, self.spec.norm_eps, name + "_norm3")
        return mb.add(x=x, y=self.feed_forward(layer, normed, gate_mlp, gates), name=name + "_ff_residual")

    def modulate_output(self, told: Told) -> Var:
        embedded = self._embed(0, told)  # the output takes the first block's
        table = linear(self.weights, embedded, "proj_out_1", "output_modulation")
        return mb.reshape(x=table, shape=[-1, 2, self.spec.hidden_size], name="output_modulation_rows")

    def _embed(self, layer: int, told: Told) -> Var:
        """Embed timestep and labels as a block does, activated. Shapes: -> (B, C)."""
        name, tensor = block_name(layer), f"transformer_blocks.{layer}.norm1.emb."
        if name in told:
            return told[name]
        weights = self.weights
        embedder = tensor + "timestep_embedder"
        hidden = linear(weights, told["sinusoid"], embedder + ".linear_1", name + "_timestep_linear_1")
        hidden = mb.silu(x=hidden, name=name + "_timestep_act")
        timestep = linear(weights, hidden, embedder + ".linear_2", name + "_timestep")  # (1, C)
        table = weights.emit(tensor + "class_embedder.embedding_table.weight", "fp16")
        label = mb.gather(x=table, indices=told[LABELS], axis=0, name=name + "_label")  # (B, C)
        embedded = mb.add(x=timestep, y=label, name=name + "_embedded")
        told[name] = mb.silu(x=embedded, name=name + "_embedded_act")
        return told[name]
