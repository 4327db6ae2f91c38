"""What is planned for: checkpoints here and on a Hub, of which nothing but configuration is read."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from safetensors.torch import load_file
from torch import save as pickle

from mlx_moddit.planner.model import find_model
from moddit.checkpoint.description import describe
from moddit.checkpoint.hub import find_checkpoint
from moddit.checkpoint.weights import PICKLE_SUFFIXES
from moddit.errors import UnsupportedError
from tests.hub import COMMIT, Hub, serve
from tests.parity.published.base import edit, save
from tests.parity.published.weights import save_variant
from tests.tiny import save_dit_pipeline, save_pipeline

CONFIGURATIONS: Final = {
    "model_index.json",
    *(f"{name}/config.json" for name in ("transformer", "text_encoder", "vae")),
    "scheduler/scheduler_config.json",
}
WEIGHTS: Final = (".safetensors", *PICKLE_SUFFIXES)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with serve(tmp_path / "hub") as hub:
        yield hub


def run(hub: Hub, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a module that asks this hub, with an empty cache at first."""
    home = hub.folder.with_name("home")
    environment = {"HF_ENDPOINT": hub.address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", **environment}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)


def plan(hub: Hub, *arguments: str, **environment: str) -> dict[str, Any]:
    result = run(hub, "mlx_moddit", "plan", "--json", *arguments, **environment)
    assert result.returncode == 0, result.stderr
    facts: dict[str, Any] = json.loads(result.stdout)
    return facts


def without_weights(folder: Path) -> Path:
    for path in folder.rglob("*"):
        if path.suffix in WEIGHTS:
            path.unlink()
    return folder


def plain(folder: Path) -> Path:
    model = save(folder, sharded=True)
    (model / "vae/other.fp16.safetensors").write_bytes(b"not downloaded")
    (model / "README.md").write_text("not downloaded")
    return model


def partly_pickled(folder: Path) -> Path:
    model = save_variant(folder, "transformer", "text_encoder", sharded=True)
    weights = model / "vae/diffusion_pytorch_model.safetensors"
    pickle(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()
    return model


@pytest.mark.parametrize(("make", "options"), [(plain, ()), (partly_pickled, ("--variant", "fp16"))])
def test_what_a_plan_counts_is_what_a_conversion_downloads(
    tmp_path: Path, hub: Hub, make: Callable[[Path], Path], options: tuple[str, ...]
) -> None:
    shutil.copytree(make(tmp_path), tmp_path / "hub/owner/name")
    facts = plan(hub, "--model", "owner/name", *options)
    assert facts["model"] == f"owner/name@{COMMIT}"
    assert hub.downloaded() == CONFIGURATIONS
    result = run(hub, "convert", "mlx", "--hf-path", "owner/name", "--out", str(tmp_path / "bundle"), *options)
    assert result.returncode == 0, result.stderr
    sizes = {name: (tmp_path / "hub/owner/name" / name).stat().st_size for name in hub.downloaded()}
    assert facts["download"]["size"] == sum(sizes.values())
    assert facts["download"]["present"] == sum(sizes[name] for name in CONFIGURATIONS)
    assert facts["download"]["is_listed"]
    after = plan(hub, "--model", "owner/name", "--revision", COMMIT, *options)["download"]
    assert after["present"] == after["size"] == facts["download"]["size"]


def test_a_plan_without_a_network(tmp_path: Path, hub: Hub) -> None:
    """One line says so, unless the configuration was read before: then bytes follow from shapes."""
    model = save(tmp_path)
    shutil.copytree(model, tmp_path / "hub/owner/name")
    for environment in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        result = run(hub, "mlx_moddit", "plan", "--model", "owner/name", **environment)
        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr.startswith(
            "error: [source] owner/name: neither a folder here nor a repository that can be"
        )
        assert len(result.stderr.splitlines()) == 1
    listed = plan(hub, "--model", "owner/name")
    for environment in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        computed = plan(hub, "--model", "owner/name", **environment)
        assert computed["download"] == {"size": 4 * listed["parameters"], "present": 0, "is_listed": False}
        assert {**computed, "download": None} == {**listed, "download": None}


@pytest.mark.parametrize("make", [save_pipeline, save_dit_pipeline], ids=["text", "label"])
def test_configuration_says_what_the_whole_says(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    """The routing plan among it, of a folder with weights and without."""
    folder = make(tmp_path / "model")
    whole = describe(find_checkpoint(str(folder)).sources)
    with_weights = find_model(str(folder), None)
    assert with_weights.download.size == 0
    found = find_model(str(without_weights(folder)), None)
    for model in (with_weights, found):
        assert (model.manifest.spec, model.manifest.tokens) == (whole.spec, whole.policy)
        assert not model.manifest.tokens.is_dense
    stored = sum(math.prod(tensor.shape) for part in whole.parts.values() for tensor in part.tensors.values())
    assert found.download.size == 4 * stored
    assert not found.download.is_listed


def test_a_text_encoder_is_counted_in_the_dtype_it_was_saved_in(tmp_path: Path) -> None:
    folder = without_weights(save(tmp_path))
    sizes = []
    for dtype in ("float32", "bfloat16"):
        edit(folder / "text_encoder/config.json", dtype=dtype)
        sizes.append(find_model(str(folder), None).download.size)
    encoder = find_model(str(folder), None).manifest.components["text_encoder"].parameters
    assert sizes[0] - sizes[1] == 2 * encoder


def test_the_components_that_a_transformer_lacks_are_those_of_its_base(tmp_path: Path) -> None:
    folder = save(tmp_path / "whole")
    shutil.copytree(folder / "transformer", tmp_path / "alone")
    found = find_model(str(tmp_path / "alone"), None, base=str(without_weights(folder)))
    parts = found.manifest.components
    assert found.download.size == 4 * sum(parts[name].parameters for name in ("text_encoder", "vae"))


def test_options_of_a_checkpoint_are_refused_elsewhere(routed_bundle: Path) -> None:
    with pytest.raises(UnsupportedError, match=r"--revision is of a checkpoint, got .* is a bundle; leave it out"):
        find_model(str(routed_bundle), None, revision="main")
    with pytest.raises(
        UnsupportedError, match=r"--base is of a checkpoint, got --config dit-xl-2; name the checkpoint"
    ):
        find_model(None, "dit-xl-2", base="owner/name")


def test_a_file_of_weights_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "model")
    weights = folder / "transformer/diffusion_pytorch_model.safetensors"
    with pytest.raises(UnsupportedError, match=r"a file of weights, want a folder with a config\.json"):
        find_model(str(weights), None, base=str(folder))
