"""The PyTorch models that a bundle is compared with, built from its specification and given weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.embeddings import PatchEmbed, Timesteps
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from moddit.conditioning import Text
from moddit.contract import IMAGE, INPUT_IDS, LATENTS, TEXT_ENCODER, TEXT_MASK, TIMESTEP, TOKENIZER
from moddit.errors import MissingError
from moddit.models.t5 import T5Spec
from moddit.models.transformer import TransformerSpec
from moddit.models.vae import VAESpec
from moddit.spec import ModelSpec
from moddit.tensors import Role, Tensors
from moddit.tokens import TokenPolicy
from torch_moddit.architectures import TRANSFORMERS
from torch_moddit.model import OnBlock, RoutedTransformer
from torch_moddit.pipeline import ReferencePipeline

SPECIAL_TOKENS: Final = ("<pad>", "</s>", "<unk>")  # to fill up, to end a text, and for what the vocabulary has not

Values = Callable[[str], NDArray[np.float32]]  # canonical name -> the weight that the bundle computes with


@dataclass(frozen=True)
class Reference:
    """All models of a pipeline, in float32, for inference; in memory are the weights of one layer alone."""

    spec: ModelSpec
    transformer: RoutedTransformer
    components: Mapping[str, Any]  # the other components that have weights

    @classmethod
    def build(cls, spec: ModelSpec, policy: TokenPolicy, values: Mapping[str, Values]) -> Reference:
        """Build the models with the weights of each component."""
        transformer = build_transformer(spec.transformer, policy, values["transformer"])
        components = {"vae": build_vae(spec.vae, values["vae"])}
        if isinstance(spec.conditioning, Text):
            components[TEXT_ENCODER] = build_t5(spec.conditioning.encoder, values[TEXT_ENCODER])
        return cls(spec, transformer, components)

    def run(
        self,
        role: str,
        inputs: Mapping[str, NDArray[Any]],
        on_block: OnBlock | None = None,
        forced: Sequence[Tensor] | None = None,
    ) -> NDArray[np.float32]:
        """Compute what a function of the bundle computes; see `moddit.graphs` for roles and features.

        `on_block` is called after each block of the transformer; `forced` are tokens to keep instead of the ranking's.
        """
        features = {name: torch.from_numpy(np.array(array)) for name, array in inputs.items()}
        outputs: Mapping[str, Callable[[Mapping[str, Tensor]], Tensor]] = {
            TEXT_ENCODER: self._encode_text,
            "transformer": partial(self._denoise, on_block=on_block, forced=forced),
            "vae_decoder": self._decode,
            "vae_encoder": self._encode_image,
        }
        with torch.no_grad():
            return outputs[role](features).numpy()

    def _encode_text(self, features: Mapping[str, Tensor]) -> Tensor:
        states: Tensor = self.components[TEXT_ENCODER](
            features[INPUT_IDS].long(), attention_mask=features[TEXT_MASK]
        ).last_hidden_state
        return states

    def _denoise(
        self, features: Mapping[str, Tensor], on_block: OnBlock | None, forced: Sequence[Tensor] | None
    ) -> Tensor:
        latents, batch = features[LATENTS], len(features[LATENTS])
        shared = self.spec.transformer.size_features(1, 1)
        context = {
            name: value.expand(batch, -1) if name in shared else value
            for name, value in features.items()
            if name not in (LATENTS, TIMESTEP)
        }
        timestep = features[TIMESTEP].expand(batch)
        output = self.transformer(latents, timestep, context, on_block=on_block, forced=forced)
        return output[:, : self.spec.transformer.latent_channels]

    def _decode(self, features: Mapping[str, Tensor]) -> Tensor:
        vae = self.spec.vae
        return self.components["vae"].decode(features[LATENTS] / vae.scaling_factor + vae.shift_factor).sample

    def _encode_image(self, features: Mapping[str, Tensor]) -> Tensor:
        return self.components["vae"].encode(features[IMAGE]).latent_dist.parameters

    def pipeline(self, folder: Path) -> ReferencePipeline:
        """Put a pipeline around these models, with the tokenizer of a bundle where the model has one."""
        return ReferencePipeline(self.spec, self.transformer, {**self.components, **self._tokenizer(folder)})

    def _tokenizer(self, folder: Path) -> dict[str, Any]:
        if not isinstance(self.spec.conditioning, Text):
            return {}
        pad, end, unknown = SPECIAL_TOKENS
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(folder / TOKENIZER),
            pad_token=pad,
            eos_token=end,
            unk_token=unknown,
            model_max_length=self.spec.text_tokens,
        )
        return {"tokenizer": tokenizer}


def build_transformer(spec: TransformerSpec, policy: TokenPolicy, values: Values) -> RoutedTransformer:
    """Build the transformer, with routers where the policy has them."""
    kind = TRANSFORMERS[spec.ARCHITECTURE]
    with torch.device("meta"):
        model = kind(kind.make(spec), policy)
    _load(model.transformer, spec.tensors(has_routers=policy.has_routers), values)
    _restore_buffers(model.transformer, spec)
    _replace_sinusoids(model)
    return model.eval()


def _restore_buffers(transformer: Any, spec: TransformerSpec) -> None:
    """Compute the position table, which no checkpoint holds, as the model's constructor does."""
    patches = PatchEmbed(
        height=spec.sample_size,
        width=spec.sample_size,
        patch_size=spec.patch_size,
        in_channels=spec.in_channels,
        embed_dim=spec.hidden_size,
        interpolation_scale=spec.position_scale,
    )
    transformer.pos_embed.pos_embed = patches.pos_embed


class Sinusoid(nn.Module):
    """diffusers' `Timesteps` with frequencies that are rounded once.

    In float32 torch's exponential function misses the last bit of some, more or fewer on other machines. At t = 999 a
    bit moves the angle by 6e-5, and the output of a DiT by more than may be told from a fault of the exporter.

    Shapes: timesteps (B,) -> (B, channels)
    """

    def __init__(self, diffusers: Timesteps):
        super().__init__()
        half = diffusers.num_channels // 2
        exponents = (
            -math.log(10_000) * torch.arange(half, dtype=torch.float32) / (half - diffusers.downscale_freq_shift)
        )
        self.frequencies = exponents.double().exp().float()
        self.cosines_first = diffusers.flip_sin_to_cos

    def forward(self, timesteps: Tensor) -> Tensor:
        angles = timesteps[:, None].float() * self.frequencies
        waves = (angles.cos(), angles.sin()) if self.cosines_first else (angles.sin(), angles.cos())
        return torch.cat(waves, dim=1)


def _replace_sinusoids(model: nn.Module) -> None:
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Timesteps):
                setattr(parent, name, Sinusoid(child))


def build_t5(spec: T5Spec, values: Values) -> Any:
    """Build the T5 encoder."""
    fields = asdict(spec)
    form = "gated-gelu" if fields.pop("is_gated") else "relu"
    config = T5Config(**fields, feed_forward_proj=form, is_encoder_decoder=False, use_cache=False)
    with torch.device("meta"):
        model = T5EncoderModel(config)
    model.tie_weights()
    _load(model, spec.tensors(), values)
    return model.eval()


def build_vae(spec: VAESpec, values: Values) -> Any:
    """Build the autoencoder."""
    blocks = len(spec.block_out_channels)
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * blocks, "up_block_types": ("UpDecoderBlock2D",) * blocks}
    with torch.device("meta"):
        model = AutoencoderKL(**{**asdict(spec), "shift_factor": spec.shift_factor or None}, **kinds)
    _load(model, spec.tensors(), values)
    return model.eval()


def _load(model: nn.Module, names: Tensors, values: Values) -> None:
    """Give a model without weights its weights: each layer gets its own while it runs, and loses them again.

    Tables that belong to no layer stay, and routers, whose weights are used without running them: both are small.
    """
    found = dict(model.named_parameters())
    left = [name for name in found if name not in names and "embed_tokens" not in name]
    unexpected = [name for name in names if name not in found]
    if left or unexpected:
        raise MissingError(f"[verify] {type(model).__name__}: no weights for {left}, no place for {unexpected}")
    tied = {id(found[name]): name for name in names}  # one parameter may have two places
    for module in model.modules():
        own = {key: tied[id(parameter)] for key, parameter in module.named_parameters(recurse=False)}
        if any(module.children()) or any(names[name].role is Role.ROUTER for name in own.values()):
            _take(module, own, values)
        elif own:
            _lend(module, own, values)


def _take(module: nn.Module, names: Mapping[str, str], values: Values) -> None:
    """Give a module its own parameters, by canonical names."""
    for key, name in names.items():
        setattr(module, key, _fixed(torch.from_numpy(values(name))))


def _lend(module: nn.Module, names: Mapping[str, str], values: Values) -> None:
    """Give a module its own parameters whenever it runs."""
    outlines = {key: _outline(parameter) for key, parameter in module.named_parameters(recurse=False)}

    def drop(*_: Any) -> None:
        for key, outline in outlines.items():
            setattr(module, key, outline)

    drop()
    module.register_forward_pre_hook(lambda *_: _take(module, names, values))
    module.register_forward_hook(drop)


def _outline(parameter: nn.Parameter) -> nn.Parameter:
    """Stand for a parameter, in shape, dtype and device, without memory; whatever is computed with it is NaN."""
    return _fixed(torch.full((), torch.nan).expand(parameter.shape))


def _fixed(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)
