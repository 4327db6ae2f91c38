"""A DiT of a named configuration as diffusers saves it, with random weights in float16.

    python -m benchmarks.random_checkpoint CONFIG LAYERS FOLDER

makes the folder.
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DiTPipeline, DiTTransformer2DModel

from moddit.configurations import find_configuration


def save_random(config: str, layers: int, folder: Path) -> None:
    """Write the checkpoint."""
    spec = find_configuration(config, layers)
    fields: dict[str, Any] = asdict(spec.transformer)
    vae = asdict(spec.vae)
    levels = len(spec.vae.block_out_channels)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    DiTPipeline(
        transformer=DiTTransformer2DModel(num_embeds_ada_norm=fields.pop("num_classes"), **fields),
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels, **vae
        ),
        scheduler=DDIMScheduler(clip_sample=False),
    ).save_pretrained(folder)


if __name__ == "__main__":
    save_random(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
