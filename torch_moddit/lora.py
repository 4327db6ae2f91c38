"""LoRA in fine-tuning: small adapters beside the blocks' matrices, through peft; what they stand beside stays as it is.

Every matrix of attention and MLP in every block has one, of which B starts at zero. Their strength is 1 (alpha is the
rank), so a merged weight is W + B @ A.

Source: Hu et al., arXiv 2106.09685; DiffCR (arXiv 2412.16822) trains routers and keep ratios with LoRA of rank 32.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from moddit.checkpoint.diffcr import MLP_GAIN
from moddit.checkpoint.lora import LORA_PREFIX
from torch_moddit.model import RoutedTransformer

_LAYERS: Final = r"(.*\.)?transformer_blocks\.\d+\.(attn\d+\.to_(q|k|v|out\.0)|ff\.net\.(0\.proj|2))"
_MLP_END: Final = ".ff.net.2"


def add_lora(model: RoutedTransformer, rank: int, seed: int) -> None:
    """Freeze a model's weights, and add adapters that, until they are trained, change nothing."""
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=_LAYERS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        inject_adapter_in_model(config, model.transformer)
    model.requires_grad_(False)
    for layer in _layers(model).values():
        layer.enable_adapters(True)


@contextmanager
def without_lora(model: RoutedTransformer) -> Iterator[None]:
    """Leave the adapters out for a while."""
    layers = _layers(model).values()
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def merged(model: RoutedTransformer) -> RoutedTransformer:
    """Copy a model with its adapters merged into its weights, on the CPU and in float32."""
    copied = copy.deepcopy(model).cpu()
    take_lora(copied)
    return copied


def take_lora(model: RoutedTransformer) -> dict[str, Tensor]:
    """Merge a model's adapters into its weights, in float32, and return them under diffusers' names.

    What they add is told of the dense model, as that of any LoRA: the last layer of each MLP is doubled where there are
    routers (`torch_moddit.model`), and what belongs to it is halved here.
    """
    taken: dict[str, Tensor] = {}
    model.float()
    for name, layer in _layers(model).items():
        gain = MLP_GAIN if model.policy.has_routers and name.endswith(_MLP_END) else 1.0
        ((adapter, up),) = layer.lora_B.items()
        taken[f"{LORA_PREFIX}{name}.lora_A.weight"] = layer.lora_A[adapter].weight.detach().cpu().clone()
        taken[f"{LORA_PREFIX}{name}.lora_B.weight"] = (up.weight.detach() / gain).cpu()
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(model.transformer.get_submodule(parent), child, layer.get_base_layer())
    del model.transformer.peft_config  # or peft takes it for a model with adapters, when it is trained again
    return taken


def _layers(model: RoutedTransformer) -> dict[str, Any]:
    modules: Iterator[tuple[str, nn.Module]] = model.transformer.named_modules()
    return {name: module for name, module in modules if isinstance(module, LoraLayer)}
