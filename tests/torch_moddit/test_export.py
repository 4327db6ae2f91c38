"""Checkpoints: written whole, read back equal, refused when damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoModel, DiffusionPipeline, PixArtTransformer2DModel
from safetensors.torch import load_file, save_file

from moddit.errors import (
    FormatError,
    MissingError,
    ModditError,
    OutputExistsError,
    ShapeError,
    StorageError,
    UnsupportedError,
    ValueRangeError,
)
from moddit.routing import RoutingPlan
from moddit.tensors import KEEP_RATIO
from moddit.tokens import TokenPolicy
from tests import tiny
from torch_moddit.architectures import dense
from torch_moddit.export import save_checkpoint
from torch_moddit.loading import load_checkpoint
from torch_moddit.pipeline import ReferencePipeline
from torch_moddit.pixart import RoutedPixArt

PLAN = RoutingPlan(((10, 9, 8, 7), (3, 2, 1, 1), (5, 5, 5, 5)))


def routed() -> RoutedPixArt:
    transformer = tiny.make_transformer()
    model = RoutedPixArt(transformer, TokenPolicy.topk(PLAN))
    transformer.load_state_dict(tiny.router_weights(3, 48), strict=False)
    return model


def read_keep_ratios(folder: Path) -> torch.Tensor:
    found: dict[str, torch.Tensor] = {}
    for path in (folder / "transformer").glob("*.safetensors"):
        found |= load_file(path)
    return torch.stack([found[KEEP_RATIO.format(layer=layer)] for layer in range(PLAN.layers)])


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "transformer" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("shard_size", ["10GB", "100KB"])
def test_round_trip(tmp_path: Path, shard_size: str) -> None:
    model, ratios = routed(), torch.rand(3, 4) * 0.8 + 0.1
    save_checkpoint(tmp_path / "m", model, keep_ratio=ratios, max_shard_size=shard_size)
    loaded = load_checkpoint(tmp_path / "m")
    assert loaded.policy.plan == PLAN
    assert dict(loaded.transformer.config).items() >= {"num_layers": 3, "sample_size": 16}.items()
    wanted = model.transformer.state_dict()
    found = loaded.transformer.state_dict()
    assert wanted.keys() == found.keys()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert torch.equal(read_keep_ratios(tmp_path / "m"), ratios)
    assert len(list((tmp_path / "m/transformer").glob("*.safetensors"))) == (1 if shard_size == "10GB" else 7)


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("sharded", [False, True])
def test_reads_folders_made_by_diffusers(tmp_path: Path, kind: str, sharded: bool) -> None:
    tiny.save_pipeline(tmp_path / "dense", kind=kind, routed=False, sharded=sharded)
    model = load_checkpoint(tmp_path / "dense")
    assert model.policy.is_dense
    tiny.save_pipeline(tmp_path / "routed", kind=kind, sharded=sharded, dtype="bfloat16")
    model = load_checkpoint(tmp_path / "routed" / "transformer")
    assert model.policy.plan == RoutingPlan(tuple(tuple(row) for row in tiny.random_tenths(3, 4)))
    assert next(model.parameters()).dtype == torch.float32


def test_dense_export_is_a_plain_diffusers_folder(tmp_path: Path) -> None:
    source = tiny.save_pipeline(tmp_path / "source", routed=False)
    model = load_checkpoint(source)
    save_checkpoint(tmp_path / "copy", model, source=source)
    pipeline = DiffusionPipeline.from_pretrained(tmp_path / "copy")
    wanted = model.transformer.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in pipeline.transformer.state_dict().items())


def test_half_precision_leaves_the_ratios(tmp_path: Path) -> None:
    pipeline = tiny.make_pipeline()
    ratios = torch.full((3, 4), 0.1 + 1e-4)
    save_checkpoint(tmp_path / "m", routed(), pipeline=pipeline, keep_ratio=ratios, dtype=torch.float16)
    weights = load_file(tmp_path / "m/transformer/diffusion_pytorch_model.safetensors")
    kinds = {name.rsplit(".", 1)[-1] == "keep_ratio": value.dtype for name, value in weights.items()}
    assert kinds == {True: torch.float32, False: torch.float16}
    assert torch.equal(read_keep_ratios(tmp_path / "m"), ratios)
    reference = ReferencePipeline.load(tmp_path / "m")
    assert reference.model.policy.plan == PLAN
    assert load_file(tmp_path / "m/vae/diffusion_pytorch_model.safetensors")["encoder.conv_in.weight"].dtype == (
        torch.float16
    )
    assert next(pipeline.vae.parameters()).dtype == torch.float32


def test_leftovers_are_left_out_as_in_diffusers(tmp_path: Path) -> None:
    folder = tiny.save_pipeline(tmp_path / "m")
    wanted = load_checkpoint(folder).transformer.state_dict()
    _rewrite(folder, lambda t: t.update({"caption_projection.y_embedding": torch.zeros(120, 4096)}))
    found = load_checkpoint(folder).transformer.state_dict()
    assert found.keys() == wanted.keys()


@pytest.mark.parametrize("with_pipeline", [False, True])
def test_stock_diffusers_refuses_a_routed_folder(with_pipeline: bool, tmp_path: Path) -> None:
    source = tiny.save_pipeline(tmp_path / "source", routed=False)
    pipeline = tiny.make_pipeline() if with_pipeline else None
    save_checkpoint(tmp_path / "m", routed(), source=None if with_pipeline else source, pipeline=pipeline)
    with pytest.raises((AttributeError, ImportError, ValueError), match="RoutedPixArtTransformer2DModel"):
        DiffusionPipeline.from_pretrained(tmp_path / "m")
    with pytest.raises(NotImplementedError, match="routed_ada_norm_single"):
        PixArtTransformer2DModel.from_pretrained(tmp_path / "m" / "transformer")
    with pytest.raises((AttributeError, ImportError, ValueError), match="RoutedPixArtTransformer2DModel"):
        AutoModel.from_pretrained(tmp_path / "m" / "transformer")
    assert load_checkpoint(tmp_path / "m").policy.plan == PLAN
    assert ReferencePipeline.load(tmp_path / "m").model.policy.plan == PLAN


def test_the_name_that_routed_folders_had_before_is_read(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "m", routed())
    edit_config(tmp_path / "m", _class_name="PixArtTransformer2DModel", norm_type="ada_norm_single")
    assert load_checkpoint(tmp_path / "m").policy.plan == PLAN


def test_refuses_to_overwrite(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "m", routed())
    with pytest.raises(OutputExistsError):
        save_checkpoint(tmp_path / "m", routed())
    save_checkpoint(tmp_path / "m", dense(tiny.make_transformer(), 1000), overwrite=True)
    assert load_checkpoint(tmp_path / "m").policy.is_dense
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch_moddit.export.write_tensors", full)
    with pytest.raises(StorageError, match="disk is full"):
        save_checkpoint(tmp_path / "m", routed())
    assert list(tmp_path.iterdir()) == []


def _rewrite(folder: Path, change: Any) -> None:
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def _truncate(folder: Path) -> None:
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _drop_plan(folder: Path) -> None:
    path = folder / "transformer" / "config.json"
    config = json.loads(path.read_text())
    del config["diffcr"]
    path.write_text(json.dumps(config))


def _name_another_class(folder: Path) -> None:
    path = folder / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"transformer": ["diffusers", "DiTTransformer2DModel"]}))


DAMAGE: dict[str, tuple[Any, type[ModditError], str]] = {
    "router missing": (
        lambda m: _rewrite(m, lambda t: t.pop("transformer_blocks.1.router.weight")),
        ShapeError,
        "missing     transformer_blocks.1.router.weight",
    ),
    "unexpected": (
        lambda m: _rewrite(m, lambda t: t.update({"extra.weight": t.pop("proj_out.bias")})),
        ShapeError,
        "unexpected  extra.weight",
    ),
    "mis-shaped": (
        lambda m: _rewrite(m, lambda t: t.update({"proj_out.bias": torch.zeros(2)})),
        ShapeError,
        "mis-shaped  proj_out.bias",
    ),
    "nan": (
        lambda m: _rewrite(m, lambda t: t["proj_out.bias"].fill_(float("nan"))),
        ValueRangeError,
        "proj_out.bias",
    ),
    "ratio shape": (
        lambda m: _rewrite(m, lambda t: t.update({"transformer_blocks.0.keep_ratio": torch.ones(2)})),
        ShapeError,
        "has shape \\[2\\], want \\[4\\]",
    ),
    "ratio value": (
        lambda m: _rewrite(m, lambda t: t.update({"transformer_blocks.0.keep_ratio": torch.full((4,), float("nan"))})),
        ValueRangeError,
        "want ratios of 0.1..1.0",
    ),
    "plan lost": (
        lambda m: edit_config(m, diffcr={"regions": 4, "keep_tenths": [[5] * 4] * 3}),
        FormatError,
        "lacks 'num_train_timesteps'",
    ),
    "plan layers": (
        lambda m: edit_config(m, diffcr=RoutingPlan.uniform(2, 4, 5).to_json()),
        ShapeError,
        "has 2 layers, want 3",
    ),
    "dense with routers": (
        _drop_plan,
        FormatError,
        "has routers, but config.json has no 'diffcr' object",
    ),
    "architecture": (_name_another_class, UnsupportedError, "'DiTTransformer2DModel' is not implemented"),
    "truncated": (_truncate, FormatError, "truncated"),
    "no config": (lambda m: (m / "transformer/config.json").unlink(), MissingError, "config.json"),
    "no weights": (
        lambda m: (m / "transformer/diffusion_pytorch_model.safetensors").unlink(),
        MissingError,
        "no such file, nor an index of shards",
    ),
    "not json": (lambda m: (m / "transformer/config.json").write_text("{"), FormatError, "not JSON"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_checkpoints_are_refused(tmp_path: Path, name: str) -> None:
    damage, error, message = DAMAGE[name]
    tiny.save_pipeline(tmp_path / "m")
    load_checkpoint(tmp_path / "m")
    damage(tmp_path / "m")
    with pytest.raises(error, match=message):
        load_checkpoint(tmp_path / "m")


def test_a_lost_shard_is_refused(tmp_path: Path) -> None:
    tiny.save_pipeline(tmp_path / "m", sharded=True)
    sorted((tmp_path / "m/transformer").glob("*.safetensors"))[0].unlink()
    with pytest.raises(MissingError, match="lists it"):
        load_checkpoint(tmp_path / "m")
