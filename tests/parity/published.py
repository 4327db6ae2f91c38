"""Checkpoints as people publish and keep them, tiny and random: what diffusers and transformers load, by their rules.

Each case changes a folder that the libraries saved into one of the kinds that exist, says what a user would type for
it, and loads the reference with diffusers alone.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import diffusers
import torch
from diffusers import DiffusionPipeline, PixArtTransformer2DModel
from diffusers.loaders.peft import PeftAdapterMixin
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import T5Config, T5EncoderModel, T5ForConditionalGeneration

from moddit.checkpoint.sources import LoraSource, Sources
from tests import tiny
from tests.moddit.checkpoint.test_tokenizer import write_model

TRANSFORMER: Final = "transformer/diffusion_pytorch_model.safetensors"
TEXT_ENCODER: Final = "text_encoder/model.safetensors"
VAE: Final = "vae/diffusion_pytorch_model.safetensors"
LORA_SCALE: Final = 0.7


@dataclass
class Published:
    """A checkpoint, and how its reference is loaded."""

    sources: Sources
    kind: str = "sigma"
    reference: Callable[[], Any] | None = None  # by default the pipeline's folder

    @property
    def options(self) -> list[str]:
        """What a user types for it."""
        found = ["--hf-path", str(self.sources.main)]
        if self.sources.base is not None:
            found += ["--base", str(self.sources.base)]
        if self.sources.variant is not None:
            found += ["--variant", self.sources.variant]
        for lora in self.sources.loras:
            found += ["--lora", str(lora)]
        if self.sources.image_size is not None:
            found += ["--image-size", str(self.sources.image_size)]
        return found

    def load(self) -> Any:
        """Load the pipeline that draws what this checkpoint should draw."""
        if self.reference is not None:
            return self.reference()
        return DiffusionPipeline.from_pretrained(self.sources.main, variant=self.sources.variant)


Make = Callable[[Path], Published]
CASES: Final[dict[str, Make]] = {}


def case(make: Make) -> Make:
    """Name a case after its function."""
    CASES[make.__name__] = make
    return make


def save(folder: Path, kind: str = "sigma", **components: Any) -> Path:
    return tiny.save_pipeline(folder / "model", kind=kind, routed=False, **components)


def plain(folder: Path) -> Published:
    return Published(Sources(folder))


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: item for key, item in value.items() if item is not None}))


def null(path: Path, *keys: str) -> None:
    """Set keys of a JSON file to null."""
    path.write_text(json.dumps(json.loads(path.read_text()) | dict.fromkeys(keys)))


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of a file."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


# Configurations.


@case
def untouched(folder: Path) -> Published:
    return plain(save(folder))


@case
def sharded_in_bfloat16(folder: Path) -> Published:
    return plain(save(folder, sharded=True, dtype="bfloat16"))


@case
def class_of_official_sigma_uploads(folder: Path) -> Published:
    model = save(folder)
    edit(
        model / "transformer/config.json",
        _class_name="Transformer2DModel",
        double_self_attention=False,
        only_cross_attention=False,
        num_vector_embeds=0,
        use_linear_projection=False,
    )
    return plain(model)


@case
def sigma_1024_that_leaves_its_conditions_open(folder: Path) -> Published:
    model = save(folder, transformer={"sample_size": 128, "interpolation_scale": 2})
    edit(model / "transformer/config.json", use_additional_conditions=None)

    def load() -> Any:  # without this argument diffusers draws random conditions, and fails
        transformer = PixArtTransformer2DModel.from_pretrained(model / "transformer", use_additional_conditions=False)
        return DiffusionPipeline.from_pretrained(model, transformer=transformer)

    return Published(Sources(model), reference=load)


@case
def alpha_1024_that_leaves_its_conditions_open(folder: Path) -> Published:
    model = save(folder, "alpha-micro")
    edit(model / "transformer/config.json", use_additional_conditions=None)
    return Published(Sources(model), "alpha")


@case
def keys_that_stand_for_their_defaults(folder: Path) -> Published:
    model = save(folder)
    edit(
        model / "transformer/config.json",
        norm_eps=3.0,
        interpolation_scale=7,
        _use_default_values=["norm_eps", "interpolation_scale"],
    )
    return plain(model)


@case
def absent_keys(folder: Path) -> Published:
    model = save(folder)
    absent = ("attention_bias", "norm_eps", "in_channels", "out_channels", "patch_size", "norm_num_groups", "dropout")
    edit(model / "transformer/config.json", **dict.fromkeys(absent))
    edit(
        model / "vae/config.json",
        **dict.fromkeys(
            ("in_channels", "out_channels", "layers_per_block", "latent_channels", "act_fn", "shift_factor")
        ),
    )
    return plain(model)


@case
def dropout_and_group_norms_that_do_nothing(folder: Path) -> Published:
    model = save(folder)
    edit(model / "transformer/config.json", dropout=0.1, num_embeds_ada_norm=500)
    null(model / "transformer/config.json", "norm_num_groups", "attention_type")
    return plain(model)


@case
def a_vae_that_shifts(folder: Path) -> Published:
    model = save(folder)
    edit(model / "vae/config.json", shift_factor=0.4, latents_mean=[1.0] * 4, latents_std=[2.0] * 4)
    return plain(model)


@case
def another_name_of_silu(folder: Path) -> Published:
    model = save(folder)
    edit(model / "vae/config.json", act_fn="swish")
    return plain(model)


def with_activation(**changes: Any) -> Make:
    def make(folder: Path) -> Published:
        gated = "gated" in changes["feed_forward_proj"] or changes.get("is_gated_act") is True
        model = save(folder, text_encoder={"gated": gated})
        path = model / "text_encoder/config.json"
        edit(path, **{"dense_act_fn": None, "is_gated_act": None} | changes)
        return plain(model)

    return make


CASES["t5 with dense_act_fn relu"] = with_activation(feed_forward_proj="gated-gelu", dense_act_fn="relu")
CASES["t5 with gated-silu"] = with_activation(feed_forward_proj="gated-silu")
CASES["t5 with exact gelu"] = with_activation(feed_forward_proj="gelu")
CASES["t5 with gelu by tanh, not gated"] = with_activation(feed_forward_proj="relu", dense_act_fn="gelu_new")
CASES["t5 gated by a flag"] = with_activation(feed_forward_proj="relu", is_gated_act=True)


@case
def t5_that_does_not_say_it_is_one(folder: Path) -> Published:
    model = save(folder)
    edit(model / "text_encoder/config.json", model_type=None, architectures=None)
    return plain(model)


@case
def classes_that_only_the_index_names(folder: Path) -> Published:
    model = save(folder)
    edit(model / "transformer/config.json", _class_name="PixArtTransformerOfSomebody")
    edit(model / "vae/config.json", _class_name=None)
    return plain(model)


# Schedulers.


@case
def scheduler_with_a_fixed_variance(folder: Path) -> Published:
    model = save(folder)
    edit(model / "scheduler/scheduler_config.json", variance_type="fixed_small")
    return plain(model)


@case
def scheduler_with_keys_of_other_classes(folder: Path) -> Published:
    model = save(folder)
    edit(
        model / "scheduler/scheduler_config.json",
        skip_prk_steps=True,
        clip_sample=True,
        interpolation_type="log_linear",
        of_the_future=[1],
    )
    return plain(model)


@case
def scheduler_saved_as_another_class(folder: Path) -> Published:
    model = save(folder, scheduler={"sampler": "euler"})
    edit(model / "model_index.json", scheduler=["diffusers", "DPMSolverMultistepScheduler"])
    return plain(model)


@case
def scheduler_that_was_a_unipc(folder: Path) -> Published:
    model = save(folder)
    edit(
        model / "scheduler/scheduler_config.json",
        _class_name="UniPCMultistepScheduler",
        solver_type="bh2",
        predict_x0=True,
        disable_corrector=[],
    )
    edit(model / "model_index.json", scheduler=["diffusers", "DPMSolverMultistepScheduler"])
    return plain(model)


# Weights.


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


def _save_variant(folder: Path, *components: str, sharded: bool = False) -> Path:
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
    return Published(Sources(_save_variant(folder, "transformer", "text_encoder", "vae"), variant="fp16"))


@case
def a_variant_of_some_components_in_shards(folder: Path) -> Published:
    return Published(Sources(_save_variant(folder, "transformer", "text_encoder", sharded=True), variant="fp16"))


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


# Tokenizers.


def _with_vocabulary(folder: Path, **settings: Any) -> Path:
    return save(folder, text_encoder={"vocab_size": 180}, **settings)


@case
def tokenizer_of_2024(folder: Path) -> Published:
    model = _with_vocabulary(folder)
    shutil.rmtree(model / "tokenizer")
    write_model(model / "tokenizer")
    extra = [f"<extra_id_{index}>" for index in range(100)]
    files = {
        "tokenizer_config.json": {"tokenizer_class": "T5Tokenizer", "model_max_length": 120, "legacy": True},
        "special_tokens_map.json": {"additional_special_tokens": extra, "eos_token": {"content": "</s>"}},
        "added_tokens.json": {name: 33 + index for index, name in enumerate(reversed(extra))},
    }
    for name, value in files.items():
        (model / "tokenizer" / name).write_text(json.dumps(value))
    return plain(model)


@case
def tokens_declared_in_the_configuration(folder: Path) -> Published:
    model = _with_vocabulary(folder)
    decoder = {"60": {"content": "xylophone", "special": False, "normalized": False, "lstrip": True}}
    edit(model / "tokenizer/tokenizer_config.json", added_tokens_decoder=decoder)
    return plain(model)


@case
def special_tokens_of_a_fine_tune(folder: Path) -> Published:
    model = _with_vocabulary(folder)
    edit(model / "tokenizer/tokenizer_config.json", additional_special_tokens=["<left>", "xylo"])
    return plain(model)


@case
def extra_tokens_of_a_fine_tune(folder: Path) -> Published:
    model = _with_vocabulary(folder)
    edit(model / "tokenizer/tokenizer_config.json", extra_special_tokens=["red"])
    return plain(model)


@case
def tokenizer_json_of_another_program(folder: Path) -> Published:
    model = save(folder)
    path = model / "tokenizer/tokenizer.json"
    edit(path, pre_tokenizer={"type": "Whitespace"}, truncation=None)
    null(path, "post_processor")
    edit(model / "model_index.json", tokenizer=["transformers", "T5TokenizerFast"])
    return plain(model)


@case
def a_tokenizer_shorter_than_the_pipeline(folder: Path) -> Published:
    model = save(folder)  # model_max_length 16, and the prompt has more
    edit(model / "tokenizer/tokenizer_config.json", model_max_length=5)
    return plain(model)


# From two places.


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


# PixArt's own names.

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


# Adapters.


class _WithAdapters(PixArtTransformer2DModel, PeftAdapterMixin):
    """diffusers' own code for adapters, which its PixArt does not inherit."""


def _adapter(folder: Path, name: str, rank: int, **settings: Any) -> Path:
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
    lora = LoraSource(_adapter(folder, "style", 3, lora_alpha=5), LORA_SCALE)
    return Published(Sources(base, loras=(lora,)), reference=_with_adapters(base, lora))


@case
def two_adapters(folder: Path) -> Published:
    base = save(folder)
    loras = (LoraSource(_adapter(folder, "style", 2)), LoraSource(_adapter(folder, "person", 4, use_rslora=True), -0.5))
    return Published(Sources(base, loras=loras), reference=_with_adapters(base, *loras))
