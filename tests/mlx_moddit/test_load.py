from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_moddit.load import load_bundle
from mlx_moddit.planner.model import find_model
from mlx_moddit.t5 import T5Encoder
from moddit.errors import FormatError, MissingError, ShapeError, UnsupportedError
from moddit.manifest import read_manifest, write_manifest
from moddit.models.t5 import T5Spec
from moddit.tensors import PRECISE_ROLES
from scripts.golden_manifests import make_bundles
from tests.mlx_moddit.bundles import MODELS, edit_tensors, refresh_manifest, wanted_tensors, write_bundle
from tests.tiny import save_pipeline

QUANTISED_ERROR = 0.02  # 8 bits leave about 1/256 of a group's range in every weight
WIDTH = 64  # a multiple of the group size, so that the transformer can be quantised
QUANTISABLE = {"num_attention_heads": 2, "attention_head_dim": 32, "cross_attention_dim": WIDTH}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("source"), transformer=QUANTISABLE)


@pytest.fixture
def bundle(source: Path, tmp_path: Path) -> Path:
    return write_bundle(source, tmp_path / "bundle")


@pytest.fixture
def m1(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend a GPU without bfloat16."""
    monkeypatch.setattr(mx, "device_info", lambda: {"architecture": "applegpu_g13g"})


class TestLoad:
    @pytest.mark.parametrize("routed", [True, False])
    def test_parameters_are_the_canonical_tensors(self, tmp_path: Path, routed: bool) -> None:
        folder = write_bundle(save_pipeline(tmp_path / "source", routed=routed), tmp_path / "bundle")
        bundle = load_bundle(folder)
        for name in MODELS:
            model = getattr(bundle, name)()
            wanted = wanted_tensors(bundle.spec, name, routed=routed)
            assert set(_parameters(model)) == {re.sub(r"attn1\.to_[qkv]", "attn1.to_qkv", tensor) for tensor in wanted}
        assert (bundle.policy.has_routers, bundle.policy.is_dense) == (routed, not routed)

    def test_weights_stay_on_disk_until_they_are_used(self, bundle: Path) -> None:
        opened = load_bundle(bundle)
        before = mx.get_active_memory()
        model = opened.transformer()
        assert mx.get_active_memory() - before < 1024  # bytes; the weights are 700 kB
        mx.eval(model.parameters())
        assert mx.get_active_memory() - before > 100_000

    def test_decoding_never_reads_the_encoder(self, bundle: Path) -> None:
        vae = load_bundle(bundle).vae()
        before = mx.get_active_memory()
        mx.eval(vae.decode(mx.zeros((1, 2, 2, 4))))
        used = mx.get_active_memory() - before
        mx.eval(vae.encoder.parameters())
        assert mx.get_active_memory() - before > used + 10_000  # bytes

    def test_a_released_text_encoder_holds_one_block_at_a_time(self, bundle: Path) -> None:
        spec = T5Spec(48, 64, 16, 256, 8, 4, 32, 128, is_gated=True, dense_act_fn="gelu_new", layer_norm_epsilon=1e-6)
        file = str(bundle / "t5.safetensors")
        mx.save_safetensors(file, _parameters(T5Encoder(spec)))
        peaks = []
        for release in (False, True):
            encoder = T5Encoder(spec)
            encoder.load_weights(file, strict=True)
            before = mx.get_active_memory()
            mx.reset_peak_memory()
            mx.eval(encoder(mx.array([[4, 1]]), release=release))
            peaks.append(mx.get_peak_memory() - before)
        assert peaks[1] < peaks[0] / 4

    def test_a_component_is_built_anew_every_time(self, bundle: Path) -> None:
        opened = load_bundle(bundle)
        assert opened.vae() is not opened.vae()

    def test_tokenizer_keeps_the_sequence_length(self, bundle: Path) -> None:
        opened = load_bundle(bundle)
        assert len(opened.tokenizer().encode("red " * 100)) == opened.spec.text_tokens


class TestDtype:
    @pytest.mark.parametrize(
        ("architecture", "dtype", "wide"),
        [
            ("applegpu_g13s", mx.float16, mx.float32),  # M1
            ("applegpu_g14d", mx.float16, mx.float32),  # M2
            ("applegpu_g15s", mx.float16, mx.bfloat16),  # M3
            ("applegpu_g17p", mx.float16, mx.bfloat16),  # M5
            ("applegpu_g17p", mx.float32, mx.float32),
            ("x86_64", mx.float16, mx.float32),
        ],
    )
    def test_what_leaves_float16_is_bfloat16_where_a_chip_has_it(
        self, bundle: Path, monkeypatch: pytest.MonkeyPatch, architecture: str, dtype: mx.Dtype, wide: mx.Dtype
    ) -> None:
        monkeypatch.setattr(mx, "device_info", lambda: {"architecture": architecture})
        opened = load_bundle(bundle, dtype)
        assert opened.transformer().dtype == dtype
        assert opened.text_encoder()(mx.array([[4, 1]])).dtype == wide
        stored = wide if wide == mx.bfloat16 else dtype
        assert opened.vae().decoder.conv_in.weight.dtype == stored

    @pytest.mark.usefixtures("m1")
    @pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
    def test_a_narrower_dtype_leaves_precise_roles(self, bundle: Path, dtype: mx.Dtype) -> None:
        opened = load_bundle(bundle, dtype)
        for name in MODELS:
            wanted = wanted_tensors(opened.spec, name, routed=True)
            for key, array in _parameters(getattr(opened, name)()).items():
                tensor = key.replace("to_qkv", "to_q")
                info = wanted.get(f"{tensor.removesuffix('bias')}weight", wanted[tensor])  # a bias goes with its weight
                assert array.dtype == (mx.float32 if info.role in PRECISE_ROLES else dtype), key

    def test_float32_widens_everything(self, bundle: Path) -> None:
        half = {name: array.astype(mx.float16) for name, array in _parameters(load_bundle(bundle).vae()).items()}
        edit_tensors(bundle, "vae", half)
        widened = _parameters(load_bundle(bundle, mx.float32).vae())
        assert {array.dtype for array in widened.values()} == {mx.float32}

    @pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
    def test_activations_follow_the_dtype(self, bundle: Path, dtype: mx.Dtype) -> None:
        model = load_bundle(bundle, dtype).transformer()
        conditions = model.prepare([mx.zeros((2, 32))], [500.0], 4, 4)
        run = conditions.start()
        x = model.run_block(model.embed(mx.ones((1, 4, 4, 4)), conditions), 0, 0, conditions, run)
        assert (model.dtype, x.dtype) == (dtype, dtype)
        assert model(mx.ones((1, 4, 4, 4)), 0, conditions, run).dtype == mx.float32


class TestQuantised:
    @pytest.mark.parametrize(("bits", "tolerance"), [(8, QUANTISED_ERROR), (4, 20 * QUANTISED_ERROR)])
    def test_runs_near_the_exact_model(
        self, source: Path, bundle: Path, tmp_path: Path, bits: int, tolerance: float
    ) -> None:
        packed = load_bundle(write_bundle(source, tmp_path / "packed", bits=bits))
        exact = load_bundle(bundle)
        found, wanted = (np.array(each.text_encoder()(mx.array([[4, 9, 5, 1]]))) for each in (packed, exact))
        assert 0 < np.abs(found - wanted).max() < tolerance * np.abs(wanted).max()
        assert isinstance(packed.transformer().transformer_blocks[0].attn1.to_qkv, nn.QuantizedLinear)
        assert isinstance(packed.transformer().transformer_blocks[0].router, nn.Linear)
        conditions = packed.transformer().prepare([mx.array(found[0])], [500.0], 4, 4)
        output = packed.transformer()(mx.ones((1, 4, 4, 4)), 0, conditions, conditions.start())
        assert bool(mx.isfinite(output).all())

    @pytest.mark.usefixtures("m1")
    @pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32])
    def test_dtype_reaches_the_scales(self, source: Path, tmp_path: Path, dtype: mx.Dtype) -> None:
        packed = load_bundle(write_bundle(source, tmp_path / "packed", bits=8), dtype)
        model = packed.transformer()
        assert model.dtype == dtype
        assert packed.text_encoder()(mx.array([[4, 1]])).dtype == (mx.bfloat16 if dtype == mx.bfloat16 else mx.float32)

    def test_scales_follow_the_stored_dtype(self, source: Path, tmp_path: Path) -> None:
        folder = write_bundle(source, tmp_path / "packed", bits=8)  # scales are stored in float32
        manifest = read_manifest(folder)
        half = {name: replace(component, dtype="float16") for name, component in manifest.components.items()}
        write_manifest(folder, replace(manifest, components=half))
        assert load_bundle(folder).transformer().dtype == mx.float16

    def test_refuses_missing_scales(self, source: Path, tmp_path: Path) -> None:
        folder = write_bundle(source, tmp_path / "packed", bits=8)
        edit_tensors(folder, "transformer", {"transformer_blocks.0.attn1.to_q.scales": None})
        with pytest.raises(FormatError, match=r"attn1\.to_q\.scales' is damaged, got nothing"):
            load_bundle(folder).transformer()


class TestBadBundles:
    def test_reports_all_differences_at_once(self, bundle: Path) -> None:
        edit_tensors(
            bundle,
            "transformer",
            {"proj_out.bias": None, "scale_shift_table": mx.zeros((3, WIDTH)), "stranger": mx.zeros(1)},
        )
        with pytest.raises(ShapeError) as caught:
            load_bundle(bundle).transformer()
        for part in ("missing     proj_out.bias", "mis-shaped  scale_shift_table", "unexpected  stranger"):
            assert part in str(caught.value)

    def test_refuses_convolutions_in_pytorch_layout(self, bundle: Path) -> None:
        edit_tensors(bundle, "vae", {"encoder.conv_in.weight": mx.zeros((8, 3, 3, 3)).transpose(0, 3, 1, 2)[:, :2]})
        with pytest.raises(ShapeError, match=r"encoder\.conv_in\.weight"):
            load_bundle(bundle).vae()

    def test_refuses_integers(self, bundle: Path) -> None:
        edit_tensors(bundle, "transformer", {"proj_out.bias": mx.zeros((32,), dtype=mx.int32)})
        with pytest.raises(FormatError, match=r"proj_out\.bias"):
            load_bundle(bundle).transformer()

    def test_refuses_an_unknown_dtype(self, bundle: Path) -> None:
        manifest = read_manifest(bundle)
        components = {**manifest.components, "vae": replace(manifest.components["vae"], dtype="float8")}
        write_manifest(bundle, replace(manifest, components=components))
        with pytest.raises(UnsupportedError, match=r"components\.vae\.dtype is 'float8'"):
            load_bundle(bundle).vae()

    def test_refuses_a_truncated_file(self, bundle: Path) -> None:
        file = bundle / "vae" / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(FormatError, match="truncated"):
            load_bundle(bundle)

    def test_refuses_what_is_not_safetensors(self, bundle: Path) -> None:
        (bundle / "vae" / "model.safetensors").write_bytes(b"{" * 100)
        refresh_manifest(bundle)
        with pytest.raises(FormatError, match="not safetensors"):
            load_bundle(bundle).vae()

    def test_refuses_an_absent_file(self, bundle: Path) -> None:
        (bundle / "tokenizer" / "tokenizer.json").unlink()
        with pytest.raises(MissingError, match=r"tokenizer\.json"):
            load_bundle(bundle)

    def test_refuses_another_backend(self, bundle: Path) -> None:
        manifest = next(iter(make_bundles(bundle / "tokenizer" / "tokenizer.json").values()))
        write_manifest(bundle, manifest)
        assert read_manifest(bundle).backend == "coreml"
        for read in (load_bundle, lambda folder: find_model(str(folder), None)):
            with pytest.raises(UnsupportedError, match="bundle is for 'coreml', want 'mlx'"):
                read(bundle)

    @pytest.mark.parametrize("text", ["{", "[]", '{"version": "1.0"}'])
    def test_refuses_what_is_not_a_tokenizer(self, bundle: Path, text: str) -> None:
        (bundle / "tokenizer" / "tokenizer.json").write_text(text)
        refresh_manifest(bundle)
        with pytest.raises(FormatError, match="tokenizer"):
            load_bundle(bundle).tokenizer()

    @pytest.mark.parametrize("number", [48, 10**6])  # just beyond the embedding, and far beyond
    def test_refuses_tokens_that_the_text_encoder_has_not(self, bundle: Path, number: int) -> None:
        path = bundle / "tokenizer" / "tokenizer.json"
        value = json.loads(path.read_text(encoding="utf-8"))
        value["post_processor"]["special_tokens"]["</s>"]["ids"] = [number]
        path.write_text(json.dumps(value), encoding="utf-8")
        refresh_manifest(bundle)
        with pytest.raises(ShapeError, match=rf"tokenizer\.json: .* is {number}, the text encoder's vocab_size is 48"):
            load_bundle(bundle).tokenizer()


def _parameters(model: nn.Module) -> dict[str, mx.array]:
    return dict(tree_flatten(model.parameters()))
