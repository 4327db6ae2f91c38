"""Weights: names, dtypes, shards, variants and pickles."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration

from moddit.checkpoint.sources import Sources
from tests import tiny
from tests.parity.published.base import (
    TEXT_ENCODER,
    TRANSFORMER,
    VAE,
    Published,
    case,
    edit,
    plain,
    rewrite,
    save,
)


@case
def official_alpha_with_the_caption_that_is_left_out(folder: Path) -> Published:
    model = save(folder, "alpha")
    rewrite(model / TRANSFORMER, lambda t: t.update({"caption_projection.y_embedding": torch.randn(120, 32)}))
    return Published(Sources(model), "alpha")


@case
def leftovers_everywhere(folder: Path) -> Published:
    model = save(folder)
    for file in (TRANSFORMER, TEXT_ENCODER, VAE):
        rewrite(
            model / file, lambda t: t.update({"lm_head.weight": torch.randn(3, 3), "a.long.number": torch.arange(3)})
        )
    return plain(model)


@case
def a_whole_encoder_decoder_as_text_encoder(folder: Path) -> Published:
    model = save(folder)
    config = T5Config.from_pretrained(model / "text_encoder", is_encoder_decoder=True, num_decoder_layers=1)
    torch.manual_seed(5)
    whole = T5ForConditionalGeneration(config)
    whole.encoder.load_state_dict(T5EncoderModel.from_pretrained(model / "text_encoder").encoder.state_dict())
    shutil.rmtree(model / "text_encoder")
    whole.save_pretrained(model / "text_encoder")
    return plain(model)


def _add_alias(tensors: dict[str, Tensor], factor: float = 1.0) -> None:
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"] * factor


@case
def a_text_encoder_within_a_larger_model(folder: Path) -> Published:
    model = save(folder)
    rewrite(model / TEXT_ENCODER, lambda t: t.update({f"transformer.{name}": t.pop(name) for name in list(t)}))
    return plain(model)


@case
def float64(folder: Path) -> Published:
    model = save(folder)
    for file in (TRANSFORMER, TEXT_ENCODER, VAE):
        rewrite(model / file, lambda t: t.update({name: value.double() for name, value in t.items()}))
    return plain(model)


@case
def both_names_of_the_embedding(folder: Path) -> Published:
    model = save(folder)
    rewrite(model / TEXT_ENCODER, _add_alias)
    return plain(model)


@case
def only_the_second_name_of_the_embedding(folder: Path) -> Published:
    model = save(folder)
    rewrite(model / TEXT_ENCODER, lambda t: t.update({"encoder.embed_tokens.weight": t.pop("shared.weight")}))
    return plain(model)


@case
def two_embeddings_that_differ(folder: Path) -> Published:
    model = save(folder)
    rewrite(model / TEXT_ENCODER, lambda t: _add_alias(t, 1.5))
    return plain(model)


@case
def an_alias_that_only_the_index_knows(folder: Path) -> Published:
    model = save(folder, sharded=True)
    path = model / "text_encoder/model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["encoder.embed_tokens.weight"] = index["weight_map"]["shared.weight"]
    path.write_text(json.dumps(index))
    return plain(model)


def _shards_and_whole(folder: Path, component: str, kind: str = "sigma") -> Path:
    """Save a component in shards with other weights, and whole: what stays of saving twice."""
    model = save(folder, kind)
    old = tiny.save_pipeline(folder / "old", kind=kind, routed=False, sharded=True, seed=50)
    for file in (old / component).glob("*.safetensors*"):
        shutil.copy(file, model / component)
    return model


@case
def text_encoder_whole_beside_the_shards_of_an_older_one(folder: Path) -> Published:
    return plain(_shards_and_whole(folder, "text_encoder"))


@case
def transformer_whole_beside_the_shards_of_another(folder: Path) -> Published:
    return plain(_shards_and_whole(folder, "transformer"))


@case
def an_index_whose_shards_are_gone(folder: Path) -> Published:
    model = _shards_and_whole(folder, "text_encoder")
    for file in (model / "text_encoder").glob("model-*.safetensors"):
        file.unlink()
    return plain(model)


@case
def null_metadata(folder: Path) -> Published:
    model = save(folder)
    for file in (TRANSFORMER, VAE):
        data = (model / file).read_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.dumps(json.loads(data[8 : 8 + size]) | {"__metadata__": None}).encode()
        (model / file).write_bytes(len(header).to_bytes(8, "little") + header + data[8 + size :])
    # diffusers itself wants to know the format, and reads the pickles beside it otherwise
    return Published(Sources(model), reference=lambda: tiny.make_pipeline())


@case
def vae_of_an_old_diffusers(folder: Path) -> Published:
    model = save(folder)
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if ".attentions.0.to_" in name]:
            new = next(name.replace(f".{key}.", f".{old}.") for key, old in names.items() if f".{key}." in name)
            tensors[new] = tensors.pop(name)

    rewrite(model / VAE, change)
    return plain(model)


@case
def pickles(folder: Path) -> Published:
    model = save(folder)
    for file, name in ((TRANSFORMER, "diffusion_pytorch_model.bin"), (TEXT_ENCODER, "pytorch_model.bin")):
        torch.save(load_file(model / file), (model / file).with_name(name))
        (model / file).unlink()
    return plain(model)


@case
def sharded_pickles_of_t5(folder: Path) -> Published:
    model = save(folder, sharded=True)
    text_encoder = model / "text_encoder"
    index = json.loads((text_encoder / "model.safetensors.index.json").read_text())
    for file in set(index["weight_map"].values()):
        torch.save(load_file(text_encoder / file), text_encoder / f"pytorch_{file}".replace(".safetensors", ".bin"))
        (text_encoder / file).unlink()
    (text_encoder / "model.safetensors.index.json").unlink()
    index["weight_map"] = {
        name: f"pytorch_{file}".replace(".safetensors", ".bin") for name, file in index["weight_map"].items()
    }
    (text_encoder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    return plain(model)


def save_variant(folder: Path, *components: str, sharded: bool = False) -> Path:
    """Save some components as variant "fp16" alone, with other weights than the plain ones that stay elsewhere."""
    model = save(folder)
    half = tiny.make_pipeline(seed=9).to(torch.float16)
    for name in components:
        for file in (model / name).glob("*.safetensors"):
            file.unlink()
        size = tiny.SHARD_SIZE if sharded else "10GB"
        getattr(half, name).save_pretrained(model / name, variant="fp16", max_shard_size=size)
    return model


@case
def nothing_but_a_variant(folder: Path) -> Published:
    return Published(Sources(save_variant(folder, "transformer", "text_encoder", "vae"), variant="fp16"))


@case
def a_variant_of_some_components_in_shards(folder: Path) -> Published:
    return Published(Sources(save_variant(folder, "transformer", "text_encoder", sharded=True), variant="fp16"))


@case
def the_cache_of_the_hub(folder: Path) -> Published:
    model = save(folder, sharded=True)
    (folder / "blobs").mkdir()
    for number, path in enumerate(sorted(model.rglob("*"))):
        if path.is_file():
            blob = folder / "blobs" / str(number)
            path.rename(blob)
            path.symlink_to(blob)
    return plain(model)


@case
def more_in_the_folder_than_a_pipeline_needs(folder: Path) -> Published:
    model = save(folder)
    (model / "README.md").write_text("---\nlicense: openrail++\n---\n")
    (model / "assets").mkdir()
    (model / "transformer" / "diffusion_flax_model.msgpack").write_bytes(b"\x80")
    (model / "text_encoder" / "pytorch_model.bin").write_bytes(b"old and damaged")
    edit(model / "model_index.json", safety_checker=None, _name_or_path="somebody/something")
    return plain(model)
