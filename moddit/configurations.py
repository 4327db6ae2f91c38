"""Published models by name, for what needs no weights: planning a download, and timing with random numbers.

Source: the configurations beside the weights of PixArt-Sigma-XL-2-1024-MS, PixArt-XL-2-1024-MS and DiT-XL-2-256. Models
of one family for other sizes differ in how positions are scaled, which costs nothing; any size can be asked of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from moddit.conditioning import Label, Text
from moddit.errors import MissingError
from moddit.models.dit import DiTSpec
from moddit.models.pixart import PixArtSpec
from moddit.models.t5 import T5Spec
from moddit.models.vae import VAESpec
from moddit.record import quote
from moddit.samplers import NoiseSchedule
from moddit.spec import ModelSpec

_T5_XXL: Final = T5Spec(
    vocab_size=32128,
    d_model=4096,
    d_kv=64,
    d_ff=10240,
    num_layers=24,
    num_heads=64,
    relative_attention_num_buckets=32,
    relative_attention_max_distance=128,
    is_gated=True,
    dense_act_fn="gelu_new",
    layer_norm_epsilon=1e-6,
)
_VAE: Final = VAESpec(
    in_channels=3,
    out_channels=3,
    latent_channels=4,
    block_out_channels=(128, 256, 512, 512),
    layers_per_block=2,
    norm_num_groups=32,
    scaling_factor=0.18215,  # of Stable Diffusion; SDXL's is the same network with 0.13025
    shift_factor=0.0,
    use_quant_conv=True,
    use_post_quant_conv=True,
    mid_block_add_attention=True,
)
# The size XL of both families: latents of four channels and their variance, in patches of two.
_XL: Final[Mapping[str, Any]] = {
    "num_layers": 28,
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": 8,
    "patch_size": 2,
    "attention_bias": True,
}
_SIGMA: Final = PixArtSpec(
    **_XL,
    sample_size=128,
    cross_attention_dim=1152,
    caption_channels=4096,
    interpolation_scale=2.0,
    norm_eps=1e-6,
    use_additional_conditions=False,
)
_DIT: Final = DiTSpec(
    **_XL,
    sample_size=32,
    num_classes=1000,
    norm_eps=1e-5,
)
# The smaller models of the same paper (arXiv 2212.09748, table 1), whose weights nobody published.
_SMALLER: Final = {"s": (12, 6), "b": (12, 12), "l": (24, 16)}  # layers, heads of 64 channels
_SCHEDULE: Final = NoiseSchedule(
    num_train_timesteps=1000,
    beta_schedule="linear",
    beta_start=0.0001,
    beta_end=0.02,
    prediction_type="epsilon",
    timestep_spacing="linspace",
    steps_offset=0,
    set_alpha_to_one=True,
    sampler="dpmpp-2m",
)


def _dit(transformer: DiTSpec) -> ModelSpec:
    return ModelSpec(transformer, Label(()), _VAE, replace(_SCHEDULE, timestep_spacing="leading", sampler="ddim"))


CONFIGURATIONS: Final[Mapping[str, ModelSpec]] = {
    "pixart-sigma-xl": ModelSpec(_SIGMA, Text(_T5_XXL, 300), replace(_VAE, scaling_factor=0.13025), _SCHEDULE),
    "pixart-alpha-xl": ModelSpec(replace(_SIGMA, use_additional_conditions=True), Text(_T5_XXL, 120), _VAE, _SCHEDULE),
    "dit-xl-2": _dit(_DIT),
    **{
        f"dit-{name}-2": _dit(replace(_DIT, num_layers=layers, num_attention_heads=heads, attention_head_dim=64))
        for name, (layers, heads) in _SMALLER.items()
    },
}


def find_configuration(name: str, layers: int | None = None) -> ModelSpec:
    """Find a published model, with fewer layers if asked: each costs the same.

    Raises:
        MissingError: no such name.
    """
    if name not in CONFIGURATIONS:
        raise MissingError(f"[configuration] no configuration {quote(name)}, want one of {', '.join(CONFIGURATIONS)}")
    spec = CONFIGURATIONS[name]
    if layers is None:
        return spec
    transformer: Any = spec.transformer
    return replace(spec, transformer=replace(transformer, num_layers=layers))
