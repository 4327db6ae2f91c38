"""moddit-cli on Linux: what it prints of a bundle is what the Python side says."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from moddit.graphs import Graphs
from moddit.manifest import Manifest, verify_files, write_manifest
from moddit.samplers import build_table
from scripts.golden import EMBEDDED, ROOT
from scripts.golden_manifests import CASES, TOKENIZER_PATH, make_bundles

pytestmark = pytest.mark.slow  # builds the Swift package

NO_SWIFT = 77
SCRIPT = ROOT / "scripts/swift_linux.sh"
BUNDLES = make_bundles(EMBEDDED)


def run_cli(*words: str) -> subprocess.CompletedProcess[str]:
    """Run the program with the Swift that is installed; skip the test if there is none."""
    command = [str(SCRIPT), "run", "-j", "1", "moddit-cli", *words]
    environment = {**os.environ, "MODDIT_SWIFT_INSTALL": "0"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=900)
    if done.returncode == NO_SWIFT:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    return done


def read_json(*words: str) -> dict[str, Any]:
    done = run_cli(*words, "--json")
    assert done.returncode == 0, done.stderr
    value: dict[str, Any] = json.loads(done.stdout)
    return value


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Whole bundles: every file but the tokenizer holds its own path."""
    found = {}
    for name, manifest in BUNDLES.items():
        folder = tmp_path_factory.mktemp(name)
        for component in manifest.components.values():
            for info in component.files:
                path = folder / info.path
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(EMBEDDED.read_bytes() if info.path == TOKENIZER_PATH else info.path.encode())
        write_manifest(folder, manifest)
        verify_files(folder, manifest, hashes=True)
        found[name] = folder
    return found


def expected_steps(manifest: Manifest, sampler: str, steps: int, reuse: int, batch: int) -> list[dict[str, Any]]:
    graphs = manifest.graphs
    assert isinstance(graphs, Graphs)
    height, width = graphs.sizes[0]
    rows = []
    for index, step in enumerate(build_table(manifest.spec.scheduler, sampler, steps, reuse).steps):
        region = manifest.tokens.plan.region(step.timestep)
        item = graphs.step_function(height, width, batch, region)
        facts = {"step": index, "timestep": step.timestep, "region": region, "function": item.function}
        rows.append({**facts, "is_reused": step.is_reused, "capacities": list(item.capacities)})
    return rows


@pytest.mark.parametrize("name", CASES)
def test_schedule_is_pythons(name: str, folders: dict[str, Path]) -> None:
    manifest = BUNDLES[name]
    graphs = manifest.graphs
    assert graphs is not None
    cases: Sequence[tuple[list[str], str, int, int]] = (
        ([], manifest.spec.scheduler.sampler, 20, 1),
        (["--sampler", "euler", "--steps", "7", "--reuse", "3"], "euler", 7, 3),
    )
    for words, sampler, steps, reuse in cases:
        value = read_json("schedule", "--bundle", str(folders[name]), *words)
        batch = 2 if 2 in graphs.batches else 1
        assert value["sampler"] == sampler
        assert (value["height"], value["width"]) == graphs.sizes[0]
        assert value["steps"] == expected_steps(manifest, sampler, steps, reuse, batch)


def test_info_verifies_and_describes(folders: dict[str, Path]) -> None:
    value = read_json("info", "--bundle", str(folders["chain"]), "--verify")
    assert value["components"]["transformer"]["bits"] == 4
    assert [item["function"] for item in value["functions"]] == ["px32x32_batch2_region0_1", "px32x32_batch2_region2"]


def test_tokens_are_cut_at_the_bundles_length(folders: dict[str, Path]) -> None:
    ids = read_json("tokens", "a large red circle " * 9, "--bundle", str(folders["routed"]))["ids"]
    assert len(ids) == BUNDLES["routed"].spec.text_tokens
    assert ids[-1] == 1


def test_exit_status(folders: dict[str, Path], tmp_path: Path) -> None:
    assert run_cli("schedule").returncode == 2
    missing = run_cli("schedule", "--bundle", str(tmp_path))
    assert missing.returncode == 1
    assert "no such file" in missing.stderr
    assert missing.stdout == ""
