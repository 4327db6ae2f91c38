"""LoRA files of every naming, merged, against what diffusers and peft fuse into the same model.

diffusers mixes its LoRA loader into many models, but not into PixArt's, which peft wraps. Here the mixin is added to
it, so that diffusers' own code reads and fuses the files too.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from diffusers import PixArtTransformer2DModel
from diffusers.loaders import PeftAdapterMixin, SanaLoraLoaderMixin, StableDiffusionLoraLoaderMixin
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_kohya, convert_state_dict_to_peft
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from moddit.checkpoint.description import describe_transformer
from moddit.checkpoint.lora import read_lora
from moddit.checkpoint.sources import LoraSource, Sources
from moddit.checkpoint.stored import StoredTensor
from moddit.checkpoint.weights import DIFFUSERS, read_weights
from moddit.models.pixart import PixArtSpec
from moddit.routing import RoutingPlan
from moddit.tokens import TokenPolicy
from tests import tiny
from torch_moddit.export import save_checkpoint
from torch_moddit.loading import load_checkpoint
from torch_moddit.pixart import RoutedPixArt

pytestmark = pytest.mark.without_mlx

SCALE: Final = 0.7
# Weights and additions are below 1, and both sides compute B @ A over ranks of 2 to 4 in float32, but scale another
# factor: a unit in the last place, 6e-8 at most in what is tested here. A wrong alpha is 1e-3 or more.
TOLERANCE: Final = 1e-6
OUTPUT_TOLERANCE: Final = 1e-5  # of three blocks in float32, on outputs of the order of 1
# As in train_scripts/train_pixart_lora_hf.py of PixArt's authors; "proj" is the patches' convolution too.
LAYERS: Final = [
    *("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"),
    *("proj", "proj_out", "linear", "linear_1", "linear_2"),
]
ATTENTION: Final = ["to_q", "to_k", "to_v", "to_out.0"]
MIXED: Final[dict[str, Any]] = {  # peft's patterns, by exact names, ends of names and regular expressions
    "rank_pattern": {"attn1.to_q": 2, "linear": 3, r"transformer_blocks\.[01]\.ff\.net\.2": 3},
    "alpha_pattern": {"transformer_blocks.0.attn1.to_q": 5, r".*attn2\.to_k": 3, "to_v": 1.5, "proj": 1, "net.2": 7},
}


# peft takes the bias of B for a matrix that was not gathered.
PEFT_BIAS_WARNING: Final = "ignore:Adapter 'default'.* LoRA tensor.* have invalid shape"


class AdaptedPixArt(PixArtTransformer2DModel, PeftAdapterMixin):
    """PixArt with diffusers' LoRA loader."""


def make_model(kind: str = "sigma") -> Any:
    dense = tiny.make_transformer(kind)
    model: Any = AdaptedPixArt.from_config(dense.config)
    model.load_state_dict(dense.state_dict())
    return model.eval()


def make_config(**changes: Any) -> LoraConfig:
    """Configure adapters whose A and B are both random, as they are after training."""
    torch.manual_seed(11)
    return LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": LAYERS, "init_lora_weights": False, **changes})


def adapt(**changes: Any) -> Any:
    model = make_model()
    model.add_adapter(make_config(**changes))
    return model


def merge(path: Path, folder: Path, kind: str = "sigma", scale: float = SCALE) -> dict[str, StoredTensor]:
    """Merge a LoRA of ours into a saved dense model."""
    model = tiny.make_transformer(kind)
    model.save_pretrained(folder / "dense")
    tensors = read_weights(folder / "dense", DIFFUSERS).tensors
    lora = read_lora(path, scale, wanted(model))
    assert lora.additions
    return lora.merge(tensors)


def wanted(model: Any) -> Any:
    spec = PixArtSpec.from_diffusers({"_class_name": "PixArtTransformer2DModel", **model.config}, "test")
    return spec.tensors(has_routers=False)


def fuse(source: Any, kind: str = "sigma", **options: Any) -> dict[str, Tensor]:
    """Load an adapter (a file or tensors) into a dense model as diffusers does, and return the fused weights."""
    model = make_model(kind)
    model.load_lora_adapter(source, use_safetensors=True, **options)
    return fused(model)


def fused(model: Any, scale: float = SCALE) -> dict[str, Tensor]:
    model.fuse_lora(lora_scale=scale)
    model.unload_lora()
    return dict(model.state_dict())


def check(found: Mapping[str, StoredTensor], reference: Mapping[str, Tensor], kind: str = "sigma") -> None:
    """Compare every tensor, and see that the LoRA changed some."""
    assert found.keys() == reference.keys()
    dense = tiny.make_transformer(kind).state_dict()
    assert sum(not torch.equal(dense[name], value) for name, value in reference.items()) > 20
    errors = {name: np.abs(tensor.read() - reference[name].numpy()).max() for name, tensor in found.items()}
    print(f"largest error {max(errors.values()):.1e}")
    assert max(errors.values()) < TOLERANCE


def save(tensors: Mapping[str, Tensor], path: Path) -> Path:
    save_file({name: value.contiguous() for name, value in tensors.items()}, path)
    return path


@pytest.mark.filterwarnings(PEFT_BIAS_WARNING)
@pytest.mark.parametrize(
    "changes",
    [{}, MIXED, {"use_rslora": True}, {"use_rslora": True, **MIXED}, {"lora_bias": True, **MIXED}],
    ids=["plain", "mixed", "rslora", "rslora-mixed", "bias"],
)
class TestPeftAndDiffusers:
    """Files that the libraries write themselves."""

    def test_adapter_saved_by_the_model(self, tmp_path: Path, changes: dict[str, Any]) -> None:
        adapt(**changes).save_lora_adapter(tmp_path / "lora")
        check(merge(tmp_path / "lora", tmp_path), fuse(tmp_path / "lora", prefix=None))

    def test_adapter_saved_by_a_pipeline(self, tmp_path: Path, changes: dict[str, Any]) -> None:
        model = adapt(**changes)
        config = {key: list(value) if isinstance(value, set) else value for key, value in _fields(model).items()}
        SanaLoraLoaderMixin.save_lora_weights(
            tmp_path / "lora",
            transformer_lora_layers=get_peft_model_state_dict(model),
            transformer_lora_adapter_metadata=config,
        )
        check(merge(tmp_path / "lora", tmp_path), fuse(tmp_path / "lora"))

    def test_adapter_saved_by_peft(self, tmp_path: Path, changes: dict[str, Any]) -> None:
        get_peft_model(tiny.make_transformer(), make_config(**changes)).save_pretrained(str(tmp_path / "lora"))
        model: Any = PeftModel.from_pretrained(tiny.make_transformer(), tmp_path / "lora")
        for module in model.modules():
            if isinstance(module, LoraLayer):
                module.scale_layer(SCALE)
        reference = model.merge_and_unload().state_dict()
        check(merge(tmp_path / "lora", tmp_path), reference)
        check(merge(tmp_path / "lora/adapter_model.safetensors", tmp_path), reference)


def _fields(model: Any) -> dict[str, Any]:
    fields: dict[str, Any] = model.peft_config["default"].to_dict()
    return fields


def test_additional_conditions(tmp_path: Path) -> None:
    model = make_model("alpha-micro")
    model.add_adapter(make_config())
    model.save_lora_adapter(tmp_path / "lora")
    found = merge(tmp_path / "lora", tmp_path, "alpha-micro")
    check(found, fuse(tmp_path / "lora", "alpha-micro", prefix=None), "alpha-micro")


def test_script_of_pixarts_authors(tmp_path: Path) -> None:
    """It saves peft's names under "unet", without any alpha."""
    model = get_peft_model(tiny.make_transformer(), make_config(**MIXED))
    StableDiffusionLoraLoaderMixin.save_lora_weights(
        tmp_path / "lora", unet_lora_layers=get_peft_model_state_dict(model)
    )
    check(merge(tmp_path / "lora", tmp_path), fuse(tmp_path / "lora", prefix="unet.base_model.model"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {name: value.to(dtype) for name, value in get_peft_model_state_dict(adapt(**MIXED)).items()}
    path = save(tensors, tmp_path / "x.safetensors")
    check(merge(path, tmp_path), fuse(path, prefix=None))


class TestKohya:
    def test_alpha_that_is_the_rank(self, tmp_path: Path) -> None:
        """diffusers' own conversion, whose alphas are the ranks as int64."""
        tensors = get_peft_model_state_dict(adapt(**MIXED))
        kohya = convert_state_dict_to_kohya({f"unet.{name}": value for name, value in tensors.items()})
        assert kohya["lora_unet_transformer_blocks_0_attn1_to_q.alpha"].dtype == torch.int64
        path = save(kohya, tmp_path / "x.safetensors")
        check(merge(path, tmp_path), fuse(tensors, prefix=None))

    @pytest.mark.parametrize("prefix", ["lora_transformer_", "lora_unet_", "lycoris_"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
    def test_alpha_of_each_layer(self, tmp_path: Path, prefix: str, dtype: torch.dtype) -> None:
        tensors = {f"transformer.{key}": value for key, value in get_peft_model_state_dict(adapt(**MIXED)).items()}
        layers = sorted({name.partition(".lora_")[0] for name in tensors})
        alphas = {f"{layer}.alpha": 0.5 * (index % 7 + 1) for index, layer in enumerate(layers)}
        kohya = {_kohya(name, prefix): value for name, value in tensors.items()}
        kohya |= {_kohya(name, prefix): torch.tensor(value, dtype=dtype) for name, value in alphas.items()}
        path = save(kohya, tmp_path / "x.safetensors")
        check(merge(path, tmp_path), fuse(tensors, network_alphas=alphas))


def _kohya(name: str, prefix: str) -> str:
    layer, _, piece = name.removeprefix("transformer.").partition(".lora_")
    if not piece:
        return prefix + layer.removesuffix(".alpha").replace(".", "_") + ".alpha"
    return f"{prefix}{layer.replace('.', '_')}.lora_{ {'A': 'down', 'B': 'up'}[piece[0]] }.weight"


class TestOldDiffusers:
    def test_lora_down(self, tmp_path: Path) -> None:
        tensors = get_peft_model_state_dict(adapt(target_modules=ATTENTION))
        old = convert_state_dict_to_diffusers(tensors)
        assert "transformer_blocks.0.attn1.to_out.0.lora.down.weight" in old
        path = save(old, tmp_path / "x.safetensors")
        check(merge(path, tmp_path), fuse(path, prefix=None))

    def test_attention_processors(self, tmp_path: Path) -> None:
        tensors = get_peft_model_state_dict(adapt(target_modules=ATTENTION))
        path = save({_processor(name): value for name, value in tensors.items()}, tmp_path / "x.safetensors")
        check(merge(path, tmp_path), fuse(path, prefix=None))

    def test_lora_linear_layer(self, tmp_path: Path) -> None:
        tensors = get_peft_model_state_dict(adapt())
        old = {_linear_layer(name): value for name, value in tensors.items()}
        path = save(old, tmp_path / "x.safetensors")
        check(merge(path, tmp_path), fuse(convert_state_dict_to_peft(old), prefix=None))


def _processor(name: str) -> str:
    layer, _, piece = name.partition(".lora_")
    attention, _, matrix = layer.removesuffix(".0").rpartition(".")
    return f"{attention}.processor.{matrix}_lora.{ {'A': 'down', 'B': 'up'}[piece[0]] }.weight"


def _linear_layer(name: str) -> str:
    return name.replace(".lora_A.", ".lora_linear_layer.down.").replace(".lora_B.", ".lora_linear_layer.up.")


PIXART: Final[Mapping[str, tuple[str, ...]]] = {  # the original's layers to diffusers'
    "blocks.1.attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "blocks.1.attn.proj": ("attn1.to_out.0",),
    "blocks.1.cross_attn.q_linear": ("attn2.to_q",),
    "blocks.1.cross_attn.kv_linear": ("attn2.to_k", "attn2.to_v"),
    "blocks.1.cross_attn.proj": ("attn2.to_out.0",),
    "blocks.1.mlp.fc1": ("ff.net.0.proj",),
    "blocks.1.mlp.fc2": ("ff.net.2",),
    "x_embedder.proj": ("pos_embed.proj",),
    "y_embedder.y_proj.fc1": ("caption_projection.linear_1",),
    "y_embedder.y_proj.fc2": ("caption_projection.linear_2",),
    "t_embedder.mlp.0": ("adaln_single.emb.timestep_embedder.linear_1",),
    "t_embedder.mlp.2": ("adaln_single.emb.timestep_embedder.linear_2",),
    "t_block.1": ("adaln_single.linear",),
    "final_layer.linear": ("proj_out",),
    "csize_embedder.mlp.0": ("adaln_single.emb.resolution_embedder.linear_1",),
    "csize_embedder.mlp.2": ("adaln_single.emb.resolution_embedder.linear_2",),
    "ar_embedder.mlp.0": ("adaln_single.emb.aspect_ratio_embedder.linear_1",),
    "ar_embedder.mlp.2": ("adaln_single.emb.aspect_ratio_embedder.linear_2",),
}


@pytest.mark.parametrize("write", [lambda layer: layer, lambda layer: f"lora_unet_{layer.replace('.', '_')}"])
def test_names_of_pixarts_own_code(tmp_path: Path, write: Callable[[str], str]) -> None:
    """A stack of matrices is one adapter: A is shared, the rows of B belong to one matrix after the other."""
    rng = torch.Generator().manual_seed(3)
    shapes = {name: info.shape for name, info in wanted(tiny.make_transformer("alpha-micro")).items()}
    tensors: dict[str, Tensor] = {}
    peft: dict[str, Tensor] = {}
    for old, names in PIXART.items():
        layers = [f"transformer_blocks.1.{name}" if old.startswith("blocks") else name for name in names]
        rows, *rest = shapes[f"{layers[0]}.weight"]
        down = torch.randn(3, *rest, generator=rng) * 0.3
        parts = [torch.randn(rows, 3, *(1 for _ in rest[1:]), generator=rng) * 0.3 for _ in layers]
        tensors |= {f"{write(old)}.lora_down.weight": down, f"{write(old)}.lora_up.weight": torch.cat(parts)}
        tensors[f"{write(old)}.alpha"] = torch.tensor(2.0)
        for layer, up in zip(layers, parts, strict=True):
            peft |= {f"transformer.{layer}.lora_A.weight": down, f"transformer.{layer}.lora_B.weight": up}
    alphas = {f"{name.partition('.lora_')[0]}.alpha": 2.0 for name in peft}
    path = save(tensors, tmp_path / "x.safetensors")
    check(merge(path, tmp_path, "alpha-micro"), fuse(peft, "alpha-micro", network_alphas=alphas), "alpha-micro")


def test_several_loras(tmp_path: Path) -> None:
    """As diffusers fuses one after the other, each with its own scale."""
    adapt().save_lora_adapter(tmp_path / "one")
    adapt(r=2, lora_alpha=3, target_modules=ATTENTION).save_lora_adapter(tmp_path / "two")
    model = make_model()
    for name, scale in (("one", SCALE), ("two", -0.4)):
        model.load_lora_adapter(tmp_path / name, prefix=None, use_safetensors=True)
        fused(model, scale)
    found = merge(tmp_path / "one", tmp_path)
    found = read_lora(tmp_path / "two", -0.4, wanted(model)).merge(found)
    check(found, model.state_dict())


@pytest.mark.filterwarnings(PEFT_BIAS_WARNING)
def test_dense_lora_on_a_routed_checkpoint(tmp_path: Path) -> None:
    """Fusing and then routing is the same as routing and then merging with the gain of the doubled layer."""
    policy = TokenPolicy.topk(RoutingPlan(((10, 10),) * 3))
    adapt(lora_bias=True).save_lora_adapter(tmp_path / "lora")
    dense = tiny.make_transformer()
    dense.load_state_dict(fuse(tmp_path / "lora", prefix=None))
    latents, timestep, text = _inputs()
    with torch.no_grad():
        output = dense(latents, encoder_hidden_states=text, timestep=timestep).sample
    routed = RoutedPixArt.from_dense(dense, policy)

    save_checkpoint(tmp_path / "routed", RoutedPixArt.from_dense(tiny.make_transformer(), policy))
    sources = Sources(tmp_path / "routed", loras=(LoraSource(tmp_path / "lora", SCALE),))
    merged = describe_transformer(sources).part.tensors
    check({name: tensor for name, tensor in merged.items() if "router" not in name}, _without_routers(routed))
    loaded = load_checkpoint(sources)
    with torch.no_grad():
        found, directly = (model(latents, timestep, {"text": text}) for model in (loaded, routed))
    assert (found - directly).abs().max() < OUTPUT_TOLERANCE
    assert (found - output).abs().max() < OUTPUT_TOLERANCE


def _without_routers(model: RoutedPixArt) -> dict[str, Tensor]:
    return {name: value for name, value in model.transformer.state_dict().items() if "router" not in name}


def _inputs() -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(5)
    text = torch.randn(2, 7, tiny.TEXT_WIDTH, generator=rng)
    return torch.randn(2, 4, 16, 16, generator=rng), torch.tensor([700, 20]), text


def test_configuration_of_the_file_counts_before_the_one_beside(tmp_path: Path) -> None:
    adapt().save_lora_adapter(tmp_path / "lora", weight_name="adapter_model.safetensors")
    (tmp_path / "lora/adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 100}))
    path = tmp_path / "lora/adapter_model.safetensors"
    check(merge(path, tmp_path), fuse(path, prefix=None))
