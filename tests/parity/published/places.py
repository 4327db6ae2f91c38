"""Components from two places."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
from diffusers import DiffusionPipeline, PixArtTransformer2DModel
from safetensors.torch import load_file

from moddit.checkpoint.sources import Sources
from tests import tiny
from tests.parity.published.base import (
    Published,
    case,
    edit,
    save,
)


def _reference(transformer: Path, base: Path, **parts: Any) -> Callable[[], Any]:
    def load() -> Any:
        found = PixArtTransformer2DModel.from_pretrained(transformer)
        return DiffusionPipeline.from_pretrained(base, transformer=found, **parts)

    return load


@case
def a_repository_with_the_transformer_alone(folder: Path) -> Published:
    base, other = save(folder), folder / "fine-tune"
    tiny.make_transformer(seed=8).save_pretrained(other / "transformer")
    return Published(Sources(other, base), reference=_reference(other / "transformer", base))


@case
def the_folder_of_a_transformer(folder: Path) -> Published:
    base, other = save(folder), folder / "fine-tune"
    tiny.make_transformer(seed=8).save_pretrained(other, max_shard_size=tiny.SHARD_SIZE)
    return Published(Sources(other, base), reference=_reference(other, base))


@case
def a_base_without_a_transformer(folder: Path) -> Published:
    base, other = save(folder), folder / "fine-tune"
    shutil.rmtree(base / "transformer")
    edit(base / "model_index.json", transformer=None)
    tiny.make_transformer(seed=8).save_pretrained(other)
    return Published(Sources(other, base), reference=_reference(other, base))


@case
def a_vae_instead_of_the_pipelines(folder: Path) -> Published:
    base, other = save(folder), folder / "vae-of-somebody"
    vae = tiny.make_vae(seed=8)
    vae.save_pretrained(other / "vae")
    return Published(Sources(other, base), reference=lambda: DiffusionPipeline.from_pretrained(base, vae=vae))


@case
def a_transformer_with_its_own_scheduler(folder: Path) -> Published:
    base, other = save(folder), folder / "distilled"
    tiny.make_transformer(seed=8).save_pretrained(other / "transformer")
    tiny.make_scheduler("euler", timestep_spacing="trailing").save_pretrained(other / "scheduler")
    scheduler = diffusers.EulerDiscreteScheduler.from_pretrained(other / "scheduler")
    return Published(Sources(other, base), reference=_reference(other / "transformer", base, scheduler=scheduler))


@case
def one_file_with_the_names_of_diffusers(folder: Path) -> Published:
    base, other = save(folder), folder / "file"
    tiny.make_transformer(seed=8).save_pretrained(other)
    (other / "config.json").unlink()
    file = (other / "diffusion_pytorch_model.safetensors").rename(folder / "fine-tune.safetensors")

    def load() -> Any:
        found = DiffusionPipeline.from_pretrained(base)
        found.transformer.load_state_dict(load_file(file))
        return found

    return Published(Sources(file, base), reference=load)
