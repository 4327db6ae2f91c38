"""The golden files of the Swift package are what this repository computes now."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from moddit import golden
from moddit.manifest import Manifest, fingerprint
from moddit.metadata import Metadata, ModelReference
from moddit.request import Request
from moddit.sampling import is_guided
from scripts import golden_pipeline
from scripts.golden import EMBEDDED, FOLDER, TOKENIZER, write
from scripts.golden_captions import COUNT, make_captions
from scripts.golden_manifests import CASES, make_bundles

MOST_BYTES = 900_000  # of all files: they are in the repository


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden")
    write(folder)
    return folder


def test_the_same_files(written: Path) -> None:
    committed = {path.name for path in FOLDER.iterdir()}
    assert committed == {path.name for path in written.iterdir()} | {TOKENIZER}
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= MOST_BYTES


@pytest.mark.skipif(platform.system() != "Linux", reason="logarithms differ in their last digit between systems")
def test_goldens_are_not_stale(written: Path) -> None:
    stale = [path.name for path in written.iterdir() if path.read_bytes() != (FOLDER / path.name).read_bytes()]
    assert not stale, f"{sorted(stale)} changed: run `make golden`, and read the difference before you commit it"


@pytest.mark.parametrize("make", golden.FILES.values(), ids=golden.FILES)
def test_making_is_repeatable(make: Callable[[], dict[str, object]]) -> None:
    assert golden.format_golden(make()) == golden.format_golden(make())


def test_format_is_json_with_a_line_an_item() -> None:
    text = golden.format_golden({"a": [[1, "é"], {"b": None}], "c": 0.1})
    assert json.loads(text) == {"a": [[1, "é"], {"b": None}], "c": 0.1}
    assert text.splitlines() == ["{", '"a":[', '[1,"é"],', '{"b":null}', "],", '"c":0.1', "}"]


def test_float32_is_written_with_few_digits() -> None:
    values = np.array([0.1, -1e-8, 3.4e38], np.float32)
    (cases,) = golden.make_guidance().values()
    assert [np.float32(float(str(value))) for value in values] == list(values)
    assert all(len(str(value)) <= 15 for case in cases for value in case[2])


def test_captions_are_many_and_of_many_scripts() -> None:
    captions = make_captions()
    assert len(set(captions)) == len(captions) == COUNT
    assert len({character for caption in captions for character in caption}) > 2000


def test_the_trained_tokenizer_has_a_map_of_characters() -> None:
    value = json.loads((FOLDER / TOKENIZER).read_text(encoding="utf-8"))
    assert value["normalizer"]["type"] == "Precompiled"
    assert len(value["normalizer"]["precompiled_charsmap"]) > 300_000
    assert [token["content"] for token in value["added_tokens"]][:3] == ["<pad>", "</s>", "<unk>"]


@pytest.mark.parametrize("name", CASES)
def test_the_fingerprint_in_a_file_is_of_what_the_file_says(name: str) -> None:
    found = json.loads((FOLDER / "manifests.json").read_text(encoding="utf-8"))["manifests"]
    (value,) = (item["manifest"] for item in found if item["name"] == name)
    manifest = Manifest.from_json(value, name)
    assert value["fingerprint"] == fingerprint(manifest.spec, manifest.tokens, manifest.components)


def test_metadata_is_the_runtimes() -> None:
    bundles = make_bundles(EMBEDDED)
    runs = json.loads((FOLDER / "pipelines.json").read_text(encoding="utf-8"))["runs"]
    for run in runs:
        reference = ModelReference.of(bundles[run["bundle"]], golden_pipeline.MODEL_PATH)
        metadata = Metadata(Request(**run["settings"]), reference, "float16", golden_pipeline.VERSIONS)
        assert run["metadata"] == json.dumps(metadata.to_json(), sort_keys=True)
        assert run["parameters"] == metadata.describe()


def test_runs_cover_every_way_to_call_a_step() -> None:
    runs = json.loads((FOLDER / "pipelines.json").read_text(encoding="utf-8"))["runs"]
    calls = {(run["bundle"], is_guided(run["settings"]["guidance_scale"]), len(run["calls"][0][2])) for run in runs}
    assert calls == {
        ("routed", True, 2),
        ("routed", False, 1),
        ("dense", True, 1),
        ("dense", False, 1),
        ("chain", True, 2),
        ("chain", False, 2),
        ("labels", True, 2),
        ("labels", False, 2),
    }
