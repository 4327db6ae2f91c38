"""Specifications are read strictly and survive JSON."""

import inspect
import json
from dataclasses import replace
from typing import Any

import pytest
from diffusers import AutoencoderKL, PixArtTransformer2DModel
from transformers import T5Config

from moddit.conditioning import Label, Text
from moddit.errors import FormatError, InputError, MissingError, ShapeError, UnsupportedError, ValueRangeError
from moddit.models.dit import DiTSpec
from moddit.models.pixart import PixArtSpec
from moddit.models.t5 import T5Spec
from moddit.models.vae import VAESpec
from moddit.record import Origin, decode
from moddit.samplers import NoiseSchedule
from moddit.spec import ModelRecord, ModelSpec
from tests.moddit.specs import ENCODER, LABEL, TEXT

PIXART = {
    "_class_name": "PixArtTransformer2DModel", "num_layers": 28, "num_attention_heads": 16, "attention_head_dim": 72,
    "in_channels": 4, "out_channels": 8, "patch_size": 2, "sample_size": 128, "cross_attention_dim": 1152,
    "caption_channels": 4096, "activation_fn": "gelu-approximate", "norm_type": "ada_norm_single",
}  # fmt: skip
VAE = {
    "_class_name": "AutoencoderKL", "latent_channels": 4, "block_out_channels": [8, 16], "scaling_factor": 0.13025,
    "norm_num_groups": 8,
    "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2,
}  # fmt: skip
DIT = {
    "_class_name": "DiTTransformer2DModel", "num_layers": 28, "num_attention_heads": 16, "attention_head_dim": 72,
    "in_channels": 4, "out_channels": 8, "patch_size": 2, "sample_size": 32, "num_embeds_ada_norm": 1000,
    "activation_fn": "gelu-approximate", "norm_type": "ada_norm_zero", "norm_elementwise_affine": False,
}  # fmt: skip
T5 = {
    "model_type": "t5", "vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24,
    "num_heads": 64, "feed_forward_proj": "gated-gelu",
}  # fmt: skip


CONFIGS: dict[Any, dict[str, Any]] = {PixArtSpec: PIXART, DiTSpec: DIT, T5Spec: T5, VAESpec: VAE}


def read(reader, config):
    return (reader.from_transformers if reader is T5Spec else reader.from_diffusers)(config, "config.json")


def test_pixart_xl():
    spec = PixArtSpec.from_diffusers(PIXART, "config.json")
    assert spec.hidden_size == 1152
    assert spec.tokens(64, 128) == 32 * 64
    assert spec.base_size == 64
    assert (spec.latent_channels, spec.out_channels) == (4, 8)


@pytest.mark.parametrize(("sample_size", "scale", "additional"), [(32, 1.0, False), (64, 1.0, False), (128, 2.0, True)])
def test_what_diffusers_derives_from_the_sample_size(sample_size, scale, additional):
    spec = PixArtSpec.from_diffusers(PIXART | {"sample_size": sample_size}, "config.json")
    assert (spec.interpolation_scale, spec.use_additional_conditions) == (scale, additional)


@pytest.mark.parametrize(("reader", "config"), [(PixArtSpec, PIXART), (DiTSpec, DIT)])
@pytest.mark.parametrize(
    ("reads", "predicts", "latent"), [(9, 8, 4), (9, 4, 4), (4, 8, 4), (9, 9, 9), (9, 18, 9), (33, 16, 16)]
)
def test_what_inpaints_reads_more_than_it_predicts(
    reader: Any, config: dict[str, Any], reads: int, predicts: int, latent: int
) -> None:
    spec = read(reader, config | {"in_channels": reads, "out_channels": predicts})
    assert (spec.latent_channels, spec.inpaints) == (latent, reads > predicts)


@pytest.mark.parametrize(("reader", "config"), CONFIGS.items())
def test_json_round_trip(reader, config):
    spec = read(reader, config)
    assert decode(json.loads(json.dumps(spec.to_json())), reader, Origin("spec", "manifest.json")) == spec
    with pytest.raises(FormatError, match=r"manifest\.json"):
        decode(spec.to_json() | {"surprise": 1}, reader, Origin("spec", "manifest.json"))


@pytest.mark.parametrize(
    ("reader", "config", "change", "message"),
    [
        (PixArtSpec, PIXART, {"_class_name": "FluxTransformer2DModel"}, "_class_name = 'FluxTransformer2DModel'"),
        (PixArtSpec, PIXART, {"norm_type": "layer_norm"}, "norm_type = 'layer_norm'"),
        (PixArtSpec, PIXART, {"cross_attention_dim": 768}, "cross_attention_dim"),
        (PixArtSpec, PIXART, {"attention_type": "gated"}, "attention_type = 'gated'"),
        (DiTSpec, DIT, {"_class_name": "PixArtTransformer2DModel"}, "_class_name = 'PixArtTransformer2DModel'"),
        (DiTSpec, DIT, {"norm_type": "ada_norm_single"}, "norm_type = 'ada_norm_single'"),
        (DiTSpec, DIT, {"norm_elementwise_affine": True}, "norm_elementwise_affine = True"),
        (DiTSpec, DIT, {"activation_fn": "geglu"}, "activation_fn = 'geglu'"),
        (DiTSpec, DIT, {"out_channels": 5}, "out_channels = 5"),
        *((PixArtSpec, PIXART, {"in_channels": reads}, "in_channels") for reads in (5, 10, 11)),
        (PixArtSpec, PIXART, {"in_channels": 2, "out_channels": 1}, "out_channels = 1 is not implemented"),
        (T5Spec, T5, {"feed_forward_proj": "gated-mish"}, "dense_act_fn = 'mish' of feed_forward_proj = 'gated-mish'"),
        (T5Spec, T5, {"dense_act_fn": "quick_gelu"}, "dense_act_fn = 'quick_gelu' .*want one of relu, gelu"),
        (T5Spec, T5, {"feed_forward_proj": "open-gelu"}, "feed_forward_proj = 'open-gelu'"),
        (VAESpec, VAE, {"act_fn": "mish"}, "act_fn = 'mish'"),
        (VAESpec, VAE, {"down_block_types": ["AttnDownEncoderBlock2D"] * 2}, "down_block_types"),
    ],
)
def test_what_is_not_implemented_is_refused(reader, config, change, message):
    with pytest.raises(UnsupportedError, match=message):
        read(reader, config | change)


def test_missing_fields_are_named():
    with pytest.raises(FormatError, match=r"config\.json: num_layers is null, want an integer; export the model again"):
        PixArtSpec.from_diffusers(PIXART | {"num_layers": None}, "config.json")
    with pytest.raises(MissingError, match=r"field 'caption_channels' is missing"):
        PixArtSpec.from_diffusers({key: value for key, value in PIXART.items() if key != "caption_channels"}, "x")


def test_absent_fields_have_the_libraries_defaults():
    transformer: Any = PixArtTransformer2DModel
    defaults = {name: item.default for name, item in inspect.signature(transformer).parameters.items()}
    spec = PixArtSpec.from_diffusers({"_class_name": "PixArtTransformer2DModel", "caption_channels": 8}, "x")
    shared = spec.to_json().keys() & defaults.keys() - {"caption_channels", "interpolation_scale"}
    left_open = {"use_additional_conditions"}
    assert {name: spec.to_json()[name] for name in shared - left_open} == {
        name: defaults[name] for name in shared - left_open
    }
    vae: Any = AutoencoderKL
    defaults = {name: item.default for name, item in inspect.signature(vae).parameters.items()}
    found = VAESpec.from_diffusers({"_class_name": "AutoencoderKL"}, "x").to_json()
    assert {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()} == {
        name: defaults[name] or 0.0 if name == "shift_factor" else defaults[name] for name in found
    }
    text_encoder = T5Config()
    found = T5Spec.from_transformers({"model_type": "t5"}, "x").to_json()
    assert (found.pop("is_gated"), found.pop("dense_act_fn")) == (False, "relu")
    assert found == {name: getattr(text_encoder, name) for name in found}


@pytest.mark.parametrize(
    "change",
    [
        {"feed_forward_proj": "relu"},
        {"feed_forward_proj": "gated-gelu"},
        {"feed_forward_proj": "gated-silu"},
        {"feed_forward_proj": "gelu"},
        {"feed_forward_proj": "relu", "dense_act_fn": "gelu_new"},
        {"feed_forward_proj": "gated-gelu", "dense_act_fn": "relu", "is_gated_act": False},
        {"num_hidden_layers": 5, "num_layers": None},
        {"hidden_size": 24, "num_attention_heads": 3, "head_dim": 8},
    ],
)
def test_t5_as_transformers_reads_it(change):
    names = ("num_layers", "d_model", "num_heads", "d_kv")
    config = {key: value for key, value in (T5 | change).items() if value is not None}
    if "hidden_size" in change:
        config = {key: value for key, value in config.items() if key not in names[1:]}
    wanted = T5Config(**config)
    spec = T5Spec.from_transformers(config, "config.json")
    assert (spec.is_gated, spec.dense_act_fn) == (wanted.is_gated_act, wanted.dense_act_fn)
    assert [getattr(spec, name) for name in names] == [getattr(wanted, name) for name in names]


def test_latent_sizes_are_whole_patches():
    with pytest.raises(ShapeError, match="63x64"):
        PixArtSpec.from_diffusers(PIXART, "config.json").tokens(63, 64)


# Of every field a value of another type, and numbers out of bounds.
REFUSED: dict[Any, dict[str, list[Any]]] = {
    PixArtSpec: {
        "num_layers": [2.0, "x", 0, -1, 10**6, None, True, [28], {}],
        "num_attention_heads": [2.0, 0, 10**9],
        "attention_head_dim": ["72", 0, 10**9],
        "in_channels": [0, 4.5],
        "out_channels": [0, "x", 5],
        "patch_size": [0, [2, 2], 10**4],
        "sample_size": [0, "x", 10**7, 127, [128, 128]],
        "cross_attention_dim": [None, "x", 0],
        "caption_channels": [None, 0, 10**9],
        "interpolation_scale": ["x", 0, -1.0, [1], float("nan"), float("inf")],
        "attention_bias": [1, "true", None],
        "norm_eps": ["x", -1, None, [], float("nan")],
        "use_additional_conditions": [[], 0, "x", {}],
        "norm_type": [[], {}, 5],
        "_class_name": [[], 5, None],
    },
    DiTSpec: {
        "num_layers": [2.0, "x", 0, 10**6, None, True, [28]],
        "num_attention_heads": [0, 10**9],
        "attention_head_dim": ["72", 0],
        "in_channels": [0, 4.5],
        "out_channels": [0, "x", 5],
        "patch_size": [0, [2, 2], 10**4],
        "sample_size": [0, "x", 10**7, 33],
        "num_embeds_ada_norm": [0, -1, None, "x", 10**9, 2.0],
        "attention_bias": [1, None],
        "norm_eps": ["x", -1, None, float("nan")],
        "norm_type": [[], 5],
        "_class_name": [[], None],
    },
    T5Spec: {
        "vocab_size": [0, "x", 10**9, 2.0],
        "d_model": [0, None, 10**9],
        "d_kv": [0, [64]],
        "d_ff": [0, "x"],
        "num_layers": [0, 10**6, True],
        "num_heads": [0, "x", -1],
        "relative_attention_num_buckets": [0, 2, 10**9, "x"],
        "relative_attention_max_distance": [0, 8, 10**9, "x"],
        "layer_norm_epsilon": ["x", -1, None],
        "feed_forward_proj": [5, None, [], "", "x" * 1000],
        "dense_act_fn": [5, [], "\x1b[31m"],
        "is_gated_act": [1, "true", []],
        "model_type": [[], 5, "bert", None],
    },
    VAESpec: {
        "in_channels": [0, 4, "x"],
        "out_channels": [0, 1, 10**9],
        "latent_channels": [0, "x", 10**9, None],
        "block_out_channels": [5, [], [8, 0], ["x", 8], [8] * 100, [8, 9], None],
        "down_block_types": [5, None, [], ["DownEncoderBlock2D", 5]],
        "layers_per_block": [0, 10**9, 2.0, [1, 1]],
        "norm_num_groups": [0, 5, None, "x"],
        "scaling_factor": [0, "x", -1, None, float("inf"), True],
        "shift_factor": ["x", [], float("nan")],
        "use_quant_conv": [1, None, "true"],
        "use_post_quant_conv": [0, []],
        "mid_block_add_attention": [1, "x", {}],
    },
}


@pytest.mark.parametrize(
    ("reader", "key", "value"),
    [(reader, key, value) for reader, keys in REFUSED.items() for key, values in keys.items() for value in values],
)
def test_values_that_no_model_has_are_refused_by_name(reader: Any, key: str, value: Any) -> None:
    config = CONFIGS[reader]
    with pytest.raises(InputError, match=key) as raised:
        read(reader, config | {key: value})
    assert "config.json" in str(raised.value)
    assert str(raised.value).isprintable()
    valid = read(reader, config).to_json()
    if key in valid:
        with pytest.raises(InputError, match=key):
            decode(valid | {key: value}, reader, Origin("spec", "manifest.json"))


def test_a_model_of_resolutions_has_thirds() -> None:
    narrow = PIXART | {"attention_head_dim": 4, "cross_attention_dim": 64}
    with pytest.raises(ShapeError, match="hidden size 64 is not a multiple of 3"):
        PixArtSpec.from_diffusers(narrow, "config.json")
    assert PixArtSpec.from_diffusers(narrow | {"use_additional_conditions": False}, "config.json").hidden_size == 64


def test_the_size_of_the_whole_model_is_bounded() -> None:
    blocks = {key: VAE[key][:1] * 8 for key in ("down_block_types", "up_block_types")}  # type: ignore[index]
    vae = VAE | blocks | {"block_out_channels": [8] * 8}
    schedule = NoiseSchedule.from_diffusers({"_class_name": "EulerDiscreteScheduler"}, "x")
    parts = [read(*item) for item in ((PixArtSpec, PIXART | {"sample_size": 1024}), (T5Spec, T5), (VAESpec, vae))]
    with pytest.raises(ValueRangeError, match="sample_size 1024 is 131072 pixels, want at most 16384"):
        ModelSpec(parts[0], Text(parts[1], 120), parts[2], schedule)
    with pytest.raises(ValueRangeError, match=r"max_sequence_length is 100000, want 1\.\.4096"):
        Text(parts[1], 100_000)


def read_model(value: object) -> ModelSpec:
    return ModelSpec.of(decode(value, ModelRecord, Origin("spec", "manifest.json")), "manifest.json")


@pytest.mark.parametrize("spec", [TEXT, LABEL], ids=["text", "label"])
def test_a_whole_model_survives_json(spec: ModelSpec) -> None:
    assert read_model(json.loads(json.dumps(spec.to_json()))) == spec


def test_what_a_whole_model_has() -> None:
    assert TEXT.components == ("transformer", "vae", "text_encoder", "tokenizer")
    assert LABEL.components == ("transformer", "vae")
    assert (TEXT.text_tokens, LABEL.text_tokens) == (12, 0)
    assert TEXT.tensors(has_routers=True) == {
        "transformer": TEXT.transformer.tensors(has_routers=True),
        "vae": TEXT.vae.tensors(),
        "text_encoder": TEXT.conditioning.tensors()["text_encoder"],
    }
    assert LABEL.tensors(has_routers=False).keys() == {"transformer", "vae"}


def test_a_transformer_has_the_conditioning_that_it_was_made_for() -> None:
    with pytest.raises(UnsupportedError, match="a PixArt is conditioned on a text, got 'label'"):
        replace(TEXT, conditioning=LABEL.conditioning)
    with pytest.raises(UnsupportedError, match="a DiT is conditioned on a label, got 'text'"):
        replace(LABEL, conditioning=TEXT.conditioning)
    with pytest.raises(ShapeError, match="names of 2 classes for 3 classes"):
        replace(LABEL, conditioning=Label(("a", "b")))
    assert replace(LABEL, conditioning=Label(())).conditioning == Label(())
    narrow = replace(ENCODER, d_model=5)
    with pytest.raises(ShapeError, match="caption_channels 6 and text encoder d_model 5 differ"):
        replace(TEXT, conditioning=Text(narrow, 12))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("transformer", {}, "transformer has nothing, want an object with exactly one of"),
        ("transformer", {"flux": {}}, "transformer has 'flux', want an object with exactly one of"),
        ("transformer", LABEL.to_json()["transformer"], "a DiT is conditioned on a label, got 'text'"),
        ("conditioning", {"label": None}, "conditioning has 'label', want an object with exactly one of"),
        ("conditioning", {"label": {"names": [5]}}, r"conditioning.label.names\[0\] is 5, want a text"),
        ("conditioning", {"label": {"names": ["x" * 257]}}, r"names\[0\] is of length 257, want at most 256"),
        ("conditioning", {"label": {"names": [""] * 100_001}}, "names is of length 100001, want at most 100000"),
        (
            "transformer",
            {"pixart": replace(TEXT.transformer, in_channels=5, out_channels=2).to_json()},
            "in_channels 5 .* differ, want in_channels 9",
        ),
        ("vae", replace(TEXT.vae, latent_channels=3).to_json(), "in_channels 4 and VAE latent_channels 3 differ"),
    ],
)
def test_models_that_do_not_fit_together_are_refused(key: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        read_model(TEXT.to_json() | {key: value})
    assert "manifest.json" in str(raised.value)
