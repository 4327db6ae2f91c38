"""Configurations of models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline, PixArtTransformer2DModel

from moddit.checkpoint.sources import Sources
from tests.parity.published.base import (
    CASES,
    Make,
    Published,
    case,
    edit,
    null,
    plain,
    save,
)


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
