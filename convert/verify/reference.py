"""The PyTorch models that a bundle is compared with, built from its specification and given weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from diffusers import AutoencoderKL, PixArtAlphaPipeline, PixArtSigmaPipeline
from diffusers.models.embeddings import PatchEmbed
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from moddit.errors import MissingError
from moddit.routing import RoutingPlan
from moddit.spec import ModelSpec, PixArtSpec, T5Spec, VAESpec
from moddit.tensors import text_encoder_tensors, transformer_tensors, vae_tensors
from torch_moddit.loading import make_transformer
from torch_moddit.model import Record, RoutedPixArt
from torch_moddit.pipeline import ReferencePipeline, make_scheduler

SPECIAL_TOKENS: Final = ("<pad>", "</s>", "<unk>")  # to fill up, to end a text, and for what the vocabulary has not

Values = Callable[[str], NDArray[np.float32]]  # canonical name -> the weight that the bundle computes with


@dataclass(frozen=True)
class Reference:
    """All models of a pipeline, in float32, for inference."""

    spec: ModelSpec
    plan: RoutingPlan | None
    transformer: RoutedPixArt
    text_encoder: Any
    vae: Any

    @classmethod
    def build(cls, spec: ModelSpec, plan: RoutingPlan | None, values: Mapping[str, Values]) -> Reference:
        """Build the models.

        Args:
            spec: of the bundle.
            plan: that the bundle runs.
            values: weights of each component.
        """
        transformer = build_transformer(spec.transformer, plan, values["transformer"])
        text_encoder = build_text_encoder(spec.text_encoder, values["text_encoder"])
        return cls(spec, plan, transformer, text_encoder, build_vae(spec.vae, values["vae"]))

    def run(
        self,
        role: str,
        inputs: Mapping[str, NDArray[Any]],
        record: Record | None = None,
        forced: Sequence[Tensor] | None = None,
    ) -> NDArray[np.float32]:
        """Compute what a function of the bundle computes; see `moddit.graphs` for roles and features.

        `record` is called after each block of the transformer; `forced` are tokens to keep instead of the ranking's.
        """
        features = {name: torch.from_numpy(np.array(array)) for name, array in inputs.items()}
        outputs: Mapping[str, Callable[[Mapping[str, Tensor]], Tensor]] = {
            "text_encoder": self._encode_text,
            "transformer": partial(self._denoise, record=record, forced=forced),
            "vae_decoder": self._decode,
            "vae_encoder": self._encode_image,
        }
        with torch.no_grad():
            return outputs[role](features).numpy()

    def _encode_text(self, features: Mapping[str, Tensor]) -> Tensor:
        states: Tensor = self.text_encoder(
            features["input_ids"].long(), attention_mask=features["text_mask"]
        ).last_hidden_state
        return states

    def _denoise(
        self, features: Mapping[str, Tensor], record: Record | None, forced: Sequence[Tensor] | None
    ) -> Tensor:
        latents, batch = features["latents"], len(features["latents"])
        conditions = None
        if self.spec.transformer.use_additional_conditions:
            conditions = {
                "resolution": features["resolution"].expand(batch, 2),
                "aspect_ratio": features["aspect_ratio"].expand(batch, 1),
            }
        timestep = features["timestep"].expand(batch)
        output = self.transformer(
            latents, timestep, features["text"], features["text_mask"], conditions, record=record, forced=forced
        )
        return output[:, : latents.shape[1]]

    def _decode(self, features: Mapping[str, Tensor]) -> Tensor:
        vae = self.spec.vae
        image: Tensor = self.vae.decode(features["latents"] / vae.scaling_factor + vae.shift_factor).sample
        return image

    def _encode_image(self, features: Mapping[str, Tensor]) -> Tensor:
        moments: Tensor = self.vae.encode(features["image"]).latent_dist.parameters
        return moments

    def pipeline(self, tokenizer: Path) -> ReferencePipeline:
        """Make diffusers' own pipeline around these models; its sampling loop and scheduler are diffusers' too."""
        schedule = self.spec.scheduler
        pad, end, unknown = SPECIAL_TOKENS
        # only the alpha pipeline tells the model the picture's size
        kind = PixArtAlphaPipeline if self.spec.transformer.use_additional_conditions else PixArtSigmaPipeline
        parts = kind(
            tokenizer=PreTrainedTokenizerFast(
                tokenizer_file=str(tokenizer),
                pad_token=pad,
                eos_token=end,
                unk_token=unknown,
                model_max_length=self.spec.max_sequence_length,
            ),
            text_encoder=self.text_encoder,
            vae=self.vae,
            transformer=self.transformer.transformer,
            scheduler=make_scheduler(schedule, schedule.sampler),
        )
        return ReferencePipeline(parts, self.transformer, self.spec.max_sequence_length)


def build_transformer(spec: PixArtSpec, plan: RoutingPlan | None, values: Values) -> RoutedPixArt:
    """Build the transformer, with routers where there is a plan."""
    with torch.device("meta"):
        dense = make_transformer(spec)
        model = RoutedPixArt(dense, plan)
    _load(model.transformer, transformer_tensors(spec, routed=plan is not None), values)
    _restore_buffers(model.transformer, spec)
    return model.eval()


def _restore_buffers(transformer: Any, spec: PixArtSpec) -> None:
    """Compute the position table, which no checkpoint holds, as the model's constructor does."""
    patches = PatchEmbed(
        height=spec.sample_size,
        width=spec.sample_size,
        patch_size=spec.patch_size,
        in_channels=spec.in_channels,
        embed_dim=spec.hidden_size,
        interpolation_scale=spec.interpolation_scale,
    )
    transformer.pos_embed.pos_embed = patches.pos_embed


def build_text_encoder(spec: T5Spec, values: Values) -> Any:
    """Build the T5 encoder."""
    config = T5Config(
        vocab_size=spec.vocab_size,
        d_model=spec.d_model,
        d_kv=spec.d_kv,
        d_ff=spec.d_ff,
        num_layers=spec.num_layers,
        num_heads=spec.num_heads,
        relative_attention_num_buckets=spec.relative_attention_num_buckets,
        relative_attention_max_distance=spec.relative_attention_max_distance,
        feed_forward_proj="gated-gelu" if spec.is_gated else "relu",
        dense_act_fn=spec.dense_act_fn,
        layer_norm_epsilon=spec.layer_norm_epsilon,
        is_encoder_decoder=False,
        use_cache=False,
    )
    with torch.device("meta"):
        model = T5EncoderModel(config)
    _load(model, text_encoder_tensors(spec), values)
    model.tie_weights()
    return model.eval()


def build_vae(spec: VAESpec, values: Values) -> Any:
    """Build the autoencoder."""
    blocks = len(spec.block_out_channels)
    with torch.device("meta"):
        model = AutoencoderKL(
            in_channels=spec.in_channels,
            out_channels=spec.out_channels,
            down_block_types=("DownEncoderBlock2D",) * blocks,
            up_block_types=("UpDecoderBlock2D",) * blocks,
            block_out_channels=spec.block_out_channels,
            layers_per_block=spec.layers_per_block,
            latent_channels=spec.latent_channels,
            norm_num_groups=spec.norm_num_groups,
            scaling_factor=spec.scaling_factor,
            shift_factor=spec.shift_factor or None,
            use_quant_conv=spec.use_quant_conv,
            use_post_quant_conv=spec.use_post_quant_conv,
            mid_block_add_attention=spec.mid_block_add_attention,
        )
    _load(model, vae_tensors(spec), values)
    return model.eval()


def _load(model: nn.Module, names: Mapping[str, Any], values: Values) -> None:
    """Fill a model without weights."""
    state = {name: torch.from_numpy(values(name)) for name in names}
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    left = [name for name in missing if "embed_tokens" not in name and not name.endswith("pos_embed.pos_embed")]
    if left or unexpected:
        raise MissingError(f"[verify] {type(model).__name__}: no weights for {left}, no place for {unexpected}")
    model.requires_grad_(False)
