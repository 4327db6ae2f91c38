"""The denoising transformer as Core ML functions, one for each row of capacities, picture size and batch.

Weights and activations are float16; the sinusoid of the timestep, the position embedding, the router's scores and their
ranking are float32. A variance that the model predicts beside the noise is never computed. Models too large for one
package are cut into chunks of blocks, each a program.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import Function, Program, types
from numpy.typing import NDArray

from convert.coreml.layers import MASKED, attention, cast, linear, number
from convert.coreml.recipe import Routing
from convert.coreml.routing import gate, score, select
from convert.coreml.target import OPSET
from convert.coreml.weights import Var, Weights, shared_const
from moddit.embeddings import position_embedding, sinusoid_frequencies
from moddit.routing import capacity
from moddit.spec import PixArtSpec
from moddit.tensors import TIMESTEP_CHANNELS

OUTPUT_NORM_EPS = 1e-6  # diffusers' `norm_out`, which does not follow the configuration's norm_eps
_EMBEDDER = "adaln_single.emb."


@dataclass(frozen=True)
class Variant:
    """What one function is for."""

    name: str
    height: int  # latent pixels
    width: int  # latent pixels
    batch: int  # 2 runs both halves of classifier-free guidance in one call
    keep_tenths: tuple[int, ...] | None  # of each layer; None for a dense model


class TransformerGraph:
    """Builds the programs of one model.

    Args:
        spec: dimensions.
        weights: of the transformer.
        text_tokens: length of the text, padding included.
        routing: how tokens are moved.
    """

    def __init__(self, spec: PixArtSpec, weights: Weights, text_tokens: int, routing: Routing) -> None:
        self.spec = spec
        self.weights = weights
        self.text_tokens = text_tokens
        self.routing = routing
        self._constants: dict[str, Var] = {}  # of the function under construction

    def programs(self, variants: Sequence[Variant], chunks: int) -> list[Program]:
        """Build one program for each chunk of the blocks; each has one function for each variant."""
        edges = [round(self.spec.num_layers * chunk / chunks) for chunk in range(chunks + 1)]
        ranges = [range(first, last) for first, last in pairwise(edges)]
        return [self._program(variants, layers) for layers in ranges]

    def _program(self, variants: Sequence[Variant], layers: range) -> Program:
        program = Program()
        for variant in variants:
            self._constants.clear()
            with Function(self._inputs(variant, layers), opset_version=OPSET) as function:
                function.set_outputs(self._build(variant, layers, function.inputs))
            program.add_function(variant.name, function)
        program.default_function_name = variants[0].name
        program.export_as_multifunction = True
        return program

    def _inputs(self, variant: Variant, layers: range) -> dict[str, Any]:
        spec, batch = self.spec, variant.batch
        tokens, width = spec.tokens(variant.height, variant.width), spec.hidden_size
        shapes: dict[str, tuple[int, ...]] = {"text_mask": (batch, self.text_tokens)}
        halves: dict[str, tuple[int, ...]] = {}
        if layers.start == 0:
            shapes["latents"] = (batch, spec.in_channels, variant.height, variant.width)
            shapes["timestep"] = (1,)
            shapes["text"] = (batch, self.text_tokens, spec.caption_channels)
            if spec.use_additional_conditions:
                shapes |= {"resolution": (2,), "aspect_ratio": (1,)}
        else:
            halves = {
                "tokens": (batch, tokens, width),
                "modulation": (1, 6, width),
                "embedded": (1, 1, width),
                "text_states": (batch, self.text_tokens, width),
            }
        wide = {name: mb.placeholder(list(shape), dtype=types.fp32) for name, shape in shapes.items()}
        return wide | {name: mb.placeholder(list(shape), dtype=types.fp16) for name, shape in halves.items()}

    def _build(self, variant: Variant, layers: range, inputs: Mapping[str, Var]) -> list[Var]:
        if layers.start == 0:
            tokens = self._embed_patches(inputs["latents"], variant)  # (B, N, C)
            embedded, modulation = self._embed_timestep(inputs)  # (1, 1, C), (1, 6, C)
            text = self._project_text(inputs["text"])  # (B, L, C)
        else:
            tokens, embedded = inputs["tokens"], inputs["embedded"]
            modulation, text = inputs["modulation"], inputs["text_states"]
        bias = self._mask_bias(inputs["text_mask"])  # (B, 1, 1, L)
        for layer in layers:
            tokens = self._routed_block(layer, tokens, modulation, text, bias, variant.keep_tenths)
        if layers.stop == self.spec.num_layers:
            return [self._project_output(tokens, embedded, variant)]
        # an output needs a name of its own, and may not be an input
        handed = {"tokens": tokens, "modulation": modulation, "embedded": embedded, "text_states": text}
        return [mb.identity(x=value, name=f"{name}_out") for name, value in handed.items()]

    def _embed_patches(self, latents: Var, variant: Variant) -> Var:
        """Shapes: latents (B, in_channels, H, W) -> tokens (B, N, C)."""
        patch, weights = self.spec.patch_size, self.weights
        tokens = mb.conv(
            x=cast(latents, "fp16", "latents_fp16"),
            weight=weights.emit("pos_embed.proj.weight", "fp16"),
            bias=weights.emit("pos_embed.proj.bias", "fp16"),
            strides=[patch, patch],
            pad_type="valid",
            name="patches",
        )  # (B, C, H / patch, W / patch)
        count, batch = self.spec.tokens(variant.height, variant.width), variant.batch
        tokens = mb.reshape(x=tokens, shape=[batch, self.spec.hidden_size, count], name="patches_flat")
        tokens = cast(mb.transpose(x=tokens, perm=[0, 2, 1], name="patches_tokens"), "fp32", "patches_fp32")
        position = self._position(variant.height // patch, variant.width // patch)
        return cast(mb.add(x=tokens, y=position, name="placed_fp32"), "fp16", "placed")

    def _position(self, rows: int, columns: int) -> Var:
        spec = self.spec
        table = position_embedding(
            spec.hidden_size, rows, columns, base_size=spec.base_size, interpolation_scale=spec.interpolation_scale
        )
        return shared_const(table[None], f"position_{rows}x{columns}")  # (1, N, C)

    def _constant(self, name: str, make: Callable[[], NDArray[Any]]) -> Var:
        """Add a constant to the function under construction, unless it is there."""
        if name not in self._constants:
            self._constants[name] = shared_const(make(), name)
        return self._constants[name]

    def _embed_timestep(self, inputs: Mapping[str, Var]) -> tuple[Var, Var]:
        """Shapes: timestep (1,) -> embedded (1, 1, C), modulation (1, 6, C)."""
        width = self.spec.hidden_size
        embedded = self._embed_number(inputs["timestep"], _EMBEDDER + "timestep_embedder", "timestep")  # (1, C)
        if self.spec.use_additional_conditions:
            sides = self._embed_number(inputs["resolution"], _EMBEDDER + "resolution_embedder", "resolution")
            shape = self._embed_number(inputs["aspect_ratio"], _EMBEDDER + "aspect_ratio_embedder", "aspect_ratio")
            sides = mb.reshape(x=sides, shape=[1, 2 * (width // 3)], name="resolution_sides")
            size = mb.concat(values=[sides, shape], axis=1, name="size_embedded")
            embedded = mb.add(x=embedded, y=size, name="timestep_and_size")
        modulation = linear(
            self.weights, mb.silu(x=embedded, name="timestep_silu"), "adaln_single.linear", "modulation_linear"
        )
        modulation = mb.reshape(x=modulation, shape=[1, 6, width], name="modulation_rows")
        return mb.expand_dims(x=embedded, axes=[1], name="timestep_row"), modulation

    def _embed_number(self, values: Var, tensor: str, name: str) -> Var:
        """Sinusoid in float32, then two linear layers. Shapes: values (S,) float32 -> (S, channels) float16."""
        frequencies = self._constant("sinusoid_frequencies", lambda: sinusoid_frequencies(TIMESTEP_CHANNELS)[None])
        column = mb.expand_dims(x=values, axes=[1], name=name + "_column")
        angles = mb.mul(x=column, y=frequencies, name=name + "_angles")  # (S, 128)
        waves = [mb.cos(x=angles, name=name + "_cos"), mb.sin(x=angles, name=name + "_sin")]
        sinusoid = cast(mb.concat(values=waves, axis=1, name=name + "_sinusoid"), "fp16", name + "_sinusoid_fp16")
        hidden = mb.silu(x=linear(self.weights, sinusoid, tensor + ".linear_1", name + "_linear_1"), name=name + "_act")
        return linear(self.weights, hidden, tensor + ".linear_2", name + "_linear_2")

    def _project_text(self, text: Var) -> Var:
        """Shapes: text (B, L, caption_channels) float32 -> (B, L, C) float16."""
        narrow = cast(text, "fp16", "text_fp16")
        hidden = linear(self.weights, narrow, "caption_projection.linear_1", "text_linear_1")
        hidden = mb.gelu(x=hidden, mode="TANH_APPROXIMATION", name="text_gelu")
        return linear(self.weights, hidden, "caption_projection.linear_2", "text_linear_2")

    def _mask_bias(self, mask: Var) -> Var:
        """Shapes: mask (B, L) float32, 1 for tokens and 0 for padding -> attention bias (B, 1, 1, L) float16."""
        padding = mb.sub(x=np.float32(1), y=mask, name="text_padding")
        bias = cast(mb.mul(x=padding, y=np.float32(MASKED), name="text_bias"), "fp16", "text_bias_fp16")
        return mb.expand_dims(x=bias, axes=[1, 2], name="text_bias_rows")

    def _routed_block(
        self, layer: int, x: Var, modulation: Var, text: Var, bias: Var, keep_tenths: Sequence[int] | None
    ) -> Var:
        """Shapes: x (B, N, C) -> (B, N, C)."""
        name = f"block{layer:02}"
        if keep_tenths is None:
            return self._block(layer, x, modulation, text, bias, None)
        scores = score(self.weights, x, layer, name)
        count = capacity(keep_tenths[layer], x.shape[1])
        if count == x.shape[1]:
            return self._block(layer, x, modulation, text, bias, gate(scores, "fp16", name))
        kept = select(self.routing, x, scores, count, name, self._constant)
        rows = self._block(layer, kept.tokens, modulation, text, bias, gate(kept.scores, "fp16", name))
        return kept.put_back(rows)

    def _block(self, layer: int, x: Var, modulation: Var, text: Var, bias: Var, gates: Var | None) -> Var:
        """Self-attention, cross-attention to the text, and MLP, on the tokens given.

        Shapes: x (B, K, C), gates (B, K, 1) -> (B, K, C)
        """
        name, tensor = f"block{layer:02}", f"transformer_blocks.{layer}."
        weights, heads, eps = self.weights, self.spec.num_attention_heads, self.spec.norm_eps
        table = mb.add(
            x=modulation, y=weights.emit(tensor + "scale_shift_table", "fp16", _as_rows), name=name + "_modulation"
        )
        parts = mb.split(x=table, num_splits=6, axis=1, name=name + "_modulation_parts")  # six of (1, 1, C)
        shift_attention, scale_attention, gate_attention, shift_mlp, scale_mlp, gate_mlp = parts
        normed = _modulate(x, shift_attention, scale_attention, eps, name + "_norm1")
        branch = attention(weights, normed, normed, tensor + "attn1", heads, name + "_attn1")
        x = mb.add(x=x, y=mb.mul(x=branch, y=gate_attention, name=name + "_attn1_gated"), name=name + "_attn1_residual")
        # PixArt does not normalise before cross-attention; norm2 belongs to the MLP
        branch = attention(weights, x, text, tensor + "attn2", heads, name + "_attn2", bias)
        x = mb.add(x=x, y=branch, name=name + "_attn2_residual")
        hidden = linear(
            weights, _modulate(x, shift_mlp, scale_mlp, eps, name + "_norm2"), tensor + "ff.net.0.proj", name + "_ff_in"
        )
        hidden = mb.gelu(x=hidden, mode="TANH_APPROXIMATION", name=name + "_gelu")
        branch = mb.mul(
            x=linear(weights, hidden, tensor + "ff.net.2", name + "_ff_out"), y=gate_mlp, name=name + "_ff_gated"
        )
        if gates is not None:
            branch = mb.mul(x=branch, y=gates, name=name + "_ff_routed")
        return mb.add(x=x, y=branch, name=name + "_ff_residual")

    def _project_output(self, x: Var, embedded: Var, variant: Variant) -> Var:
        """Shapes: x (B, N, C), embedded (1, 1, C) -> prediction (B, in_channels, H, W) float32."""
        spec, weights = self.spec, self.weights
        table = mb.add(x=weights.emit("scale_shift_table", "fp16", _as_rows), y=embedded, name="output_modulation")
        shift, scale = mb.split(x=table, num_splits=2, axis=1, name="output_modulation_parts")
        x = _modulate(x, shift, scale, OUTPUT_NORM_EPS, "output_norm")
        patches = mb.linear(
            x=x,
            weight=weights.emit("proj_out.weight", "fp16", self._arrange_output),
            bias=weights.emit("proj_out.bias", "fp16", self._arrange_output),
            name="proj_out",
        )  # (B, N, in_channels * patch * patch)
        rows, columns = variant.height // spec.patch_size, variant.width // spec.patch_size
        patches = mb.transpose(x=patches, perm=[0, 2, 1], name="output_channels")
        grid = mb.reshape(x=patches, shape=[variant.batch, patches.shape[1], rows, columns], name="output_grid")
        pixels = mb.pixel_shuffle(x=grid, upscale_factor=spec.patch_size, name="output_pixels")
        return mb.cast(x=pixels, dtype="fp32", name="prediction")

    def _arrange_output(self, array: NDArray[Any]) -> NDArray[Any]:
        """Rows of the final projection from (P, P, channel) to (channel, P, P), without those of the variance."""
        spec, patch = self.spec, self.spec.patch_size
        rows = array.reshape(patch, patch, spec.out_channels, *array.shape[1:])
        rows = np.moveaxis(rows, 2, 0)[: spec.in_channels]
        return rows.reshape(-1, *array.shape[1:])


def _modulate(x: Var, shift: Var, scale: Var, eps: float, name: str) -> Var:
    """Shapes: x (B, K, C), shift and scale (1, 1, C) -> (B, K, C)."""
    normed = mb.layer_norm(x=x, axes=[-1], epsilon=number(x, eps), name=name)
    scale = mb.add(x=scale, y=number(scale, 1), name=name + "_scale")
    return mb.add(x=mb.mul(x=normed, y=scale, name=name + "_scaled"), y=shift, name=name + "_shifted")


def _as_rows(table: NDArray[Any]) -> NDArray[Any]:
    return table[None]
