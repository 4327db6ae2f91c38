"""The whole road of a plan: learned by the fine-tuning, saved, converted, and drawn by MLX as by the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest
from click.testing import CliRunner
from PIL import Image

from moddit.manifest import read_manifest
from tests import tiny
from tests.parity.bridge import PICTURE_PSNRS, psnr, share_alike
from tests.parity.roads import run_mlx, run_reference, to_bundle
from tests.shards import save_shards
from tests.torch_moddit.test_edits import make_image, make_mask
from torch_moddit import cli
from torch_moddit.loading import load_checkpoint

PROMPT: Final = "A large red circle"
# 14 steps, which visit each of ten regions
SETTINGS: Final[dict[str, Any]] = {"seed": 3, "steps": 14, "height": 16, "width": 16}
TRAINING: Final = ("--steps", 6, "--batch-size", 2, "--warmup", 1, "--caption-dropout", 0, "--ratio-rate", 0.1)


@pytest.mark.parametrize(
    ("options", "means"),
    [
        (("--layerwise", "--target", 0.6), [0.6]),
        (("--regions", 10, "--target", 0.7), None),
        (("--regions", 10, "--target", 0.7, "--ratio-loss", 30), None),
        (("--target", "0.9,0.8,0.7,0.5"), [0.9, 0.8, 0.7, 0.5]),
    ],
)
def test_a_learned_plan_is_drawn_alike(tmp_path: Path, options: tuple[Any, ...], means: list[float] | None) -> None:
    dense = tiny.save_pipeline(tmp_path / "dense", routed=False)
    data = save_shards(tmp_path / "data", dense)
    arguments = ("--model", dense, "--data", data, "--out", tmp_path / "out", *TRAINING, *options)
    done = CliRunner().invoke(cli.command, list(map(str, arguments)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    folder = tmp_path / "out" / "model"
    plan = load_checkpoint(folder).policy.plan
    found = [sum(plan.row(region)) / (10 * plan.layers) for region in range(plan.regions)]
    if means is None:
        assert plan.regions == 10
        assert "--ratio-loss" in options or plan.mean_keep_ratio == pytest.approx(0.7)
    else:
        assert all(mean - 0.1 / plan.layers < value <= mean + 1e-9 for value, mean in zip(found, means, strict=True))
    bundle = to_bundle(folder, tmp_path / "bundle")
    assert read_manifest(bundle).tokens.plan == plan
    wanted = run_reference(folder, PROMPT, **SETTINGS)
    drawn = run_mlx(bundle, PROMPT, **SETTINGS)
    assert share_alike(drawn.kept, wanted.kept) == 1.0
    assert psnr(drawn.picture, wanted.picture) > PICTURE_PSNRS["float32"]


def test_what_learned_to_inpaint_is_converted_and_drawn_alike(tmp_path: Path) -> None:
    dense = tiny.save_pipeline(tmp_path / "dense", routed=False)
    (tmp_path / "photos").mkdir()
    for index in range(3):
        Image.fromarray(make_image(index)).save(tmp_path / "photos" / f"{index}.png")
        (tmp_path / "photos" / f"{index}.txt").write_text("a small blue square")
    arguments = ("--model", dense, "--images", tmp_path / "photos", "--out", tmp_path / "out", *TRAINING)
    options = ("--task", "inpaint", "--train", "lora", "--target", 0.6, "--height", 16, "--width", 16)
    done = CliRunner().invoke(cli.command, list(map(str, (*arguments, *options))), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert not (tmp_path / "out" / "adapter").exists()
    folder = tmp_path / "out" / "model"
    bundle = to_bundle(folder, tmp_path / "bundle")
    assert read_manifest(bundle).spec.transformer.inpaints
    settings = {**SETTINGS, "height": 40, "width": 24, "image": make_image(), "mask": make_mask()}
    wanted = run_reference(folder, PROMPT, **settings)
    drawn = run_mlx(bundle, PROMPT, **settings)
    assert share_alike(drawn.kept, wanted.kept) == 1.0
    assert psnr(drawn.picture, wanted.picture) > PICTURE_PSNRS["float32"]
