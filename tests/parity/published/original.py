"""Files with PixArt's own names."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor

from moddit.checkpoint.sources import Sources
from tests import tiny
from tests.parity.published.base import (
    Published,
    case,
    edit,
    save,
)

ORIGINAL: Final[Mapping[str, str]] = {  # as diffusers' conversion scripts have them, the other way round
    "pos_embed.proj": "x_embedder.proj",
    "adaln_single.emb.timestep_embedder.linear_1": "t_embedder.mlp.0",
    "adaln_single.emb.timestep_embedder.linear_2": "t_embedder.mlp.2",
    "adaln_single.emb.resolution_embedder.linear_1": "csize_embedder.mlp.0",
    "adaln_single.emb.resolution_embedder.linear_2": "csize_embedder.mlp.2",
    "adaln_single.emb.aspect_ratio_embedder.linear_1": "ar_embedder.mlp.0",
    "adaln_single.emb.aspect_ratio_embedder.linear_2": "ar_embedder.mlp.2",
    "adaln_single.linear": "t_block.1",
    "caption_projection.linear_1": "y_embedder.y_proj.fc1",
    "caption_projection.linear_2": "y_embedder.y_proj.fc2",
    "proj_out": "final_layer.linear",
}
ORIGINAL_BLOCK: Final[Mapping[str, str]] = {
    "attn1.to_out.0": "attn.proj",
    "attn2.to_q": "cross_attn.q_linear",
    "attn2.to_out.0": "cross_attn.proj",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
    "router": "router",
}
ORIGINAL_FUSED: Final[Mapping[str, tuple[str, ...]]] = {
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "cross_attn.kv_linear": ("attn2.to_k", "attn2.to_v"),
}


def original_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give a transformer's tensors the names that PixArt's training code saves."""
    layers = {name.split(".")[1] for name in tensors if name.startswith("transformer_blocks.")}
    found = {"final_layer.scale_shift_table": tensors["scale_shift_table"]}
    found["y_embedder.y_embedding"] = torch.randn(120, tensors["caption_projection.linear_1.weight"].shape[1])
    for new, old in ORIGINAL.items():
        found |= {f"{old}.{kind}": tensors[f"{new}.{kind}"] for kind in _kinds(tensors, new)}
    for layer in layers:
        block, old_block = f"transformer_blocks.{layer}.", f"blocks.{layer}."
        found[old_block + "scale_shift_table"] = tensors[block + "scale_shift_table"]
        for new, old in ORIGINAL_BLOCK.items():
            kinds = _kinds(tensors, block + new)
            found |= {f"{old_block}{old}.{kind}": tensors[f"{block}{new}.{kind}"] for kind in kinds}
        for old, parts in ORIGINAL_FUSED.items():
            for kind in _kinds(tensors, block + parts[0]):
                found[f"{old_block}{old}.{kind}"] = torch.cat([tensors[f"{block}{part}.{kind}"] for part in parts])
    return found


def _kinds(tensors: Mapping[str, Tensor], module: str) -> list[str]:
    return [kind for kind in ("weight", "bias") if f"{module}.{kind}" in tensors]


def _original(folder: Path, kind: str, **changes: Any) -> tuple[Path, dict[str, Tensor], Callable[[], Any]]:
    """Make a pipeline, and other weights for its transformer under PixArt's own names."""
    base = save(folder, kind, transformer=changes)
    model = tiny.make_transformer(kind, seed=8, **changes)

    def load() -> Any:
        return DiffusionPipeline.from_pretrained(base, transformer=model)

    tensors = original_names(model.state_dict())
    tensors["pos_embed"] = model.pos_embed.pos_embed.clone()
    return base, tensors, load


@case
def original_alpha(folder: Path) -> Published:
    base, tensors, load = _original(folder, "alpha")
    del tensors["pos_embed"]
    torch.save({"state_dict": tensors, "epoch": 3, "global_step": 7}, folder / "PixArt-XL.pth")
    return Published(Sources(folder / "PixArt-XL.pth", base), "alpha", load)


@case
def original_alpha_1024(folder: Path) -> Published:
    base, tensors, load = _original(folder, "alpha-micro")
    torch.save({"state_dict": tensors}, folder / "PixArt-XL-1024-MS.pth")
    return Published(Sources(folder / "PixArt-XL-1024-MS.pth", base), "alpha", load)


@case
def original_sigma_as_training_code_keeps_it(folder: Path) -> Published:
    base, tensors, load = _original(folder, "sigma")
    tensors = {
        f"module.{name}": torch.nn.Parameter(value.t()).t() if value.dim() == 2 else torch.nn.Parameter(value)
        for name, value in tensors.items()
    }
    tensors["module.pos_embed"] = tensors["module.pos_embed"].double()
    torch.save({"state_dict": tensors, "state_dict_ema": {}}, folder / "sigma.pth")
    return Published(Sources(folder / "sigma.pth", base), reference=load)


@case
def original_sigma_beside_a_transformer_of_other_heads(folder: Path) -> Published:
    base = save(folder, transformer={"num_attention_heads": 4, "attention_head_dim": 12})
    model = tiny.make_transformer(seed=8, num_attention_heads=2, attention_head_dim=72, cross_attention_dim=144)
    tensors = original_names(model.state_dict()) | {"pos_embed": model.pos_embed.pos_embed}
    torch.save(tensors, folder / "sigma.pth")
    return Published(
        Sources(folder / "sigma.pth", base),
        reference=lambda: DiffusionPipeline.from_pretrained(base, transformer=model),
    )


@case
def original_sigma_as_one_file_of_comfyui(folder: Path) -> Published:
    base, tensors, load = _original(folder, "sigma", interpolation_scale=2)
    tensors = {f"model.diffusion_model.{name}": value.contiguous() for name, value in tensors.items()}
    save_file(tensors, folder / "sigma.safetensors")
    return Published(Sources(folder / "sigma.safetensors", base), reference=load)


@case
def original_sigma_beside_a_base_without_a_transformer(folder: Path) -> Published:
    wide = {"num_attention_heads": 1, "attention_head_dim": 72, "cross_attention_dim": 72, "sample_size": 64}
    base, tensors, _ = _original(folder, "sigma", **wide, interpolation_scale=0.5)
    model = tiny.make_transformer("sigma", seed=8, **wide, interpolation_scale=0.5)
    shutil.rmtree(base / "transformer")
    edit(base / "model_index.json", transformer=None)
    torch.save(tensors, folder / "sigma.pth")
    return Published(
        Sources(folder / "sigma.pth", base),
        reference=lambda: DiffusionPipeline.from_pretrained(base, transformer=model),
    )


@case
def original_sigma_that_does_not_say_its_size(folder: Path) -> Published:
    wide = {"num_attention_heads": 1, "attention_head_dim": 72, "cross_attention_dim": 72}
    base, tensors, load = _original(folder, "sigma", **wide, sample_size=128, interpolation_scale=2)
    del tensors["pos_embed"]
    shutil.copytree(base, folder / "base", ignore=shutil.ignore_patterns("transformer"))
    torch.save(tensors, folder / "sigma.pth")
    return Published(Sources(folder / "sigma.pth", folder / "base", image_size=256), reference=load)
