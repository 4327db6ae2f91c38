"""Denoising transformers as Core ML functions, one for each row of capacities, picture size and batch.

What every step of a picture takes, such as keys and values of its text, has a program of its own.

Weights and activations are float16; the sinusoid of the timestep, the position embedding, the router's scores and their
ranking are float32. A variance that the model predicts beside the noise is never computed. Models too large for one
package are cut into chunks of blocks, each a program. An architecture is a subclass.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from coremltools.converters.mil import Builder as mb
from coremltools.converters.mil.mil import Program, types
from numpy.typing import NDArray

from convert.coreml.choices import Routing
from convert.coreml.layers import cast, linear, number, self_attention
from convert.coreml.package import build_program
from convert.coreml.routing import Keeper
from convert.coreml.weights import Var, Weights, shared_const
from moddit.bins import Size
from moddit.contract import INTEGERS, LATENTS, PREDICTION, TOKENS, batch_name, block_name, handed_name
from moddit.embeddings import sinusoid_frequencies
from moddit.graphs import StepFunction
from moddit.models.transformer import OUTPUT_NORM_EPS, Shapes, StepFeatures, TransformerSpec
from moddit.spec import ModelSpec
from moddit.tensors import TIMESTEP_CHANNELS
from moddit.tokens import TokenPolicy

Vars = Mapping[str, Var]
Told = dict[str, Var]  # what the blocks of a package take beside the tokens


class TransformerGraph(ABC):
    """Builds the programs of one model, whose policy says which tokens the blocks process."""

    spec: TransformerSpec

    def __init__(self, model: ModelSpec, policy: TokenPolicy, weights: Weights, routing: Routing) -> None:
        self.model = model
        self.spec = model.transformer
        self.weights = weights
        self.keeper = Keeper(policy, routing, weights, self.constant)
        self._constants: dict[str, Var] = {}  # of the function under construction

    def prepare(self, inputs: Vars) -> list[Var]:  # noqa: ARG002 # of a text
        """Compute what the specification says that is prepared (`prepare_features`), in its order; here nothing."""
        return []

    @abstractmethod
    def start(self, inputs: Vars) -> Vars:
        """Compute what the first package hands to the others beside the tokens."""

    @abstractmethod
    def share(self, inputs: Vars) -> Vars:
        """Compute what all blocks of a package take, from inputs that every package has."""

    @abstractmethod
    def block(self, layer: int, x: Var, gates: Sequence[Var], told: Told) -> Var:
        """Run a block on tokens; `gates` multiply the MLP branch, and an earlier block may have left things in `told`.

        Shapes: x (B, K, C), gates (B, K, 1) -> (B, K, C)
        """

    @abstractmethod
    def modulate_output(self, told: Told) -> Var:
        """Compute shift and scale of the output. Shapes: -> (1 or B, 2, C)."""

    def programs(self, functions: Sequence[StepFunction], chunks: int) -> list[Program]:
        """Build one program for each chunk of the blocks; each has all functions."""
        edges = [round(self.spec.num_layers * chunk / chunks) for chunk in range(chunks + 1)]
        ranges = [range(first, last) for first, last in pairwise(edges)]
        return [
            build_program(
                (item.function, self._inputs(item, layers), partial(self._build, item, layers)) for item in functions
            )
            for layers in ranges
        ]

    def prepare_program(self, batches: Sequence[int]) -> Program:
        """Build the program of what is computed once a picture, with a function for each batch."""
        told = ((batch, self.spec.prepare_features(batch, self.model.text_tokens)[0]) for batch in batches)
        return build_program((batch_name(batch), _placeholders(shapes), self.prepare) for batch, shapes in told)

    def _latent_size(self, item: StepFunction) -> Size:
        return item.height // self.model.vae.downscale, item.width // self.model.vae.downscale

    def _features(self, item: StepFunction) -> StepFeatures:
        return self.spec.step_features(item.batch, self.spec.tokens(*self._latent_size(item)), self.model.text_tokens)

    def _inputs(self, item: StepFunction, layers: range) -> dict[str, Any]:
        fed = self._features(item)
        if layers.start == 0:
            latents = (item.batch, self.spec.in_channels, *self._latent_size(item))
            own = _placeholders({LATENTS: latents, **fed.first})
        else:
            own = _placeholders(fed.handed, types.fp16)
        _, prepared = self.spec.prepare_features(item.batch, self.model.text_tokens)
        return own | _placeholders(fed.always) | _placeholders(prepared, types.fp16)

    def _build(self, item: StepFunction, layers: range, inputs: Vars) -> list[Var]:
        self._constants.clear()
        is_first = layers.start == 0
        tokens = self._embed_patches(inputs[LATENTS]) if is_first else inputs[TOKENS]  # (B, N, C)
        handed = self.start(inputs) if is_first else {name: inputs[name] for name in self._features(item).handed}
        told: Told = {**handed, **self.share(inputs)}
        for layer in layers:
            kept = self.keeper.keep(tokens, layer, item.capacities[layer], block_name(layer))
            tokens = kept.put_back(self.block(layer, kept.tokens, kept.gates, told))
        if layers.stop == self.spec.num_layers:
            return [self._project_output(tokens, self.modulate_output(told), *self._latent_size(item))]
        # an output needs a name of its own, and may not be an input
        given = {**handed, TOKENS: tokens}
        return [mb.identity(x=given[name], name=handed_name(name)) for name in self._features(item).handed]

    def _embed_patches(self, latents: Var) -> Var:
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
        batch, channels, rows, columns = tokens.shape
        tokens = mb.reshape(x=tokens, shape=[batch, channels, rows * columns], name="patches_flat")
        tokens = cast(mb.transpose(x=tokens, perm=[0, 2, 1], name="patches_tokens"), "fp32", "patches_fp32")
        table = self.spec.position_embedding(rows, columns)
        position = shared_const(table[None], f"position_{rows}x{columns}")  # (1, N, C)
        return cast(mb.add(x=tokens, y=position, name="placed_fp32"), "fp16", "placed")

    def constant(self, name: str, make: Callable[[], NDArray[Any]]) -> Var:
        """Add a constant to the function under construction, unless it is there."""
        if name not in self._constants:
            self._constants[name] = shared_const(make(), name)
        return self._constants[name]

    def embed_number(self, values: Var, tensor: str, name: str) -> Var:
        """Sinusoid in float32, then two linear layers. Shapes: values (S,) float32 -> (S, channels) float16."""
        sinusoid = self.sinusoid(values, name)
        hidden = mb.silu(x=linear(self.weights, sinusoid, tensor + ".linear_1", name + "_linear_1"), name=name + "_act")
        return linear(self.weights, hidden, tensor + ".linear_2", name + "_linear_2")

    def sinusoid(self, values: Var, name: str, freq_shift: int = 0) -> Var:
        """Embed numbers in float32. Shapes: values (S,) float32 -> (S, TIMESTEP_CHANNELS) float16."""
        frequencies = self.constant(
            "sinusoid_frequencies", lambda: sinusoid_frequencies(TIMESTEP_CHANNELS, freq_shift)[None]
        )
        column = mb.expand_dims(x=values, axes=[1], name=name + "_column")
        angles = mb.mul(x=column, y=frequencies, name=name + "_angles")  # (S, 128)
        waves = [mb.cos(x=angles, name=name + "_cos"), mb.sin(x=angles, name=name + "_sin")]
        return cast(mb.concat(values=waves, axis=1, name=name + "_sinusoid"), "fp16", name + "_sinusoid_fp16")

    def feed_forward(self, layer: int, x: Var, gate: Var, gates: Sequence[Var]) -> Var:
        """Run the MLP on normed tokens, gated by the modulation and by the policy. Shapes: x (B, K, C) -> the same."""
        name, tensor = block_name(layer), f"transformer_blocks.{layer}."
        hidden = linear(self.weights, x, tensor + "ff.net.0.proj", name + "_ff_in")
        hidden = mb.gelu(x=hidden, mode="TANH_APPROXIMATION", name=name + "_gelu")
        branch = linear(self.weights, hidden, tensor + "ff.net.2", name + "_ff_out")
        branch = mb.mul(x=branch, y=gate, name=name + "_ff_gated")
        for own in gates:
            branch = mb.mul(x=branch, y=own, name=name + "_ff_routed")
        return branch

    def attend(self, layer: int, x: Var, gate: Var) -> Var:
        """Run self-attention on normed tokens, gated by the modulation. Shapes: x (B, K, C) -> the same."""
        name, tensor = block_name(layer) + "_attn1", f"transformer_blocks.{layer}.attn1"
        branch = self_attention(self.weights, x, tensor, self.spec.num_attention_heads, name)
        return mb.mul(x=branch, y=gate, name=name + "_gated")

    def _project_output(self, x: Var, modulation: Var, height: int, width: int) -> Var:
        """Shapes: x (B, N, C), modulation (1 or B, 2, C) -> prediction (B, latent_channels, H, W) float32."""
        spec, weights = self.spec, self.weights
        shift, scale = mb.split(x=modulation, num_splits=2, axis=1, name="output_modulation_parts")
        x = modulate(x, shift, scale, OUTPUT_NORM_EPS, "output_norm")
        patches = mb.linear(
            x=x,
            weight=weights.emit(f"{spec.OUTPUT}.weight", "fp16", self._arrange_output),
            bias=weights.emit(f"{spec.OUTPUT}.bias", "fp16", self._arrange_output),
            name="proj_out",
        )  # (B, N, latent_channels * patch * patch)
        rows, columns = height // spec.patch_size, width // spec.patch_size
        patches = mb.transpose(x=patches, perm=[0, 2, 1], name="output_channels")
        grid = mb.reshape(x=patches, shape=[*patches.shape[:2], rows, columns], name="output_grid")
        pixels = mb.pixel_shuffle(x=grid, upscale_factor=spec.patch_size, name="output_pixels")
        return mb.cast(x=pixels, dtype="fp32", name=PREDICTION)

    def _arrange_output(self, array: NDArray[Any]) -> NDArray[Any]:
        """Rows of the final projection from (P, P, channel) to (channel, P, P), without those of the variance."""
        spec, patch = self.spec, self.spec.patch_size
        rows = array.reshape(patch, patch, spec.out_channels, *array.shape[1:])
        rows = np.moveaxis(rows, 2, 0)[: spec.latent_channels]
        return rows.reshape(-1, *array.shape[1:])


def modulate(x: Var, shift: Var, scale: Var, eps: float, name: str) -> Var:
    """Shapes: x (B, K, C), shift and scale (1 or B, 1, C) -> (B, K, C)."""
    normed = mb.layer_norm(x=x, axes=[-1], epsilon=number(x, eps), name=name)
    scale = mb.add(x=scale, y=number(scale, 1), name=name + "_scale")
    return mb.add(x=mb.mul(x=normed, y=scale, name=name + "_scaled"), y=shift, name=name + "_shifted")


def as_rows(table: NDArray[Any]) -> NDArray[Any]:
    return table[None]


def _placeholders(shapes: Shapes, dtype: Any = types.fp32) -> dict[str, Any]:
    return {
        name: mb.placeholder(list(shape), dtype=types.int32 if name in INTEGERS else dtype)
        for name, shape in shapes.items()
    }
