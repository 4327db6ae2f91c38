"""A checkpoint that draws classes becomes a bundle for MLX that computes what the checkpoint does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel
from numpy.typing import NDArray
from safetensors.numpy import load_file

from convert.verify.functions import EXACT_TOLERANCE
from mlx_moddit.load import Bundle, load_bundle
from moddit.conditioning import Label
from moddit.manifest import read_manifest, verify_files
from moddit.tensors import Role
from tests.convert.checkpoints import TRANSFORMER, convert, edit_json
from tests.tiny import LABELS, save_dit_pipeline
from torch_moddit.pipeline import ReferencePipeline

MODELS = {"transformer": DiTTransformer2DModel, "vae": AutoencoderKL}
CLASSES = 1000
TIMESTEPS = (999.0, 740.5, 251.0, 0.0)  # one of each region
KINDS = pytest.mark.parametrize("routed", [True, False], ids=["routed", "dense"])


class TestTensors:
    @KINDS
    @pytest.mark.parametrize("dtype", ["float32", "float16"])
    def test_all_arrive_unchanged(self, tmp_path: Path, routed: bool, dtype: str) -> None:
        source = save_dit_pipeline(tmp_path / "source", routed=routed, dtype=dtype)
        assert convert(source, tmp_path / "bundle", "--dtype", "float32") == 0
        manifest = read_manifest(tmp_path / "bundle")
        verify_files(tmp_path / "bundle", manifest, hashes=True)
        assert manifest.components.keys() == MODELS.keys()
        assert manifest.tokens.name == ("topk" if routed else "dense")
        routers = {name: array for name, array in load_file(source / TRANSFORMER).items() if "router" in name}
        for name, model in MODELS.items():
            arrays = load_file(tmp_path / "bundle" / name / "model.safetensors")
            wanted = manifest.spec.tensors(has_routers=routed)[name]
            loaded = model.from_pretrained(source / name, torch_dtype=torch.float32)
            state = {key: value.numpy() for key, value in loaded.state_dict().items() if key in wanted}
            state |= {key: array.astype(np.float32) for key, array in routers.items() if name == "transformer"}
            assert arrays.keys() == state.keys() == wanted.keys()
            for key, value in state.items():
                array = arrays[key].transpose(0, 3, 1, 2) if wanted[key].role is Role.CONV else arrays[key]
                assert np.array_equal(array, value), key

    def test_only_large_products_are_quantised(self, tmp_path: Path) -> None:
        source = save_dit_pipeline(tmp_path / "source", attention_head_dim=32)
        assert convert(source, tmp_path / "bundle", "-q") == 0
        manifest = read_manifest(tmp_path / "bundle")
        (choices,) = manifest.components["transformer"].quantization
        parts = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2")
        wanted = {f"transformer_blocks.{layer}.{part}.weight" for layer in range(3) for part in parts}
        assert set(choices.tensors) == wanted
        load_bundle(tmp_path / "bundle").transformer()


class TestNames:
    def test_of_the_classes_arrive(self, tmp_path: Path) -> None:
        assert convert(save_dit_pipeline(tmp_path / "source"), tmp_path / "bundle") == 0
        names = tuple(LABELS.get(number, "") for number in range(CLASSES))
        assert read_manifest(tmp_path / "bundle").spec.conditioning == Label(names)

    def test_need_not_be_there(self, tmp_path: Path) -> None:
        assert convert(save_dit_pipeline(tmp_path / "source", labels=None), tmp_path / "bundle") == 0
        assert read_manifest(tmp_path / "bundle").spec.conditioning == Label(())


@pytest.fixture(scope="module", params=[True, False], ids=["routed", "dense"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Bundle]:
    folder = tmp_path_factory.mktemp("pair")
    source = save_dit_pipeline(folder / "source", routed=request.param)
    assert convert(source, folder / "bundle", "--dtype", "float32") == 0
    return source, load_bundle(folder / "bundle")


class TestAgainstTheCheckpoint:
    """The dense transformer and the VAE against diffusers' own classes, which know nothing of ours."""

    def test_transformer(self, pair: tuple[Path, Bundle]) -> None:
        source, bundle = pair
        latents = np.random.default_rng(1).standard_normal((2, 4, 12, 12), np.float32)
        model, labels = bundle.transformer(), (CLASSES, 207)
        conditions = model.prepare([mx.array(label) for label in labels], TIMESTEPS, 12, 12)
        run = conditions.start()
        for step, timestep in enumerate(TIMESTEPS):
            found = np.array(model(mx.array(latents.transpose(0, 2, 3, 1)), step, conditions, run))
            wanted = predict(source, latents, timestep, labels, routed=bundle.policy.has_routers)
            assert relative_error(found.transpose(0, 3, 1, 2)[:, :4], wanted) < EXACT_TOLERANCE

    def test_vae(self, pair: tuple[Path, Bundle]) -> None:
        source, bundle = pair
        model: Any = AutoencoderKL.from_pretrained(source / "vae", torch_dtype=torch.float32)
        latents = np.random.default_rng(2).standard_normal((1, 4, 16, 8), np.float32)
        with torch.no_grad():
            wanted = model.decode(torch.from_numpy(latents) / model.config.scaling_factor).sample.numpy()
        found = np.array(bundle.vae().decode(mx.array(latents.transpose(0, 2, 3, 1))))
        assert relative_error(found.transpose(0, 3, 1, 2), wanted) < EXACT_TOLERANCE


@torch.no_grad()
def predict(
    source: Path, latents: NDArray[np.float32], timestep: float, labels: tuple[int, ...], *, routed: bool
) -> NDArray[np.float32]:
    """Predict with the checkpoint; without the variance."""
    x, times, classes = torch.from_numpy(latents), torch.full((len(labels),), timestep), torch.tensor(labels)
    if routed:
        output = ReferencePipeline.load(source).model(x, times, {"labels": classes})
    else:
        model: Any = DiTTransformer2DModel.from_pretrained(source / "transformer", torch_dtype=torch.float32)
        output = model(x, times, classes).sample
    wanted: NDArray[np.float32] = output[:, :4].numpy()
    return wanted


def relative_error(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    assert found.shape == wanted.shape
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def test_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert(save_dit_pipeline(tmp_path / "source"), tmp_path / "bundle") == 0
    text = capsys.readouterr().out
    assert "bundle for mlx" in text
    assert "t  750..999" in text
    assert "text_encoder" not in text


@pytest.mark.parametrize(
    ("file", "change", "wanted"),
    [
        ("model_index.json", {"transformer": ["diffusers", "PixArtTransformer2DModel"]}, "of DiTTransformer2DModel"),
        ("model_index.json", {"id2label": {"1000": "beyond"}}, "names class 1000, the transformer has 1000"),
        ("transformer/config.json", {"norm_type": "ada_norm_single"}, "want 'ada_norm_zero'"),
        ("transformer/config.json", {"num_embeds_ada_norm": 999}, "class_embedder.embedding_table.weight, got"),
    ],
    ids=["class", "names", "norm", "classes"],
)
def test_refusals(
    tmp_path: Path, file: str, change: dict[str, Any], wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = save_dit_pipeline(tmp_path / "source", labels=None)
    edit_json(source / file, lambda config: config.update(change))
    capsys.readouterr()
    assert convert(source, tmp_path / "bundle") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: [")
    assert wanted in captured.err
    assert not (tmp_path / "bundle").exists()
