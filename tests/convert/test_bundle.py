"""What a conversion writes: every tensor of the checkpoint, in the layout that docs/format.md describes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, PixArtTransformer2DModel
from safetensors import safe_open
from safetensors.numpy import load_file
from transformers import T5EncoderModel

from convert.mlx import writer
from mlx_moddit import load
from moddit.checkpoint.precision import DTYPE_NAMES
from moddit.checkpoint.safetensors import read_tensors
from moddit.checkpoint.stored import ITEM_BYTES
from moddit.manifest import read_manifest, verify_files
from moddit.models.pixart import PixArtSpec
from moddit.quantization import Packing
from moddit.tensors import PRECISE_ROLES, Role
from tests.convert.checkpoints import TEXT_ENCODER, TRANSFORMER, VAE, convert, edit_json, edit_weights
from tests.tiny import KINDS, save_pipeline

MODELS = {"transformer": PixArtTransformer2DModel, "text_encoder": T5EncoderModel, "vae": AutoencoderKL}
WIDE = {"num_attention_heads": 2, "attention_head_dim": 32, "cross_attention_dim": 64}  # groups of 64 fit


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("routed"))


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("wide"), transformer=WIDE)


class TestTensors:
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize(
        ("routed", "sharded", "dtype"), [(True, False, "float32"), (False, True, "bfloat16"), (True, True, "float16")]
    )
    def test_all_arrive_unchanged(self, tmp_path: Path, kind: str, routed: bool, sharded: bool, dtype: str) -> None:
        source = save_pipeline(tmp_path / "source", kind=kind, routed=routed, sharded=sharded, dtype=dtype)
        assert convert(source, tmp_path / "bundle", "--dtype", "float32") == 0
        manifest = read_manifest(tmp_path / "bundle")
        verify_files(tmp_path / "bundle", manifest, hashes=True)
        assert manifest.tokens.name == ("topk" if routed else "dense")
        assert isinstance(manifest.spec.transformer, PixArtSpec)
        assert manifest.spec.transformer.use_additional_conditions == (kind == "alpha-micro")
        assert manifest.spec.text_tokens == (300 if kind == "sigma" else 120)  # not the tokenizer's 16
        for name, model in MODELS.items():
            arrays = load_file(tmp_path / "bundle" / name / "model.safetensors")
            wanted = manifest.spec.tensors(has_routers=routed)[name]
            assert arrays.keys() == wanted.keys()
            loaded = model.from_pretrained(source / name, torch_dtype=torch.float32)
            state = {key: value.numpy() for key, value in loaded.state_dict().items() if key in wanted}
            if routed and name == "transformer":
                state |= _routers(source)
            assert state.keys() == wanted.keys()
            for key, value in state.items():
                array = arrays[key].transpose(0, 3, 1, 2) if wanted[key].role is Role.CONV else arrays[key]
                assert np.array_equal(array, value), key

    def test_the_tokenizer_arrives(self, source: Path, tmp_path: Path) -> None:
        convert(source, tmp_path / "bundle")
        found = (tmp_path / "bundle" / "tokenizer.json").read_bytes()
        assert found == (source / "tokenizer" / "tokenizer.json").read_bytes()

    @pytest.mark.parametrize("stored", ["float32", "bfloat16"])
    def test_half_precision_spares_the_precise_roles(self, tmp_path: Path, stored: str) -> None:
        convert(save_pipeline(tmp_path / "source", dtype=stored), tmp_path / "bundle", "--dtype", "float16")
        spec = read_manifest(tmp_path / "bundle").spec
        for name in MODELS:
            tensors = read_tensors(tmp_path / "bundle" / name / "model.safetensors")
            for key, info in spec.tensors(has_routers=True)[name].items():
                if info.role is not Role.BIAS:
                    wanted = stored if info.role in PRECISE_ROLES else "float16"
                    assert DTYPE_NAMES[tensors[key].dtype] == wanted, key

    def test_a_bias_is_as_precise_as_its_weight(self, source: Path, tmp_path: Path) -> None:
        convert(source, tmp_path / "bundle", "--dtype", "bfloat16")
        tensors = read_tensors(tmp_path / "bundle" / "transformer" / "model.safetensors")
        assert tensors["proj_out.bias"].dtype == tensors["adaln_single.linear.bias"].dtype == "F32"
        assert tensors["transformer_blocks.0.ff.net.2.bias"].dtype == tensors["pos_embed.proj.bias"].dtype == "BF16"

    @pytest.mark.parametrize(
        "options", [(), ("-q", "--q-bits", "3", "--q-group-size", "32"), ("-q", "--q-mode", "mxfp4")]
    )
    def test_numbers_are_aligned(self, wide: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
        convert(wide, tmp_path / "bundle", *options)
        for path in (tmp_path / "bundle").glob("*/*.safetensors"):
            for tensor in read_tensors(path).values():
                assert tensor.offset % ITEM_BYTES[tensor.dtype] == 0, tensor.name

    def test_shards_hold_every_tensor_once(self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(writer, "SHARD_BYTES", 40_000)
        convert(source, tmp_path / "bundle")
        files = [info.path for info in read_manifest(tmp_path / "bundle").components["transformer"].files]
        assert len(files) > 5
        assert files[0] == f"transformer/model-00001-of-{len(files):05}.safetensors"
        shards = [load_file(tmp_path / "bundle" / file) for file in files]
        names = [name for shard in shards for name in shard]
        wanted = read_manifest(tmp_path / "bundle").spec.transformer.tensors(has_routers=True)
        assert sorted(names) == sorted(wanted)
        assert all(sum(array.nbytes for array in shard.values()) <= 40_000 for shard in shards if len(shard) > 1)
        load.load_bundle(tmp_path / "bundle").transformer()

    def test_two_runs_write_the_same_bytes(self, source: Path, tmp_path: Path) -> None:
        convert(source, tmp_path / "one")
        convert(source, tmp_path / "two")
        one, two = (read_manifest(tmp_path / name) for name in ("one", "two"))
        assert one.components == two.components
        assert one.provenance.source_sha256 == two.provenance.source_sha256


class TestQuantised:
    @pytest.mark.parametrize(
        ("options", "packing"),
        [
            ((), Packing(8, 64, "affine")),
            (("--q-bits", "3"), Packing(3, 64, "affine")),
            (("--q-bits", "5", "--q-group-size", "32"), Packing(5, 32, "affine")),
            (("--q-bits", "6"), Packing(6, 64, "affine")),
            (("--q-mode", "mxfp4"), Packing(4, 32, "mxfp4")),
        ],
        ids=str,
    )
    def test_equals_quantising_with_mlx(
        self, wide: Path, tmp_path: Path, options: tuple[str, ...], packing: Packing
    ) -> None:
        convert(wide, tmp_path / "exact")
        convert(wide, tmp_path / "packed", "-q", *options)
        (choices,) = read_manifest(tmp_path / "packed").components["transformer"].quantization
        assert choices.packing == packing
        exact, packed = (
            mx.load(str(tmp_path / name / "transformer/model.safetensors")) for name in ("exact", "packed")
        )
        assert isinstance(exact, dict)
        assert isinstance(packed, dict)
        for name in choices.tensors:
            matrix = exact.pop(name)
            parts = mx.quantize(matrix, packing.group_size, packing.bits, packing.mode)
            for key, array in zip(packing.parts(name, matrix.shape), parts, strict=True):
                assert array.dtype == packed[key].dtype
                assert mx.array_equal(packed.pop(key), array), key
        assert packed.keys() == exact.keys()

    def test_only_large_products_are_quantised(self, wide: Path, tmp_path: Path) -> None:
        convert(wide, tmp_path / "bundle", "-q", "--q-group-size", "32")
        manifest = read_manifest(tmp_path / "bundle")
        for name, component in manifest.components.items():
            assert (component.quantization == ()) == (name in ("vae", "tokenizer"))
            for choices in component.quantization:
                wanted = manifest.spec.tensors(has_routers=True)[name]
                linear = [key for key, info in wanted.items() if info.role is Role.LINEAR and info.shape[1] % 32 == 0]
                assert sorted(choices.tensors) == sorted(linear)
        load.load_bundle(tmp_path / "bundle").transformer()

    def test_groups_that_never_fit_leave_no_recipe(self, source: Path, tmp_path: Path) -> None:
        convert(source, tmp_path / "bundle", "-q", "--q-group-size", "128")
        components = read_manifest(tmp_path / "bundle").components
        assert {component.quantization for component in components.values()} == {()}


class TestSources:
    def test_aliases_are_dropped_and_reported(
        self, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        shutil.copytree(source, tmp_path / "source")

        def repeat(tensors: dict[str, np.ndarray]) -> None:
            tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].copy()

        edit_weights(tmp_path / "source" / TEXT_ENCODER, repeat)
        assert convert(tmp_path / "source", tmp_path / "bundle", "--json") == 0
        unused = json.loads(capsys.readouterr().out)["unused"]
        assert unused["text_encoder/encoder.embed_tokens.weight"] == "equal to shared.weight"
        layers = range(read_manifest(tmp_path / "bundle").spec.transformer.num_layers)
        assert {f"transformer/transformer_blocks.{layer}.keep_ratio" for layer in layers} < unused.keys()
        assert len(unused) == 1 + len(layers)

    def test_an_alias_alone_is_renamed(self, source: Path, tmp_path: Path) -> None:
        shutil.copytree(source, tmp_path / "source")
        edit_weights(
            tmp_path / "source" / TEXT_ENCODER,
            lambda tensors: tensors.update({"encoder.embed_tokens.weight": tensors.pop("shared.weight")}),
        )
        convert(tmp_path / "source", tmp_path / "bundle")
        convert(source, tmp_path / "other")
        one, two = (read_manifest(tmp_path / name).components["text_encoder"] for name in ("bundle", "other"))
        assert one == two

    def test_older_names_of_the_vae(self, source: Path, tmp_path: Path) -> None:
        shutil.copytree(source, tmp_path / "source")
        old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

        def rename(tensors: dict[str, np.ndarray]) -> None:
            for name in [name for name in tensors if "attentions.0.to_" in name]:
                new = re.sub(r"to_(q|k|v|out\.0)", lambda match: old[match[0]], name)
                tensors[new] = tensors.pop(name)

        edit_weights(tmp_path / "source" / VAE, rename)
        assert convert(tmp_path / "source", tmp_path / "bundle") == 0
        convert(source, tmp_path / "other")
        one, two = (read_manifest(tmp_path / name).components["vae"] for name in ("bundle", "other"))
        assert one == two

    def test_the_older_class_of_the_transformer(self, source: Path, tmp_path: Path) -> None:
        shutil.copytree(source, tmp_path / "source")
        edit_json(
            tmp_path / "source" / "transformer" / "config.json",
            lambda config: config.update(_class_name="Transformer2DModel"),
        )
        assert convert(tmp_path / "source", tmp_path / "bundle") == 0

    def test_the_plan_counts_and_not_the_learned_ratios(
        self, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        shutil.copytree(source, tmp_path / "source")
        name = "transformer_blocks.1.keep_ratio"
        edit_weights(
            tmp_path / "source" / TRANSFORMER, lambda tensors: tensors.update({name: np.full(4, 1.3, np.float32)})
        )
        assert convert(tmp_path / "source", tmp_path / "bundle") == 0
        assert "note          keep_ratio of layers 1 snaps to other tenths" in capsys.readouterr().out
        plans = [json.loads((tmp_path / "bundle" / "manifest.json").read_text())["tokens"]["plan"]]
        plans.append(json.loads((source / "transformer" / "config.json").read_text())["diffcr"])
        assert plans[0] == plans[1]

    def test_hash_is_that_of_sha256sum(self, source: Path, tmp_path: Path) -> None:
        convert(source, tmp_path / "bundle")
        script = "find * -type f | LC_ALL=C sort | xargs sha256sum | sha256sum"
        result = subprocess.run(["sh", "-c", script], cwd=source, capture_output=True, text=True, check=True)
        assert read_manifest(tmp_path / "bundle").provenance.source_sha256 == result.stdout.split()[0]


class TestSummary:
    def test_as_json(self, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        convert(source, tmp_path / "bundle", "--json")
        summary = json.loads(capsys.readouterr().out)
        manifest = read_manifest(tmp_path / "bundle")
        assert summary["capacities"] == [list(manifest.tokens.plan.capacities(region, 64)) for region in range(4)]
        assert summary["tokens"] == 64
        assert 0 < summary["block_flops_share"] < 1
        (size,) = summary["sizes"]  # a bundle for MLX draws every size
        assert (size["height"], size["width"]) == (32, 32)
        assert all(size[key] == summary[key] for key in ("tokens", "capacities", "block_flops_share"))
        assert summary["components"]["vae"]["parameters"] == manifest.components["vae"].parameters > 0
        size = sum(path.stat().st_size for path in (tmp_path / "bundle").glob("*/*.safetensors"))
        assert sum(summary["components"][name]["bytes"] for name in MODELS) == size
        assert summary["source_sha256"] == manifest.provenance.source_sha256

    def test_as_text(self, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        convert(source, tmp_path / "bundle")
        text = capsys.readouterr().out
        for line in ("transformer ", "t  750..999", "block FLOPs", "keep_ratio and 2 more: training only", "sha256"):
            assert line in text

    def test_of_a_dense_model(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        convert(save_pipeline(tmp_path / "source", routed=False), tmp_path / "bundle")
        assert "none (dense model), 64 tokens at 32x32 pixels" in capsys.readouterr().out


def test_needs_no_torch_and_no_runtime(source: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from convert.cli import main; main(sys.argv[1:]); "
        "print(*{'torch', 'mlx', 'diffusers', 'transformers', 'safetensors'} & set(sys.modules), file=sys.stderr)"
    )
    arguments = ["--from", "hf-checkpoint", "--hf-path", str(source), "--out", str(tmp_path / "bundle"), "-q"]
    result = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert result.stderr == "\n"
    assert (tmp_path / "bundle" / "manifest.json").is_file()


def _routers(source: Path) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for path in (source / "transformer").glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            found |= {name: file.get_tensor(name).float().numpy() for name in file.keys() if "router" in name}  # noqa: SIM118
    return found


def test_names_of_files_are_shown_and_not_obeyed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = "a\x1b[2J\nb\x9b31m"
    source = save_pipeline(tmp_path / name)
    assert convert(source, tmp_path / "bundle") == 0
    output = capsys.readouterr().out
    assert r"a\x1b[2J\nb\x9b31m" in output
    assert "\x1b" not in output
    shutil.rmtree(source / "vae")
    assert convert(source, tmp_path / "other") == 1
    message = capsys.readouterr().err
    assert r"a\x1b[2J" in message
    assert "\x1b" not in message
