"""Published models by name, for what needs no weights: planning a download, and timing with random numbers.

Source: the configurations beside the weights of PixArt-Sigma-XL-2-1024-MS, PixArt-XL-2-1024-MS and DiT-XL-2-256, as far
as they differ from the defaults of diffusers and transformers. Models of one family for other sizes differ in how
positions are scaled, which costs nothing; any size can be asked of these.
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

_T5_XXL: Final = T5Spec.from_transformers(
    {"d_model": 4096, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu"},
    "T5 v1.1 XXL",
)
_VAE: Final = VAESpec.from_diffusers(  # of Stable Diffusion; SDXL's is the same network with another scaling_factor
    {
        "_class_name": "AutoencoderKL",
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": 4 * ("DownEncoderBlock2D",),
        "up_block_types": 4 * ("UpDecoderBlock2D",),
        "layers_per_block": 2,
    },
    "the VAE of Stable Diffusion",
)
_SIGMA: Final = PixArtSpec.from_diffusers(
    {"_class_name": PixArtSpec.DIFFUSERS_CLASS, "caption_channels": 4096, "use_additional_conditions": False},
    "PixArt-Sigma-XL-2-1024-MS",
)
_DIT: Final = DiTSpec.from_diffusers({"_class_name": DiTSpec.DIFFUSERS_CLASS, "out_channels": 8}, "DiT-XL-2-256")
# The smaller models of the same paper (arXiv 2212.09748, table 1), whose weights nobody published.
_SMALLER: Final = {"s": (12, 6), "b": (12, 12), "l": (24, 16)}  # layers, heads of 64 channels
_SCHEDULE: Final = NoiseSchedule.from_diffusers({"_class_name": "DPMSolverMultistepScheduler"}, "PixArt")
_DDIM: Final = NoiseSchedule.from_diffusers({"_class_name": "DDIMScheduler", "clip_sample": False}, "DiT")


def _dit(transformer: DiTSpec) -> ModelSpec:
    return ModelSpec(transformer, Label(()), _VAE, _DDIM)


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
