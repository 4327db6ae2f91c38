"""LoRA adapters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline, PixArtTransformer2DModel
from diffusers.loaders.peft import PeftAdapterMixin
from peft import LoraConfig

from moddit.checkpoint.sources import LoraSource, Sources
from tests import tiny
from tests.parity.published.base import (
    LORA_SCALE,
    Published,
    case,
    save,
)


class _WithAdapters(PixArtTransformer2DModel, PeftAdapterMixin):
    """diffusers' own code for adapters, which its PixArt does not inherit."""


def save_adapter(folder: Path, name: str, rank: int, **settings: Any) -> Path:
    """Save a random adapter as diffusers does."""
    torch.manual_seed(rank)
    model = _WithAdapters.from_config(tiny.make_transformer().config)
    layers = ["to_q", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_out", "adaln_single.linear"]
    model.add_adapter(LoraConfig(r=rank, target_modules=layers, init_lora_weights=False, **settings), adapter_name=name)
    model.save_lora_adapter(folder / name, adapter_name=name)
    return folder / name / "pytorch_lora_weights.safetensors"


def _with_adapters(base: Path, *loras: LoraSource) -> Callable[[], Any]:
    def load() -> Any:
        model = _WithAdapters.from_pretrained(base / "transformer")
        for lora in loras:
            model.load_lora_adapter(str(lora.path), prefix=None, adapter_name="a", use_safetensors=True)
            model.fuse_lora(lora_scale=lora.scale)
            model.unload_lora()
        plain_model = tiny.make_transformer()
        plain_model.load_state_dict({name.replace(".base_layer", ""): v for name, v in model.state_dict().items()})
        return DiffusionPipeline.from_pretrained(base, transformer=plain_model)

    return load


@case
def an_adapter(folder: Path) -> Published:
    base = save(folder)
    lora = LoraSource(save_adapter(folder, "style", 3, lora_alpha=5), LORA_SCALE)
    return Published(Sources(base, loras=(lora,)), reference=_with_adapters(base, lora))


@case
def two_adapters(folder: Path) -> Published:
    base = save(folder)
    loras = (
        LoraSource(save_adapter(folder, "style", 2)),
        LoraSource(save_adapter(folder, "person", 4, use_rslora=True), -0.5),
    )
    return Published(Sources(base, loras=loras), reference=_with_adapters(base, *loras))
