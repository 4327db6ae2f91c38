"""Decoding in diffusers' tiles: who turns it on, what a picture's file says, and the memory it saves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import mlx.core as mx
import numpy as np
import pytest
from click.testing import CliRunner, Result

import moddit
from mlx_moddit import cli
from mlx_moddit.estimate import Compute
from mlx_moddit.images import read_metadata
from mlx_moddit.info import describe
from mlx_moddit.pipeline import Pipeline
from moddit.manifest import read_manifest
from moddit.request import DEFAULT_VAE_TILE_SIZE

PROMPT: Final = "a large red circle"
FAST: Final = ("--prompt", PROMPT, "--steps", "1")
# Tiles of a quarter of the side compute a sixteenth at a time; beside them there is the picture itself.
PEAK_RATIO: Final = 1 / 4
PROCESS_SHARE: Final = 0.5  # of what MLX saves, the process must save; the rest is left to allocators


@pytest.fixture(autouse=True)
def work_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def generate(*arguments: str) -> Result:
    return CliRunner().invoke(cli.main, ["generate", *arguments])


def tile_of(name: str, *arguments: str) -> int | None:
    result = generate(*arguments, "-o", name)
    assert result.exit_code == 0, result.output
    return read_metadata(Path(name)).settings.vae_tile_size


def test_tiles_are_in_the_metadata_and_repeated(routed_bundle: Path) -> None:
    model = ("--model", str(routed_bundle), *FAST)
    assert tile_of("plain.png", *model) is None
    assert tile_of("tiled.png", *model, "--vae-tile-size", "16") == 16
    assert Path("tiled.png").read_bytes() != Path("plain.png").read_bytes()
    assert tile_of("again.png", "--config-from", "tiled.png") == 16
    assert Path("again.png").read_bytes() == Path("tiled.png").read_bytes()
    assert tile_of("other.png", "--config-from", "tiled.png", "--no-vae-tiling") is None
    assert Path("other.png").read_bytes() == Path("plain.png").read_bytes()


def test_a_picture_of_one_tile_is_the_same_file_with_and_without(routed_bundle: Path) -> None:
    model = ("--model", str(routed_bundle), *FAST)
    assert tile_of("plain.png", *model) is None
    assert tile_of("tiled.png", *model, "--vae-tiling") is None
    assert tile_of("frugal.png", *model, "--low-ram") is None
    assert Path("plain.png").read_bytes() == Path("tiled.png").read_bytes() == Path("frugal.png").read_bytes()


def test_low_ram_needs_no_tiles_but_repeats_those_of_a_picture(routed_bundle: Path) -> None:
    model = ("--model", str(routed_bundle), *FAST)
    assert tile_of("plain.png", *model) is None
    assert tile_of("frugal.png", *model, "--low-ram") is None
    assert Path("frugal.png").read_bytes() == Path("plain.png").read_bytes()
    assert tile_of("tiled.png", *model, "--low-ram", "--vae-tile-size", "24") == 24
    assert tile_of("again.png", "--config-from", "tiled.png", "--low-ram") == 24
    assert Path("again.png").read_bytes() == Path("tiled.png").read_bytes()
    assert tile_of("larger.png", "--config-from", "tiled.png", "--width", "48") == 24
    assert tile_of("whole.png", "--config-from", "tiled.png", "--low-ram", "--no-vae-tiling") is None
    assert Path("whole.png").read_bytes() == Path("plain.png").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--vae-tile-size", "20"), "vae_tile_size is not a multiple of 8 pixels, got 20, want 16 or 24"),
        (("--vae-tile-size", "16", "--no-vae-tiling"), "vae_tile_size 16 without effect, since vae_tiling is off"),
    ],
)
def test_tiles_that_cannot_be_are_one_line(routed_bundle: Path, arguments: tuple[str, ...], message: str) -> None:
    result = generate("--model", str(routed_bundle), *FAST, *arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert list(Path().iterdir()) == []


def test_pipeline_in_python_takes_the_same_settings(routed_bundle: Path) -> None:
    def run(low_ram: bool, **settings: Any) -> tuple[int | None, Any]:
        (picture,) = Pipeline.load(routed_bundle, low_ram=low_ram).generate(PROMPT, steps=1, **settings).pictures
        return picture.request.vae_tile_size, picture.pixels

    plain, tiled = run(False), run(False, vae_tile_size=16)
    assert (plain[0], tiled[0]) == (None, 16)
    assert not np.array_equal(plain[1], tiled[1])
    for low_ram, settings, wanted in (
        (False, {"vae_tiling": True}, plain),  # one tile of 512 pixels
        (True, {}, plain),
        (True, {"vae_tile_size": 16}, tiled),
    ):
        found = run(low_ram, **settings)
        assert found[0] == wanted[0]
        assert np.array_equal(found[1], wanted[1])


def test_tiles_bound_the_memory_of_a_process(table_bundle: Path) -> None:
    plain = measure(table_bundle)
    tiled = measure(table_bundle, "--vae-tile-size", "128")
    assert tiled["decode"] < PEAK_RATIO * plain["decode"]
    assert plain["process"] - tiled["process"] > PROCESS_SHARE * (plain["decode"] - tiled["decode"])


def measure(bundle: Path, *arguments: str) -> dict[str, int]:
    """Run a picture of 512 pixels in a process of its own; give the peak bytes of its stages and of the process."""
    size = ("--height", "512", "--width", "512", "--overwrite", "--json")
    command = [sys.executable, "-m", "mlx_moddit", "generate", "--model", str(bundle), *FAST, *size, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(moddit.__file__).parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    report = json.loads(done.stdout)
    return {stage["name"]: stage["peak_bytes"] for stage in report["stages"]} | {"process": report["peak_rss_bytes"]}


@pytest.mark.parametrize(("side", "tile"), [(128, 64), (128, 32)])
def test_memory_estimate_with_tiles_is_within_a_factor_of_two_on_a_cpu(
    dense_bundle: Path, side: int, tile: int
) -> None:
    compute = Compute(is_gpu=False, dtype="float32")
    estimate = describe(read_manifest(dense_bundle), compute, height=side, width=side, tile=tile)
    mx.clear_cache()
    result = Pipeline.load(dense_bundle, low_ram=True).generate(
        PROMPT, height=side, width=side, steps=1, vae_tile_size=tile
    )
    measured = next(cost.peak_bytes for cost in result.costs if cost.name == "decode")
    assert 0.5 < estimate["memory_estimate_bytes"]["decode_tiled"] / measured < 2


def test_info_estimates_with_and_without_tiles(table_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu, 0))
    arguments = ["info", "--model", str(table_bundle), "--height", "1024", "--width", "1024"]
    facts = json.loads(CliRunner().invoke(cli.main, [*arguments, "--json"], catch_exceptions=False).stdout)
    memory = facts["memory_estimate_bytes"]
    assert (facts["device"], facts["vae_tile_size"]) == ("gpu", DEFAULT_VAE_TILE_SIZE)
    assert memory["decode_tiled"] < memory["decode"] / 3
    assert memory["all_in_memory_tiled"] < memory["all_in_memory"]
    text = CliRunner().invoke(cli.main, [*arguments, "--vae-tile-size", "256"], catch_exceptions=False).stdout
    assert "tiled is with --vae-tiling and tiles of 256 pixels:" in text
    assert [line.split()[0] for line in text.splitlines() if line.startswith(("decode", "all"))] == [
        "decode",
        "decode_strips",
        "decode_tiled",
        "all_in_memory",
        "all_in_memory_strips",
        "all_in_memory_tiled",
    ]


def test_a_picture_of_one_tile_needs_the_same_memory(table_bundle: Path) -> None:
    compute = Compute(is_gpu=True, dtype=None)
    memory = describe(read_manifest(table_bundle), compute, height=512, width=256)["memory_estimate_bytes"]
    assert memory["decode_tiled"] == memory["decode"]
