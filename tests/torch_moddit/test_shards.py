"""Datasets that were encoded before: held against the transformer that they are for, and read row by row."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from moddit.checkpoint.safetensors import format_header
from moddit.errors import FormatError, InputError, MissingError, ShapeError, ValueRangeError
from tests import tiny
from tests.shards import save_shards
from torch_moddit.architectures import dense
from torch_moddit.shards import Shards, read_names, write_latents

SPEC = dense(tiny.make_transformer(), 1000).spec
WIDTH = tiny.TEXT_WIDTH
LATENTS, TEXT, NULL = "16x16-00000.latents.safetensors", "16x16-00000.text.safetensors", "null.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_pipeline(tmp_path_factory.mktemp("model") / "m", routed=False)


@pytest.fixture
def folder(model: Path, tmp_path: Path) -> Path:
    return save_shards(tmp_path / "data", model, counts=(3, 0, 2), views=2)


def test_reads_every_view_of_every_picture(folder: Path) -> None:
    shards = Shards(folder, SPEC)
    assert (len(shards), shards.buckets) == (10, [10])
    rows = [load_file(folder / f"16x16-0000{index}.latents.safetensors") for index in range(3)]
    latents, std = (torch.cat([part[name] for part in rows]) for name in ("latents", "std"))
    for index in range(10):
        item = shards[index]
        assert torch.equal(item["latents"], latents[index])
        assert torch.equal(item["std"], std[index])
        assert (
            len(item["text"]) == len(item["mask"]) == (2, 2, 3, 3, 4, 4, 2, 2, 3, 3)[index]
        )  # as `save_shards` has it
    text = load_file(folder / TEXT)
    assert text["ends"].tolist() == [2, 5, 9]
    assert torch.equal(shards[3]["text"], text["text"][2:5])
    assert shards.null["text"].shape == (1, WIDTH)
    assert read_names(folder / LATENTS) == ([f"16x16-00000-{index}" for index in range(3)], {})


def test_sizes_are_told_where_the_transformer_has_them(model: Path, tmp_path: Path) -> None:
    spec = dense(tiny.make_transformer("alpha-micro"), 1000).spec
    item = Shards(save_shards(tmp_path / "data", model), spec)[0]
    assert item["resolution"].tolist() == [16, 16]
    assert item["aspect_ratio"].tolist() == [1]


def texts(ends: list[int], rows: int = 9) -> dict[str, torch.Tensor]:
    return {"text": torch.zeros(rows, WIDTH).half(), "ends": torch.tensor(ends)}


WRONG: list[tuple[str, dict[str, Any], type[InputError], str]] = [
    (LATENTS, {"latents": torch.zeros(6, 3, 8, 8)}, ShapeError, r"'latents' has shape .*, want \(any, 4, any, any\)"),
    (LATENTS, {"latents": torch.zeros(6, 4, 8)}, ShapeError, "'latents' has shape"),
    (LATENTS, {"latents": torch.zeros(6, 4, 3, 8)}, ShapeError, "'latents' is 3 x 8, want multiples of 2"),
    (LATENTS, {"latents": torch.zeros(6, 4, 0, 8)}, ShapeError, "'latents' is 0 x 8"),
    (LATENTS, {"latents": torch.zeros(6, 4, 8, 8, dtype=torch.float64)}, FormatError, "'latents' is F64, want F16"),
    (LATENTS, {"latents": torch.zeros(5, 4, 8, 8)}, ShapeError, "'latents' has 5 rows for 3 captions"),
    (LATENTS, {"latents": torch.zeros(0, 4, 8, 8)}, ShapeError, "'latents' has 0 rows for 3 captions"),
    (LATENTS, {"latents": torch.zeros(6, 4, 8, 8), "std": torch.zeros(6, 4, 8, 4)}, ShapeError, "'std' has shape"),
    (LATENTS, {"std": torch.zeros(6, 4, 8, 8)}, FormatError, r"has the tensors \['std'\], want \['latents'\]"),
    (TEXT, {"text": torch.zeros(9, 3), "ends": torch.tensor([2, 5, 9])}, ShapeError, r"want \(any, 32\)"),
    (TEXT, texts([2, 5, 8]), FormatError, "'ends' does not divide the 9 rows of 'text'"),
    (TEXT, texts([5, 2, 9]), FormatError, "'ends' does not divide"),
    (TEXT, texts([2, 2, 9]), FormatError, "'ends' does not divide"),
    (TEXT, texts([4097, 4098, 4099], 4099), FormatError, "'ends' does not divide"),
    (TEXT, {"text": torch.zeros(9, WIDTH).half(), "ends": torch.ones(3)}, FormatError, "'ends' is F32, want I64"),
    (TEXT, {"labels": torch.tensor([2, 5, 9])}, FormatError, r"has the tensors \['labels'\]"),
    (NULL, {"text": torch.zeros(1, 3).half()}, ShapeError, "'text' has shape"),
    (NULL, {"text": torch.full((1, WIDTH), torch.nan).half()}, ValueRangeError, "'text' is not finite"),
]


@pytest.mark.parametrize(("name", "tensors", "error", "message"), WRONG)
def test_what_does_not_fit_is_refused(
    name: str, tensors: dict[str, torch.Tensor], error: type[InputError], message: str, folder: Path
) -> None:
    halves = {
        key: value.half() if value.dtype == torch.float32 and key != "ends" else value for key, value in tensors.items()
    }
    save_file(halves, folder / name)
    with pytest.raises(error, match=rf"\[data\] .*{name}: .*{message}"):
        Shards(folder, SPEC)


@pytest.mark.parametrize("tensors", [{"latents": (4, 4, 8, 4)}, {"latents": (4, 4, 8, 8)}])
def test_shards_of_one_size_have_samples_of_one_shape(tensors: dict[str, tuple[int, ...]], folder: Path) -> None:
    name = "16x16-00002.latents.safetensors"
    save_file({key: torch.zeros(shape).half() for key, shape in tensors.items()}, folder / name)
    with pytest.raises(ShapeError, match=rf"{name}: has samples of shapes .* as in its first shard"):
        Shards(folder, SPEC)


def test_labels_are_those_of_the_model(tmp_path: Path) -> None:
    model = tiny.save_dit_pipeline(tmp_path / "model", routed=False)
    folder = save_shards(tmp_path / "data", model)
    spec = dense(tiny.make_dit(), 1000).spec
    assert Shards(folder, spec)[7]["labels"].dtype == torch.int64  # as an embedding takes them
    assert int(Shards(folder, spec).null["labels"]) == 1000
    for labels in ([0] * 7 + [1001], [-1] * 8):
        save_file({"labels": torch.tensor(labels)}, folder / "16x16-00000.label.safetensors")
        with pytest.raises(ValueRangeError, match=rf"has values {min(labels)}..{max(labels)}, want .* 0\.\.1000"):
            Shards(folder, spec)


def test_numbers_that_are_not_finite_are_found_when_they_are_read(folder: Path) -> None:
    latents = load_file(folder / LATENTS)
    latents["latents"][4, 0, 0, 0] = torch.inf
    save_file(latents, folder / LATENTS)
    shards = Shards(folder, SPEC)
    assert shards[3]
    with pytest.raises(ValueRangeError, match=rf"{LATENTS}: tensor 'latents' is not finite"):
        shards[4]
    with pytest.raises(ValueRangeError, match="latents is not finite in float16; compute it in another precision"):
        write_latents(folder / "new", torch.full((1, 4, 8, 8), 1e6), None, ["a"], {})
    assert not (folder / "new").exists()


def test_folders_that_lack_something_are_refused(model: Path, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"dataset\.json: no such file; want a folder that .* has made"):
        Shards(tmp_path, SPEC)
    with pytest.raises(MissingError, match="has no pictures"):
        Shards(save_shards(tmp_path / "empty", model, counts=(0,)), SPEC)
    (folder / TEXT).unlink()
    with pytest.raises(MissingError, match=rf"1 of 6 files are not there yet, such as {TEXT}; repeat the command"):
        Shards(folder, SPEC)
    record = json.loads((folder / "dataset.json").read_text())
    many = {"height": 16, "width": 16, "shards": 10**9}
    changes: list[dict[str, Any]] = [{"version": 2}, {"buckets": []}, {"buckets": [many]}]
    for change in changes:
        (folder / "dataset.json").write_text(json.dumps(record | change))
        with pytest.raises(InputError, match=r"dataset\.json: "):
            Shards(folder, SPEC)


def _make_bomb(path: Path) -> None:
    """Claim a terabyte."""
    path.write_bytes(format_header([("latents", "F16", (1 << 30, 4, 8, 8))], {}))


@pytest.mark.parametrize("name", [LATENTS, TEXT, NULL, "dataset.json"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"nothing at all"),
        lambda path: path.mkdir(),
        lambda path: os.mkfifo(path),
        lambda path: path.symlink_to("/dev/zero"),
        _make_bomb,
    ],
)
def test_files_that_are_none_are_refused_at_once(name: str, spoil: Callable[[Path], object], folder: Path) -> None:
    (folder / name).unlink()
    spoil(folder / name)
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        Shards(folder, SPEC)


@pytest.mark.parametrize("metadata", [None, {}, {"names": "[", "skipped": "{}"}, {"names": "[]", "skipped": "[]"}])
def test_metadata_that_are_damaged_are_refused(metadata: dict[str, str] | None, folder: Path) -> None:
    save_file(load_file(folder / LATENTS), folder / LATENTS, metadata=metadata)
    with pytest.raises(FormatError, match=rf"{LATENTS}: metadata are damaged"):
        read_names(folder / LATENTS)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_memory_does_not_grow_with_the_data(model: Path, tmp_path: Path) -> None:
    """Twelve gigabytes, of which the disk holds next to nothing, and memory what is asked for."""
    count, length = 200_000, 120
    folder = save_shards(tmp_path / "data", model, counts=(0,))
    files: dict[str, list[tuple[str, str, tuple[int, ...]]]] = {
        LATENTS: [("latents", "F16", (count, 4, 64, 64)), ("std", "F16", (count, 4, 64, 64))],
        TEXT: [("ends", "I64", (count,)), ("text", "F16", (count * length, WIDTH))],
    }
    for name, tensors in files.items():
        with (folder / name).open("wb") as file:
            file.write(format_header(tensors, {}))
            if name == TEXT:
                file.write((torch.arange(1, count + 1) * length).numpy().data)
            sizes = [torch.Size(shape).numel() * (8 if dtype == "I64" else 2) for _, dtype, shape in tensors]
            file.truncate(len(format_header(tensors, {})) + sum(sizes))
    assert sum((folder / name).stat().st_size for name in files) > 12e9
    before = resident()
    shards = Shards(folder, SPEC)
    assert len(shards) == count
    chance = random.Random(0)
    for _ in range(2000):
        assert shards[chance.randrange(count)]["text"].shape == (length, WIDTH)
    assert resident() - before < 50e6


def resident() -> int:
    """Bytes of memory that this process holds, mapped files included."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
