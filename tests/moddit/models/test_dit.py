"""DiT: its tensors and its defaults are those of diffusers, and published folders with the old class name are read."""

from __future__ import annotations

import inspect
import json
from typing import Any, Final

import pytest
from diffusers import DiTTransformer2DModel

from moddit.checkpoint.transformer import read_spec
from moddit.conditioning import Label
from moddit.errors import MissingError, UnsupportedError
from moddit.models.dit import DiTSpec
from moddit.models.pixart import PixArtSpec
from moddit.tensors import ROUTER, Role, check_names
from tests import tiny
from tests.moddit.specs import LABEL

# transformer/config.json of facebook/DiT-XL-2-256, as it is published
PUBLISHED: Final[dict[str, Any]] = {
    "_class_name": "Transformer2DModel",
    "_diffusers_version": "0.12.0.dev0",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": 72,
    "cross_attention_dim": None,
    "dropout": 0.0,
    "in_channels": 4,
    "norm_elementwise_affine": False,
    "norm_num_groups": 32,
    "norm_type": "ada_norm_zero",
    "num_attention_heads": 16,
    "num_embeds_ada_norm": 1000,
    "num_layers": 28,
    "num_vector_embeds": None,
    "only_cross_attention": False,
    "out_channels": 8,
    "patch_size": 2,
    "sample_size": 32,
    "upcast_attention": False,
    "use_linear_projection": False,
}


def spec_of(model: Any) -> DiTSpec:
    return DiTSpec.from_diffusers(json.loads(model.to_json_string()), "config.json")


@pytest.mark.parametrize(
    "changes",
    [{}, {"attention_bias": False}, {"num_embeds_ada_norm": 7, "patch_size": 4}, {"out_channels": None}],
    ids=str,
)
def test_tensors_are_those_of_diffusers(changes: dict[str, Any]) -> None:
    model = tiny.make_dit(**changes)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    check_names(shapes, spec_of(model).tensors(has_routers=False), "test", "config.json")


def test_a_routed_one_has_a_router_in_every_block() -> None:
    spec = spec_of(tiny.make_dit())
    routed, dense = spec.tensors(has_routers=True), spec.tensors(has_routers=False)
    more = routed.keys() - dense.keys()
    assert more == {ROUTER.format(layer=layer) for layer in range(3)}
    assert all((routed[name].role, routed[name].shape) == (Role.ROUTER, (1, 48)) for name in more)
    assert dense.keys() <= routed.keys()


def test_absent_fields_have_the_constructors_defaults() -> None:
    constructor: Any = DiTTransformer2DModel
    defaults = {name: item.default for name, item in inspect.signature(constructor).parameters.items()}
    spec = DiTSpec.from_diffusers({"_class_name": "DiTTransformer2DModel"}, "config.json")
    found = spec.to_json()
    assert found.pop("num_classes") == defaults["num_embeds_ada_norm"]
    assert defaults["out_channels"] is None  # as many as it reads
    assert found.pop("out_channels") == defaults["in_channels"]
    assert found == {name: defaults[name] for name in found}


def test_the_class_that_stands_for_none_is_one_more() -> None:
    spec = spec_of(tiny.make_dit(num_embeds_ada_norm=7))
    assert spec.num_classes == 7
    tables = [info.shape for name, info in spec.tensors(has_routers=False).items() if "class_embedder" in name]
    assert tables == [(8, 48)] * 3


def test_a_published_folder_with_the_old_class_name_is_read() -> None:
    spec = read_spec(PUBLISHED, "config.json", {})
    assert spec == DiTSpec(28, 16, 72, 4, 8, 2, 32, 1000, True, 1e-5)
    assert read_spec(PUBLISHED | {"_class_name": "DiTTransformer2DModel"}, "config.json", {}) == spec


def test_the_kind_of_blocks_tells_what_a_model_of_the_old_class_is() -> None:
    pixart = PUBLISHED | {"norm_type": "ada_norm_single", "caption_channels": 8, "cross_attention_dim": 1152}
    assert isinstance(read_spec(pixart, "config.json", {}), PixArtSpec)
    norm_types: list[Any] = ["layer_norm", None, 5, []]
    for norm_type in norm_types:
        with pytest.raises(
            UnsupportedError, match=r"config\.json: norm_type = .*want ada_norm_single or ada_norm_zero"
        ):
            read_spec(PUBLISHED | {"norm_type": norm_type}, "config.json", {})


def test_our_routed_folders_are_read_and_others_are_not() -> None:
    spec = read_spec(PUBLISHED, "config.json", {})
    routed = PUBLISHED | {"_class_name": "RoutedDiTTransformer2DModel", "norm_type": "routed_ada_norm_zero"}
    assert read_spec(routed, "config.json", {}) == spec
    with pytest.raises(UnsupportedError, match="norm_type = 'routed_ada_norm_single'"):
        read_spec(routed | {"norm_type": "routed_ada_norm_single"}, "config.json", {})
    with pytest.raises(
        UnsupportedError, match=r"_class_name = 'FluxTransformer2DModel' .*want .*DiTTransformer2DModel"
    ):
        read_spec(PUBLISHED | {"_class_name": "FluxTransformer2DModel"}, "config.json", {})
    with pytest.raises(MissingError, match="field '_class_name' is missing"):
        read_spec({key: value for key, value in PUBLISHED.items() if key != "_class_name"}, "config.json", {})


def test_what_a_step_is_told() -> None:
    spec = LABEL.transformer
    features = spec.step_features(2, 16, 0)
    assert features.first == {}
    assert features.handed == {"tokens": (2, 16, spec.hidden_size)}
    assert features.always == {"timestep": (1,), "labels": (2,)}
    assert spec.sample_shapes() == {"labels": ()}
    assert spec.size_features(64, 64) == {}
    assert isinstance(LABEL.conditioning, Label)
