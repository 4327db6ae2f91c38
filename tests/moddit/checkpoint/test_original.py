"""PixArt's own names: matrices divided, dimensions inferred, DiffCR's learned ratios snapped to a plan."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from torch import Tensor

from convert.cli import main
from moddit.checkpoint.description import describe, describe_transformer
from moddit.checkpoint.sources import Sources
from moddit.errors import FormatError, InputError, ShapeError, UnsupportedError, ValueRangeError
from moddit.manifest import read_manifest
from tests import tiny
from tests.parity.bridge import psnr
from tests.parity.published.base import save
from tests.parity.published.original import original_names
from tests.parity.roads import run_mlx
from torch_moddit.loading import load_checkpoint
from torch_moddit.pipeline import ReferencePipeline

LAYERS: Final = 3
BINS: Final = torch.arange(1.0, 0.2, -0.1)  # as in the authors' pseudo-code: 1.0 ... 0.3
Change = Callable[[dict[str, Any]], object]


def write(folder: Path, ratios: Tensor, change: Change | None = None, *, router: str = "router") -> Sources:
    """Write a routed transformer as DiffCR's training code saves one, beside a pipeline for the rest."""
    tensors = original_names({**tiny.make_transformer(seed=8).state_dict(), **tiny.router_weights(LAYERS, 48)})
    tensors = {name.replace(".router.", f".{router}."): value for name, value in tensors.items()}
    for layer in range(LAYERS):
        tensors[f"blocks.{layer}.diff_mod_ratio"] = ratios[layer]
        tensors[f"blocks.{layer}.kept_ratio_candidate"] = BINS
    if change is not None:
        change(tensors)
    torch.save({"state_dict": tensors}, folder / "diffcr.pth")
    return Sources(folder / "diffcr.pth", save(folder))


def expected_tenths(ratio: float) -> int:
    """The authors' rule: clamp to 0.1..1, then the nearest candidate, the first of several."""
    distances = torch.abs(BINS - min(max(ratio, 0.1), 1.0))
    return round(10 * float(BINS[torch.argmin(distances)]))


@pytest.mark.parametrize("router", ["router", "mod_router"])
def test_ratios_snap_to_the_nearest_candidate(tmp_path: Path, router: str) -> None:
    ratios = torch.tensor([[1.0, 0.74, 0.42, 0.31], [0.58, 0.12, -3.0, 1.7], [0.349, 0.36, 0.99, 0.94]])
    found = describe_transformer(write(tmp_path, ratios, router=router))
    assert found.policy.has_routers
    assert found.policy.plan.keep_tenths == tuple(tuple(map(expected_tenths, row)) for row in ratios.tolist())
    assert found.policy.plan.num_train_timesteps == 1000
    assert {"blocks.0.diff_mod_ratio", "blocks.0.kept_ratio_candidate"} <= found.part.unused.keys()


@pytest.mark.parametrize("shape", [(), (1,)])
def test_layer_wise_ratios_are_one_region(tmp_path: Path, shape: tuple[int, ...]) -> None:
    ratios = torch.tensor([0.8, 0.5, 0.3]).reshape(LAYERS, *shape)
    found = describe_transformer(write(tmp_path, ratios))
    assert found.policy.plan.keep_tenths == ((8,), (5,), (3,))


def test_without_candidates_every_tenth_may_be_kept(tmp_path: Path) -> None:
    def change(tensors: dict[str, Any]) -> None:
        for layer in range(LAYERS):
            del tensors[f"blocks.{layer}.kept_ratio_candidate"]

    found = describe_transformer(write(tmp_path, torch.tensor([0.12, 0.26, 0.05]), change))
    assert found.policy.plan.keep_tenths == ((1,), (3,), (1,))


def test_equals_the_same_weights_in_diffusers_layout(tmp_path: Path) -> None:
    """The same routed model in both layouts: equal tensors, plan and pictures, in PyTorch and on MLX."""
    tenths = tiny.random_tenths(LAYERS, 4)
    tenths = [[max(3, item) for item in row] for row in tenths]
    sources = write(tmp_path, torch.tensor(tenths) / 10)
    other = tiny.save_pipeline(tmp_path / "other", keep_tenths=tenths)
    tiny.make_transformer(seed=8).save_pretrained(other / "transformer")
    tiny.add_routing(other, tenths)
    one, two = load_checkpoint(sources), load_checkpoint(other)
    assert one.policy == two.policy
    wanted = two.transformer.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in one.transformer.state_dict().items())
    prompt: str = "a red circle"
    settings: dict[str, Any] = {"seed": 1, "steps": 3, "height": 32, "width": 32}
    picture = ReferencePipeline.load(other).generate(prompt, **settings)
    assert np.array_equal(ReferencePipeline.load(sources).generate(prompt, **settings), picture)
    arguments = ["--from", "hf-checkpoint", "--hf-path", str(sources.main), "--base", str(sources.base)]
    assert main([*arguments, "--out", str(tmp_path / "bundle"), "--dtype", "float32"]) == 0
    assert psnr(run_mlx(tmp_path / "bundle", prompt, **settings).picture, picture) > 55
    assert main([*arguments, "--out", str(tmp_path / "ml"), "--to", "coreml", "--max-sequence-length", "16"]) == 0
    assert read_manifest(tmp_path / "ml").tokens == two.policy


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda t: t.pop("blocks.1.router.weight"), ShapeError, "missing     transformer_blocks.1.router.weight"),
        (lambda t: t.pop("blocks.1.diff_mod_ratio"), FormatError, "3 routers and 2 diff_mod_ratio"),
        (
            lambda t: [t.pop(f"blocks.{layer}.router.weight") for layer in range(LAYERS)],
            FormatError,
            "0 routers and 3 diff_mod_ratio",
        ),
        (lambda t: t.update({"blocks.1.diff_mod_ratio": torch.ones(2)}), ShapeError, r"has \[2, 4\] regions"),
        (lambda t: t.update({"blocks.1.diff_mod_ratio": torch.full((4,), torch.nan)}), ValueRangeError, "is .*nan"),
        (
            lambda t: t.update({"blocks.1.kept_ratio_candidate": torch.tensor([1.0, 0.25])}),
            UnsupportedError,
            "want tenths",
        ),
        (lambda t: t.update({"blocks.0.attn.qkv.weight": torch.ones(10, 48)}), ShapeError, "has 10 rows, want 3 equal"),
        (lambda t: t.pop("x_embedder.proj.bias"), ShapeError, "missing     pos_embed.proj.bias"),
        (
            lambda t: t.update({"blocks.0.attn.q_norm.weight": torch.ones(24)}),
            UnsupportedError,
            "no normalised",
        ),
    ],
)
def test_damage(tmp_path: Path, change: Change, error: type[InputError], message: str) -> None:
    with pytest.raises(error, match=message):
        describe_transformer(write(tmp_path, torch.full((LAYERS, 4), 0.5), change))


def test_what_the_conversion_says_about_it(tmp_path: Path) -> None:
    description = describe(write(tmp_path, torch.full((LAYERS, 4), 0.5)))
    (note,) = description.notes
    assert note == "original layout of PixArt: 2 heads, trained at 32 pixels, positions scaled by 2"
    assert description.unused["transformer/y_embedder.y_embedding"].startswith("training only")
    assert set(description.files) >= {"diffcr.pth", "base/model_index.json", "base/text_encoder/model.safetensors"}


@pytest.mark.parametrize(
    ("key", "value"),
    [("num_attention_heads", "x"), ("sample_size", [16]), ("interpolation_scale", 0), ("sample_size", 1e9)],
)
def test_a_damaged_configuration_beside_it_is_named(tmp_path: Path, key: str, value: Any) -> None:
    sources = write(tmp_path, torch.full((LAYERS, 4), 0.5))
    assert sources.base is not None
    path = sources.base / "transformer" / "config.json"
    path.parent.mkdir(exist_ok=True)
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(known | {key: value}))
    with pytest.raises(InputError, match=rf"config\.json of its pipeline: {key} is"):
        describe_transformer(sources)
