"""Tiny random diffusers pipelines, made in code: the independent reference of every parity test.

The dense parts come from diffusers and transformers alone, and the routed parts are written as plain tensors and JSON,
so that no package of this repository takes part in making what it is tested against.

Example:
    >>> folder = save_pipeline(tmp_path / "model", kind="sigma", routed=True)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import T5Config, T5EncoderModel, T5Tokenizer

KINDS: Final = ("sigma", "alpha", "alpha-micro")
MAX_TOKENS: Final = 16
TEXT_WIDTH: Final = 32
WORDS: Final = ("a", "large", "small", "red", "blue", "green", "circle", "square", "on", "the", "left", "right", "and")
LABELS: Final[Mapping[int, str]] = {0: "tench, Tinca tinca", 1: "goldfish, Carassius auratus", 207: "golden retriever"}
SHARD_SIZE: Final = "30KB"  # of which transformer and text encoder make several, in bfloat16 too
TRANSFORMER_KINDS: Final[Mapping[str, Mapping[str, Any]]] = {
    "sigma": {"sample_size": 16, "interpolation_scale": 2, "use_additional_conditions": False},
    "alpha": {"sample_size": 16, "interpolation_scale": None, "use_additional_conditions": None},
    # diffusers' alpha pipeline adds resolution and aspect ratio if and only if sample_size is 128; generate smaller
    "alpha-micro": {"sample_size": 128, "interpolation_scale": None, "use_additional_conditions": None},
}
INPAINTING: Final[Mapping[str, Any]] = {"in_channels": 9}  # changes of a transformer that inpaints
SCHEDULERS: Final[Mapping[str, Any]] = {
    "dpmpp-2m": DPMSolverMultistepScheduler,
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
}


def make_tokenizer(max_tokens: int = MAX_TOKENS) -> T5Tokenizer:
    """Make a Unigram tokenizer of 13 words and single characters, in T5's own layout (<pad> 0, </s> 1, <unk> 2)."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"▁{word}", -4.0) for word in WORDS]
    pieces += [(",", -4.0)]
    pieces += [(character, -14.0) for character in "▁abcdefghijklmnopqrstuvwxyz"]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=max_tokens)


def make_text_encoder(*, gated: bool = True, seed: int = 0, **changes: Any) -> Any:
    """Make a random T5EncoderModel of 2 layers, with a position bias large enough to matter."""
    torch.manual_seed(seed)
    config = T5Config(
        **{
            "vocab_size": 48,
            "d_model": TEXT_WIDTH,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 2,
            "num_heads": 4,
            "feed_forward_proj": "gated-gelu" if gated else "relu",
            "dropout_rate": 0.0,
            "is_encoder_decoder": False,
            "use_cache": False,
        }
        | changes
    )
    return _finish(T5EncoderModel(config))


def make_transformer(kind: str = "sigma", *, seed: int = 0, **changes: Any) -> Any:
    """Make a random PixArtTransformer2DModel of 3 layers and width 48.

    Args:
        kind: one of KINDS.
        seed: of the weights.
        changes: constructor arguments that replace the kind's own (sample_size, interpolation_scale, num_layers, ...).
    """
    torch.manual_seed(seed)
    arguments: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 24,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 3,
        "cross_attention_dim": 48,
        "patch_size": 2,
        "caption_channels": TEXT_WIDTH,
        **TRANSFORMER_KINDS[kind],
        **changes,
    }
    return _finish(PixArtTransformer2DModel(**arguments))


def make_dit(*, seed: int = 0, **changes: Any) -> Any:
    """Make a random DiTTransformer2DModel of 3 layers, width 48 and the 1000 classes that DiTPipeline presupposes."""
    torch.manual_seed(seed)
    arguments: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 24,
        "in_channels": 4,
        "out_channels": 8,
        "num_layers": 3,
        "sample_size": 16,
        "patch_size": 2,
        **changes,
    }
    model = DiTTransformer2DModel(**arguments)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "norm1.linear" in name or "proj_out_1" in name:  # small at first: make modulation and labels matter
                value.mul_(3)
    return _finish(model)


def make_vae(*, seed: int = 0, **changes: Any) -> Any:
    """Make a random AutoencoderKL that halves each side."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        **{
            "in_channels": 3,
            "out_channels": 3,
            "down_block_types": ("DownEncoderBlock2D",) * 2,
            "up_block_types": ("UpDecoderBlock2D",) * 2,
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "latent_channels": 4,
            "norm_num_groups": 4,
            "sample_size": 32,
            "scaling_factor": 0.5,
        }
        | changes
    )
    return _finish(vae)


def make_scheduler(sampler: str = "dpmpp-2m", **changes: Any) -> Any:
    """Make a scheduler with PixArt's linear betas, a name of SCHEDULERS."""
    arguments: dict[str, Any] = {
        "num_train_timesteps": 1000,
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "beta_schedule": "linear",
    }
    if sampler == "ddim":
        arguments["clip_sample"] = False
    return SCHEDULERS[sampler](**{**arguments, **changes})


def make_pipeline(
    kind: str = "sigma",
    *,
    seed: int = 0,
    transformer: Mapping[str, Any] | None = None,
    text_encoder: Mapping[str, Any] | None = None,
    vae: Mapping[str, Any] | None = None,
    scheduler: Mapping[str, Any] | None = None,
) -> Any:
    """Make a dense pipeline of diffusers' own class; each mapping changes a component's constructor arguments."""
    pipeline: Any = (PixArtSigmaPipeline if kind == "sigma" else PixArtAlphaPipeline)(
        tokenizer=make_tokenizer(),
        text_encoder=make_text_encoder(seed=seed + 1, **(text_encoder or {})),
        vae=make_vae(seed=seed + 2, **(vae or {})),
        transformer=make_transformer(kind, seed=seed, **(transformer or {})),
        scheduler=make_scheduler(**(scheduler or {})),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_pipeline(
    folder: Path,
    *,
    kind: str = "sigma",
    routed: bool = True,
    dtype: str = "float32",
    sharded: bool = False,
    keep_tenths: Sequence[Sequence[int]] | None = None,
    seed: int = 0,
    **components: Mapping[str, Any],
) -> Path:
    """Save a tiny random pipeline as a diffusers folder.

    Args:
        folder: made if it is not there.
        kind: one of KINDS; "alpha-micro" needs an explicit small height and width when it generates.
        routed: add routers, keep ratios and the "diffcr" object; otherwise a plain dense folder.
        dtype: "float32", "float16" or "bfloat16" of all weights; keep ratios stay float32.
        sharded: split transformer and text encoder over several files with an index.
        keep_tenths: [layers][regions]; by default random, of 4 regions.
        seed: of all weights.
        components: as `make_pipeline`: `transformer`, `text_encoder`, `vae`, `scheduler`.

    Returns:
        `folder`
    """
    pipeline = make_pipeline(kind, seed=seed, **components).to(getattr(torch, dtype))
    pipeline.save_pretrained(folder, max_shard_size=SHARD_SIZE if sharded else "10GB")
    if routed:
        layers = pipeline.transformer.config.num_layers
        add_routing(folder, keep_tenths or random_tenths(layers, 4, seed=seed), dtype=dtype, seed=seed)
    return folder


def make_dit_pipeline(*, seed: int = 0, sampler: str = "ddim", **changes: Any) -> Any:
    """Make a dense class-conditional pipeline of diffusers' own class; changes are the transformer's."""
    pipeline: Any = DiTPipeline(
        transformer=make_dit(seed=seed, **changes), vae=make_vae(seed=seed + 2), scheduler=make_scheduler(sampler)
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def save_dit_pipeline(
    folder: Path,
    *,
    routed: bool = True,
    dtype: str = "float32",
    keep_tenths: Sequence[Sequence[int]] | None = None,
    labels: Mapping[int, str] | None = LABELS,
    seed: int = 0,
    **changes: Any,
) -> Path:
    """Save a tiny random class-conditional pipeline as a diffusers folder, laid out as facebook's DiT-XL-2-256.

    Args:
        folder: made if it is not there.
        routed: add routers, keep ratios and the "diffcr" object; otherwise a plain dense folder.
        dtype: of all weights; keep ratios stay float32.
        keep_tenths: [layers][regions]; by default random, of 4 regions.
        labels: names of classes for the pipeline's index, where published models have them; None for none.
        seed: of all weights.
        changes: of the transformer's arguments.

    Returns:
        `folder`
    """
    pipeline = make_dit_pipeline(seed=seed, **changes).to(getattr(torch, dtype))
    pipeline.save_pretrained(folder)
    index = folder / "model_index.json"
    if labels is not None:
        names = {str(number): name for number, name in labels.items()}
        index.write_text(json.dumps({**json.loads(index.read_text()), "id2label": names}, indent=2) + "\n")
    if routed:
        layers = pipeline.transformer.config.num_layers
        add_routing(folder, keep_tenths or random_tenths(layers, 4, seed=seed), dtype=dtype, seed=seed)
    return folder


def random_tenths(layers: int, regions: int, *, seed: int = 0) -> list[list[int]]:
    """Draw keep ratios in tenths, the first layer whole: [layers][regions]."""
    generator = torch.Generator().manual_seed(seed + 77)
    table = torch.randint(2, 10, (layers, regions), generator=generator)
    table[0, 0] = 10
    return [[int(tenths) for tenths in row] for row in table]


def router_weights(layers: int, width: int, *, seed: int = 0) -> dict[str, Tensor]:
    """Draw one router a layer under its canonical name, each (1, width) float32."""
    generator = torch.Generator().manual_seed(seed + 99)
    return {
        f"transformer_blocks.{layer}.router.weight": torch.randn(1, width, generator=generator) * 0.3
        for layer in range(layers)
    }


def add_routing(
    folder: Path, keep_tenths: Sequence[Sequence[int]], *, dtype: str = "float32", seed: int = 0, timesteps: int = 1000
) -> None:
    """Turn a saved dense pipeline into a routed one, by editing its transformer's files."""
    path = folder / "transformer" / "config.json"
    config = json.loads(path.read_text())
    config["diffcr"] = {
        "regions": len(keep_tenths[0]),
        "num_train_timesteps": timesteps,
        "keep_tenths": [list(row) for row in keep_tenths],
    }
    path.write_text(json.dumps(config, indent=2) + "\n")
    width = config["num_attention_heads"] * config["attention_head_dim"]
    tensors = router_weights(len(keep_tenths), width, seed=seed)
    tensors = {name: value.to(getattr(torch, dtype)) for name, value in tensors.items()}
    for layer, row in enumerate(keep_tenths):
        # off the bin by less than half a bin, as learned ratios are
        learned = torch.tensor(row, dtype=torch.float32) / 10 + 0.02
        tensors[f"transformer_blocks.{layer}.keep_ratio"] = learned.clamp(0.1, 1.0)
    add_tensors(folder / "transformer", tensors)


def add_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Add tensors to the last weight file of a component, and to its index if it has one."""
    file = sorted(folder.glob("*.safetensors"))[-1]
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    save_file({**load_file(file), **tensors}, file, metadata=metadata)
    for index in folder.glob("*.index.json"):
        table = json.loads(index.read_text())
        table["weight_map"].update(dict.fromkeys(tensors, file.name))
        table["metadata"]["total_size"] += sum(value.numel() * value.element_size() for value in tensors.values())
        index.write_text(json.dumps(table, indent=2) + "\n")


@torch.no_grad()
def _finish(module: Any) -> Any:
    """Switch to evaluation, and make norms, modulation tables and position biases large enough for errors to show."""
    for name, value in module.named_parameters():
        if "norm" in name and name.endswith("weight"):
            value.add_(0.2 * torch.randn_like(value))
        elif "norm" in name and name.endswith("bias"):
            value.add_(0.1 * torch.randn_like(value))
        elif name.endswith("scale_shift_table"):
            value.copy_(0.5 * torch.randn_like(value))
        elif "relative_attention_bias" in name:
            value.copy_(torch.randn_like(value))
    return module.eval()
