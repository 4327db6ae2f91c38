"""What is no checkpoint of ours is refused in one line that says what to do; nothing is written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from safetensors.torch import load_file, save_file

from convert.cli import main
from tests import tiny
from tests.parity.published.adapters import save_adapter
from tests.parity.published.base import TEXT_ENCODER, TRANSFORMER, VAE, edit, rewrite, save
from tests.parity.published.original import original_names
from tests.parity.published.weights import save_variant

pytestmark = pytest.mark.without_mlx

Refused = Callable[[Path], tuple[list[str], str]]  # a folder to fill -> what a user types, what the message says
CASES: Final[dict[str, Refused]] = {}


def case(make: Refused) -> Refused:
    CASES[make.__name__] = make
    return make


def given(path: Path, *options: str) -> list[str]:
    return ["--hf-path", str(path), *options]


@case
def an_adapter_as_a_model(folder: Path) -> tuple[list[str], str]:
    file = save_adapter(folder, "style", 2)
    return given(file, "--base", str(save(folder))), "an adapter (LoRA), not a model, since it has"


@case
def the_folder_of_an_adapter(folder: Path) -> tuple[list[str], str]:
    save_adapter(folder, "style", 2)
    return given(
        folder / "style"
    ), "an adapter (LoRA), not a model, got pytorch_lora_weights.safetensors; pass it with --lora"


@case
def adapters_in_the_folder_of_a_transformer(folder: Path) -> tuple[list[str], str]:
    model = save(folder)
    rewrite(model / TRANSFORMER, lambda t: t.update({"a.lora_A.weight": torch.ones(1)}))
    return given(model), "an adapter (LoRA), not a model"


@case
def bitsandbytes_by_its_configuration(folder: Path) -> tuple[list[str], str]:
    model = save(folder)
    edit(model / "transformer/config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    return given(model), "transformer/config.json: quantised by bitsandbytes; convert the original"


@case
def bitsandbytes_by_its_tensors(folder: Path) -> tuple[list[str], str]:
    model = save(folder)
    name = "encoder.block.0.layer.0.SelfAttention.q.weight"
    extra = {name: torch.ones(32, 16, dtype=torch.uint8), f"{name}.absmax": torch.ones(8)}
    rewrite(model / TEXT_ENCODER, lambda t: t.update(extra))
    return given(model), "quantised by bitsandbytes, since it has"


@case
def eight_bit_t5(folder: Path) -> tuple[list[str], str]:
    model = save(folder)
    edit(model / "text_encoder/config.json", quantization_config={"quant_method": "gptq"})
    return given(model), "text_encoder/config.json: quantised by gptq"


@case
def fp8(folder: Path) -> tuple[list[str], str]:
    tensors = {name: value.to(torch.float8_e4m3fn) for name, value in tiny.make_transformer().state_dict().items()}
    save_file(original_names(tensors), folder / "fp8.safetensors")
    return given(folder / "fp8.safetensors", "--base", str(save(folder))), "quantised by fp8, since it has"


@case
def scaled_fp8_of_comfyui(folder: Path) -> tuple[list[str], str]:
    tensors = original_names(tiny.make_transformer().state_dict()) | {"scaled_fp8": torch.zeros(1)}
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "scaled.safetensors")
    return given(folder / "scaled.safetensors", "--base", str(save(folder))), "quantised by fp8 scaling"


@case
def gguf(folder: Path) -> tuple[list[str], str]:
    (folder / "pixart-q4.gguf").write_bytes(b"GGUF")
    return given(folder / "pixart-q4.gguf", "--base", str(save(folder))), "GGUF is not read; convert the original"


@case
def a_picture(folder: Path) -> tuple[list[str], str]:
    (folder / "a.png").write_bytes(b"")
    return given(folder / "a.png", "--base", str(save(folder))), "not weights, want .safetensors or"


@case
def a_variant_that_nobody_asked_for(folder: Path) -> tuple[list[str], str]:
    return given(save_variant(folder, "transformer")), "has variant fp16 only; pass --variant fp16"


@case
def an_interrupted_download(folder: Path) -> tuple[list[str], str]:
    model = save(folder)
    (model / TRANSFORMER).unlink()
    (model / TRANSFORMER).symlink_to(folder / "blobs" / "1.incomplete")
    return given(model), "a link to a file that is not there; download it again"


@case
def a_download_beside_older_weights(folder: Path) -> tuple[list[str], str]:
    model = save(folder)
    torch.save(load_file(model / VAE), model / "vae/diffusion_pytorch_model.bin")
    (model / VAE).unlink()
    (model / VAE).symlink_to(folder / "blobs" / "1.incomplete")
    return given(model), "model.safetensors: a link to a file that is not there; download it again"


@case
def tokens_that_are_still_loading(folder: Path) -> tuple[list[str], str]:
    model = save(folder)
    (model / "tokenizer/special_tokens_map.json").symlink_to(folder / "blobs" / "2")
    return given(model), "special_tokens_map.json: a link to a file that is not there; download it again"


@case
def a_name_that_is_too_long(folder: Path) -> tuple[list[str], str]:
    return given(folder / ("x" * 300)), "no such folder"


@case
def a_device(folder: Path) -> tuple[list[str], str]:
    return ["--hf-path", "/dev/null", "--base", str(save(folder))], "/dev/null: neither a file nor a folder"


@case
def a_configuration_that_is_still_loading(folder: Path) -> tuple[list[str], str]:
    model = save(folder)
    (model / "vae/config.json").unlink()
    (model / "vae/config.json").symlink_to(folder / "blobs" / "2")
    return given(model), "vae/config.json: a link to a file that is not there; download it again"


@case
def a_transformer_without_a_base(folder: Path) -> tuple[list[str], str]:
    tiny.make_transformer().save_pretrained(folder / "one")
    return given(folder / "one"), "a transformer alone; name a pipeline that has the other components with --base"


@case
def a_repository_with_a_transformer_without_a_base(folder: Path) -> tuple[list[str], str]:
    tiny.make_transformer().save_pretrained(folder / "one" / "transformer")
    return given(folder / "one"), "'model_index.json' is missing, got transformer, want transformer, text_encoder"


@case
def a_base_that_lacks_something(folder: Path) -> tuple[list[str], str]:
    tiny.make_transformer().save_pretrained(folder / "one")
    base = save(folder)
    shutil.rmtree(base / "vae")
    return given(folder / "one", "--base", str(base)), "component 'vae' is missing; want a whole pipeline as --base"


@case
def a_base_that_is_a_file(folder: Path) -> tuple[list[str], str]:
    tiny.make_transformer().save_pretrained(folder / "one")
    (folder / "x.safetensors").touch()
    return given(folder / "one", "--base", str(folder / "x.safetensors")), "--base is a file, want a pipeline's folder"


@case
def a_base_that_is_not_there(folder: Path) -> tuple[list[str], str]:
    tiny.make_transformer().save_pretrained(folder / "one")
    return given(folder / "one", "--base", str(folder / "nowhere" / "at" / "all")), "no such folder"


@case
def a_folder_with_nothing_of_a_pipeline(folder: Path) -> tuple[list[str], str]:
    tiny.make_transformer().save_pretrained(folder / "one")
    (folder / "one/config.json").unlink()
    return given(folder / "one", "--base", str(save(folder))), "has no part of a pipeline, got diffusion_pytorch_model"


@case
def an_index_of_another_class(folder: Path) -> tuple[list[str], str]:
    model = save(folder)
    edit(model / "model_index.json", vae=["diffusers", "AsymmetricAutoencoderKL"])
    return given(model), "model_index.json: vae 'AsymmetricAutoencoderKL' is not implemented, want one of AutoencoderKL"


@case
def a_component_that_is_a_number(folder: Path) -> tuple[list[str], str]:
    model = save(folder)
    edit(model / "model_index.json", scheduler=3)
    return given(model), "component 'scheduler' is 3, want a library and a class"


@case
def a_pipeline_of_somebodys_code(folder: Path) -> tuple[list[str], str]:
    model = save(folder)
    edit(model / "model_index.json", _class_name=["pipeline", "PixArtSigmaPipeline"])
    return given(model), "pipeline ['pipeline', 'PixArtSigmaPipeline'] is not implemented"


@case
def an_adapter_beside_the_text_encoder(folder: Path) -> tuple[list[str], str]:
    model = save(folder)
    (model / "text_encoder/adapter_config.json").write_text("{}")
    return given(model), "an adapter (LoRA) of this model, which transformers would load with it; merge it"


@case
def a_text_encoder_that_names_its_file(folder: Path) -> tuple[list[str], str]:
    model = save(folder)
    edit(model / "text_encoder/config.json", transformers_weights="other.safetensors")
    return given(model), "text_encoder/config.json: transformers_weights = 'other.safetensors' is not implemented"


@case
def a_text_encoder_that_is_a_decoder(folder: Path) -> tuple[list[str], str]:
    model = save(folder)
    edit(model / "text_encoder/config.json", is_decoder=True)
    return given(model), "is_decoder = True is not implemented"


@case
def a_tokenizer_that_cuts_beginnings(folder: Path) -> tuple[list[str], str]:
    model = save(folder)
    edit(model / "tokenizer/tokenizer_config.json", truncation_side="left")
    return given(model), "tokenizer_config.json: truncation_side is 'left'"


@case
def whole_numbers(folder: Path) -> tuple[list[str], str]:
    model = save(folder)
    rewrite(model / VAE, lambda t: t.update({"decoder.conv_out.bias": torch.ones(3, dtype=torch.int64)}))
    return given(model), "'decoder.conv_out.bias' has dtype I64, want F16, BF16, F32, F64"


@case
def a_component_that_the_index_leaves_out(folder: Path) -> tuple[list[str], str]:
    model = save(folder)
    edit(model / "model_index.json", vae=[])
    return given(model), "component 'vae' is missing"


@case
def an_index_with_something_else(folder: Path) -> tuple[list[str], str]:
    model = save(folder)
    edit(model / "model_index.json", scheduler=["diffusers", 3])
    return given(model), "component 'scheduler' is ['diffusers', 3], want a library and a class"


@case
def another_pipeline(folder: Path) -> tuple[list[str], str]:
    model = save(folder)
    edit(model / "model_index.json", _class_name="StableDiffusionPipeline")
    return given(model), "pipeline 'StableDiffusionPipeline' is not implemented"


@case
def a_few_step_scheduler(folder: Path) -> tuple[list[str], str]:
    model = save(folder)
    edit(model / "model_index.json", scheduler=["diffusers", "LCMScheduler"])
    return given(model), "'LCMScheduler' is not implemented"


@case
def grounded_attention(folder: Path) -> tuple[list[str], str]:
    model = save(folder)
    edit(model / "transformer/config.json", attention_type="gated")
    return given(model), "attention_type = 'gated' is not implemented"


@case
def weights_of_another_configuration(folder: Path) -> tuple[list[str], str]:
    model = save(folder)
    edit(model / "transformer/config.json", num_layers=5)
    return given(model), "... and 30 more"


@case
def key_value_compression(folder: Path) -> tuple[list[str], str]:
    tensors = original_names(tiny.make_transformer().state_dict()) | {"blocks.0.attn.sr.weight": torch.ones(3)}
    torch.save({"state_dict": tensors}, folder / "x.pth")
    return given(folder / "x.pth", "--base", str(save(folder))), "blocks.0.attn.sr.weight not of a PixArt alpha"


@case
def an_original_that_does_not_say_its_size(folder: Path) -> tuple[list[str], str]:
    wide: Any = {"num_attention_heads": 1, "attention_head_dim": 72, "cross_attention_dim": 72}
    base = save(folder, transformer=wide)
    torch.save(original_names(tiny.make_transformer(**wide).state_dict()), folder / "x.pth")
    shutil.rmtree(base / "transformer")
    return given(folder / "x.pth", "--base", str(base)), "at what size it was trained; give it with --image-size"


@case
def an_original_of_unknown_heads(folder: Path) -> tuple[list[str], str]:
    base = save(folder)
    torch.save(original_names(tiny.make_transformer().state_dict()), folder / "x.pth")
    shutil.rmtree(base / "transformer")
    return given(folder / "x.pth", "--base", str(base), "--image-size", "32"), "width 48 does not say how many heads"


@case
def an_original_without_its_numbers(folder: Path) -> tuple[list[str], str]:
    tensors = original_names(tiny.make_transformer().state_dict())
    tensors["final_layer.linear.bias"] = tensors["final_layer.linear.bias"].to("meta")
    torch.save(tensors, folder / "x.pth")
    return given(folder / "x.pth", "--base", str(save(folder))), "has dtype torch.float32 (meta), want F16"


@case
def an_original_with_sparse_matrices(folder: Path) -> tuple[list[str], str]:
    tensors = original_names(tiny.make_transformer().state_dict())
    tensors["final_layer.linear.weight"] = tensors["final_layer.linear.weight"].to_sparse()
    torch.save(tensors, folder / "x.pth")
    return given(folder / "x.pth", "--base", str(save(folder))), "has dtype torch.float32 (torch.sparse_coo), want F16"


@case
def an_original_of_another_scale(folder: Path) -> tuple[list[str], str]:
    model = tiny.make_transformer(interpolation_scale=3)
    tensors = original_names(model.state_dict()) | {"pos_embed": model.pos_embed.pos_embed}
    torch.save(tensors, folder / "x.pth")
    return given(folder / "x.pth", "--base", str(save(folder))), "its pos_embed is for another scale of positions"


def _sized(folder: Path, pixels: int) -> list[str]:
    torch.save(original_names(tiny.make_transformer().state_dict()), folder / "x.pth")
    return given(folder / "x.pth", "--base", str(save(folder)), "--image-size", str(pixels))


@case
def a_size_of_half_a_latent_pixel(folder: Path) -> tuple[list[str], str]:
    return _sized(folder, 1), "--image-size 1 is not a multiple of 2"


@case
def a_size_of_half_a_patch(folder: Path) -> tuple[list[str], str]:
    return _sized(folder, 34), "--image-size gives 17 latent pixels, want a multiple of 2"


@case
def half_an_original(folder: Path) -> tuple[list[str], str]:
    tensors = original_names(tiny.make_transformer().state_dict())
    torch.save({name: value for name, value in tensors.items() if "mlp.fc2" not in name}, folder / "x.pth")
    return given(folder / "x.pth", "--base", str(save(folder))), "missing     transformer_blocks.0.ff.net.2.bias"


@case
def code_in_a_pickle(folder: Path) -> tuple[list[str], str]:
    torch.save({"state_dict": {"a": Path("x")}}, folder / "x.pth")
    return given(folder / "x.pth", "--base", str(save(folder))), "not readable without executing what is in it"


@case
def a_file_of_another_model(folder: Path) -> tuple[list[str], str]:
    save_file({"double_blocks.0.img_attn.qkv.weight": torch.ones(3)}, folder / "flux.safetensors")
    return given(
        folder / "flux.safetensors", "--base", str(save(folder))
    ), "weights of another model, got 1 tensors such as"


@case
def a_url(folder: Path) -> tuple[list[str], str]:
    return ["--hf-path", "https://example.com/owner/name"], "a URL; want a folder, a file or an id"


@case
def a_revision_of_a_folder(folder: Path) -> tuple[list[str], str]:
    return given(save(folder), "--revision", "main"), "a place here, not an id of the Hub; leave out --revision main"


@case
def the_home_of_nobody(folder: Path) -> tuple[list[str], str]:
    return ["--hf-path", "~nobody-of-this-name/model"], "cannot find the home folder of ~nobody-of-this-name"


@case
def an_adapter_that_is_not_there(folder: Path) -> tuple[list[str], str]:
    return given(save(folder), "--lora", str(folder / "nothing.safetensors")), "nothing.safetensors: no such file"


@case
def an_adapter_of_another_model(folder: Path) -> tuple[list[str], str]:
    layer = "transformer.single_transformer_blocks.0.attn.to_q"
    tensors = {f"{layer}.lora_A.weight": torch.ones(2, 48), f"{layer}.lora_B.weight": torch.ones(48, 2)}
    save_file(tensors, folder / "flux.safetensors")
    return given(save(folder), "--lora", str(folder / "flux.safetensors")), "flux.safetensors"


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore")
def test_is_refused(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options, message = CASES[name](tmp_path)
    capsys.readouterr()
    assert main(["--from", "hf-checkpoint", *options, "--out", str(tmp_path / "bundle")]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.startswith("error: [")
    # one line, or, where tensors differ, the first dozen of them
    assert len(printed.err.splitlines()) == 1 or (
        printed.err.splitlines()[1].startswith("  ") and "differ" in printed.err
    )
    assert len(printed.err.splitlines()) <= 14
    assert not any("bundle" in path.name for path in tmp_path.iterdir())


def test_the_scale_of_an_adapter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for text in ("style.safetensors:strong", ":0.5", "style.safetensors:nan"):
        arguments = ["--from", "hf-checkpoint", "--lora", text, "--out", str(tmp_path / "bundle")]
        assert main(arguments) == 2
        assert "is not a scale, want FILE or FILE:NUMBER" in capsys.readouterr().err
