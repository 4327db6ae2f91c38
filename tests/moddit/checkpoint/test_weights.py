"""Which of several weight files counts: as diffusers and transformers choose, checked against them."""

from __future__ import annotations

import json
import math
import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.numpy import save_file
from transformers import T5EncoderModel

from moddit.bounds import JSON_BYTES
from moddit.checkpoint.precision import widen
from moddit.checkpoint.weights import DIFFUSERS, TRANSFORMERS, Naming, Weights, read_config, read_json, read_weights
from moddit.errors import FormatError, InputError, MissingError, UnsupportedError
from tests import tiny

NAMING = pytest.mark.parametrize("naming", [DIFFUSERS, TRANSFORMERS], ids=["diffusers", "transformers"])
PROBE = {"diffusers": "encoder.conv_in.bias", "transformers": "encoder.final_layer_norm.weight"}
Values = Mapping[str, float]


def save(path: Path, values: Values) -> None:
    """Save tensors of one number each, in the format of the file's suffix."""
    arrays = {name: np.array([value], np.float32) for name, value in values.items()}
    if path.suffix == ".safetensors":
        save_file(arrays, path)
    else:
        torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, path)


def pack(path: Path, changes: Mapping[str, bytes], kind: int) -> None:
    """Write a zip archive again, with other contents of the members whose names end so."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, content in members.items():
            archive.writestr(name, changes.get(Path(name).name, content) if "/data/" in name else content)


def save_shards(folder: Path, index: str, shards: Mapping[str, Values], extra: Mapping[str, str] | None = None) -> None:
    for name, values in shards.items():
        save(folder / name, values)
    weight_map = {name: file for file, values in shards.items() for name in values} | dict(extra or {})
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def read(weights: Weights) -> dict[str, float]:
    return {name: float(widen(tensor.read(), tensor.dtype).item()) for name, tensor in weights.tensors.items()}


@NAMING
def test_one_file(naming: Naming, tmp_path: Path) -> None:
    save(tmp_path / naming.safe, {"a": 1, "b": 2})
    weights = read_weights(tmp_path, naming)
    assert read(weights) == {"a": 1, "b": 2}
    assert weights.files == (tmp_path / naming.safe,)
    assert weights.notes == ()


@NAMING
def test_shards(naming: Naming, tmp_path: Path) -> None:
    save_shards(tmp_path, f"{naming.safe}.index.json", {"x-1.safetensors": {"a": 1}, "x-2.safetensors": {"b": 2}})
    weights = read_weights(tmp_path, naming)
    assert read(weights) == {"a": 1, "b": 2}
    assert [file.name for file in weights.files] == [f"{naming.safe}.index.json", "x-1.safetensors", "x-2.safetensors"]


@NAMING
def test_an_index_that_says_too_much_or_too_little(naming: Naming, tmp_path: Path) -> None:
    shards = {"x-1.safetensors": {"a": 1}, "x-2.safetensors": {"b": 2, "unlisted": 3}}
    save_shards(tmp_path, f"{naming.safe}.index.json", shards, {"alias": "x-1.safetensors"})
    index = read_json(tmp_path / f"{naming.safe}.index.json")
    del index["weight_map"]["unlisted"]
    (tmp_path / f"{naming.safe}.index.json").write_text(json.dumps(index))
    assert read(read_weights(tmp_path, naming)) == {"a": 1, "b": 2, "unlisted": 3}


@NAMING
def test_a_tensor_in_two_shards_is_that_of_the_later(naming: Naming, tmp_path: Path) -> None:
    shards = {"x-1.safetensors": {"a": 1}, "x-2.safetensors": {"a": 5, "b": 2}}
    save_shards(tmp_path, f"{naming.safe}.index.json", shards, {"other": "x-1.safetensors"})
    weights = read_weights(tmp_path, naming)
    assert read(weights) == {"a": 5, "b": 2}
    assert weights.notes == (f"a is in several files of {tmp_path.name}: the one in x-2.safetensors is used",)


class TestReferences:
    """Both libraries asked: a component saved in shards and again whole, with one number changed."""

    @pytest.fixture
    def both(self, tmp_path: Path, request: pytest.FixtureRequest) -> tuple[Path, Any, Naming]:
        library, naming = request.param
        model: Any = tiny.make_vae() if library == "diffusers" else tiny.make_text_encoder()
        probe = PROBE[library]
        with torch.no_grad():
            model.state_dict()[probe].fill_(1)
            model.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
            model.state_dict()[probe].fill_(2)
            model.save_pretrained(tmp_path / "whole")
        for file in (tmp_path / "whole").iterdir():
            shutil.copy(file, tmp_path / "shards")
        return tmp_path / "shards", AutoencoderKL if library == "diffusers" else T5EncoderModel, naming

    @pytest.mark.parametrize(
        ("both", "probe"),
        [(("diffusers", DIFFUSERS), PROBE["diffusers"]), (("transformers", TRANSFORMERS), PROBE["transformers"])],
        indirect=["both"],
    )
    def test_the_same_file_counts(self, both: tuple[Path, Any, Naming], probe: str) -> None:
        folder, model_class, naming = both
        wanted = model_class.from_pretrained(folder).state_dict()[probe]
        tensor = read_weights(folder, naming).tensors[probe]
        assert np.array_equal(tensor.read(), wanted.numpy())
        assert len(set(wanted.tolist())) == 1, "the probe is one number everywhere"


@NAMING
def test_a_leftover_index_whose_shards_are_gone(naming: Naming, tmp_path: Path) -> None:
    save_shards(tmp_path, f"{naming.safe}.index.json", {"x-1.safetensors": {"a": 1}})
    (tmp_path / "x-1.safetensors").unlink()
    save(tmp_path / naming.safe, {"a": 2})
    weights = read_weights(tmp_path, naming)
    assert read(weights) == {"a": 2}
    assert weights.files == (tmp_path / naming.safe,)
    told = f"{naming.safe}.index.json is left over from another save: {naming.safe} is used"
    assert weights.notes == ((told,) if naming.index_first else ())  # the other library does not look at it


@NAMING
@pytest.mark.parametrize("is_link", [False, True])
def test_a_missing_shard_is_named(naming: Naming, is_link: bool, tmp_path: Path) -> None:
    save_shards(tmp_path, f"{naming.safe}.index.json", {"x-1.safetensors": {"a": 1}, "x-2.safetensors": {"b": 1}})
    (tmp_path / "x-2.safetensors").unlink()
    if is_link:
        (tmp_path / "x-2.safetensors").symlink_to(tmp_path / "blobs" / "123")
    wanted = "a link to a file that is not there; download it again" if is_link else "lists it"
    with pytest.raises(MissingError, match=rf"x-2\.safetensors: .*{wanted}"):
        read_weights(tmp_path, naming)


@NAMING
@pytest.mark.parametrize("name", ["safe", "pickled"])
def test_a_dangling_link(naming: Naming, name: str, tmp_path: Path) -> None:
    (tmp_path / getattr(naming, name)).symlink_to(tmp_path / "nowhere")
    with pytest.raises(MissingError, match="a link to a file that is not there; download it again"):
        read_weights(tmp_path, naming)


@pytest.mark.parametrize("names", [{"a": "../one.safetensors"}, {"a": 1}, [], {}, {"a": ".."}, {"a": ""}, {"a": "x\0"}])
def test_a_shard_elsewhere_is_refused(names: Any, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(FormatError, match="not an object of file names"):
        read_weights(tmp_path, TRANSFORMERS)


class TestConfigurations:
    def test_a_damaged_one_is_named(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "fifo.json")
        (tmp_path / "folder.json").mkdir()
        (tmp_path / "gone.json").symlink_to(tmp_path / "blob")
        (tmp_path / "large.json").write_bytes(b" " * (JSON_BYTES + 1))
        (tmp_path / "list.json").write_text("[]")
        (tmp_path / "listed.json").write_text('{"_use_default_values": 5}')
        for path in sorted(tmp_path.iterdir()):
            with pytest.raises(InputError, match=rf"\[source\] .*{path.name}: "):
                read_config(path)

    def test_what_diffusers_writes_is_read(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text('{"lambda_min_clipped": -Infinity, "a": 1, "_use_default_values": ["a"]}')
        assert read_config(tmp_path / "config.json") == {"lambda_min_clipped": -math.inf}


class TestVariants:
    @NAMING
    def test_it_is_read_where_it_is(self, naming: Naming, tmp_path: Path) -> None:
        stem = naming.safe.removesuffix(".safetensors")
        save(tmp_path / naming.safe, {"a": 1})
        save(tmp_path / f"{stem}.fp16.safetensors", {"a": 2})
        assert read(read_weights(tmp_path, naming)) == {"a": 1}
        assert read(read_weights(tmp_path, naming, "fp16")) == {"a": 2}

    @NAMING
    @pytest.mark.parametrize("index", ["{safe}.index.fp16.json", "{safe}.fp16.index.json"])
    def test_shards_of_a_variant(self, naming: Naming, index: str, tmp_path: Path) -> None:
        stem = naming.safe.removesuffix(".safetensors")
        save(tmp_path / naming.safe, {"a": 1})
        shard = f"{stem}.fp16-00001-of-00001.safetensors"
        save_shards(tmp_path, index.format(safe=naming.safe), {shard: {"a": 2}})
        assert read(read_weights(tmp_path, naming, "fp16")) == {"a": 2}

    @NAMING
    def test_a_component_without_it_is_read_plain(self, naming: Naming, tmp_path: Path) -> None:
        save(tmp_path / naming.safe, {"a": 1})
        weights = read_weights(tmp_path, naming, "fp16")
        assert read(weights) == {"a": 1}
        assert weights.notes == (f"{tmp_path.name} has no variant 'fp16': its plain weights are used",)

    @NAMING
    def test_a_folder_with_nothing_else(self, naming: Naming, tmp_path: Path) -> None:
        stem = naming.safe.removesuffix(".safetensors")
        save(tmp_path / f"{stem}.fp16-00001-of-00001.safetensors", {"a": 2})
        save(tmp_path / f"{stem}.ema.safetensors", {"a": 2})
        with pytest.raises(MissingError, match="the folder has variant ema and fp16 only; pass --variant ema"):
            read_weights(tmp_path, naming)


class TestPickles:
    @NAMING
    def test_they_are_read_where_there_is_nothing_better(self, naming: Naming, tmp_path: Path) -> None:
        save(tmp_path / naming.pickled, {"a": 1})
        assert read(read_weights(tmp_path, naming)) == {"a": 1}
        save(tmp_path / naming.safe, {"a": 2})
        assert read(read_weights(tmp_path, naming)) == {"a": 2}

    @NAMING
    def test_shards(self, naming: Naming, tmp_path: Path) -> None:
        save_shards(tmp_path, f"{naming.pickled}.index.json", {"x-1.bin": {"a": 1}, "x-2.bin": {"b": 2}})
        assert read(read_weights(tmp_path, naming)) == {"a": 1, "b": 2}

    def test_the_format_before_zip(self, tmp_path: Path) -> None:
        path = tmp_path / TRANSFORMERS.pickled
        torch.save({"a": torch.ones(1)}, path, _use_new_zipfile_serialization=False)
        assert read(read_weights(tmp_path, TRANSFORMERS)) == {"a": 1}

    def test_bfloat16_rows_and_nested_dicts(self, tmp_path: Path) -> None:
        values = torch.randn(6, 4).bfloat16()
        torch.save({"epoch": 3, "state_dict": {"a": values.t()}}, tmp_path / TRANSFORMERS.pickled)
        tensor = read_weights(tmp_path, TRANSFORMERS).tensors["a"]
        assert (tensor.dtype, tensor.shape, tensor.nbytes) == ("BF16", (4, 6), 48)
        assert np.array_equal(widen(tensor.read(1, 3), "BF16"), values.t()[1:3].float().numpy())

    @pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", b"not a pickle", None])
    def test_damage(self, damage: bytes | None, tmp_path: Path) -> None:
        path = tmp_path / TRANSFORMERS.pickled
        torch.save({"a": torch.ones(100)}, path)
        path.write_bytes(path.read_bytes()[:-150] if damage is None else damage)
        with pytest.raises(FormatError, match=path.name):
            read_weights(tmp_path, TRANSFORMERS)

    def test_a_compressed_archive_is_not_unpacked(self, tmp_path: Path) -> None:
        """A few bytes could become any number of them."""
        path = tmp_path / TRANSFORMERS.pickled
        torch.save({"a": torch.ones(100)}, path)
        pack(path, {}, zipfile.ZIP_DEFLATED)
        with pytest.raises(FormatError, match=rf"{path.name}: not a file of torch\.save \(member .* is compressed"):
            read_weights(tmp_path, TRANSFORMERS)

    @pytest.mark.parametrize("size", [0, 3, 401])
    def test_a_tensor_is_not_read_beyond_its_member(self, size: int, tmp_path: Path) -> None:
        path = tmp_path / TRANSFORMERS.pickled
        torch.save({"a": torch.ones(100), "b": torch.ones(100)}, path)
        pack(path, {"1": bytes(size)}, zipfile.ZIP_STORED)
        with pytest.raises(FormatError, match=rf"{path.name}: has no member with the 400 bytes of tensor 'b'"):
            read_weights(tmp_path, TRANSFORMERS)

    def test_tensors_that_share_numbers(self, tmp_path: Path) -> None:
        whole = torch.arange(4.0)
        torch.save({"a": whole[:1], "b": whole[3:], "c": torch.ones(1)}, tmp_path / TRANSFORMERS.pickled)
        assert read(read_weights(tmp_path, TRANSFORMERS)) == {"a": 0, "b": 3, "c": 1}

    def test_nothing_in_it_is_executed(self, tmp_path: Path) -> None:
        class Trap:
            def __reduce__(self) -> tuple[Any, tuple[str]]:
                return Path.touch, (tmp_path / "executed",)  # type: ignore[return-value]

        torch.save({"a": torch.ones(1), "b": Trap()}, tmp_path / TRANSFORMERS.pickled)
        with pytest.raises(FormatError, match="without executing what is in it"):
            read_weights(tmp_path, TRANSFORMERS)
        assert not (tmp_path / "executed").exists()

    @pytest.mark.parametrize("value", [torch.ones(3), {"lr": 1}, [1]])
    def test_no_tensors_by_name(self, value: Any, tmp_path: Path) -> None:
        torch.save(value, tmp_path / TRANSFORMERS.pickled)
        with pytest.raises(FormatError, match="has no tensors by name"):
            read_weights(tmp_path, TRANSFORMERS)


@pytest.mark.parametrize(
    ("file", "error", "message"),
    [
        ("pytorch_lora_weights.safetensors", UnsupportedError, r"an adapter \(LoRA\), not a model"),
        ("model-q4.gguf", UnsupportedError, "weights in GGUF, want safetensors"),
        ("flax_model.msgpack", UnsupportedError, "weights in Flax"),
        ("readme.md", MissingError, "the folder has readme.md; save the model"),
        (None, MissingError, "the folder has no files"),
    ],
)
def test_a_folder_with_something_else(file: str | None, error: type[InputError], message: str, tmp_path: Path) -> None:
    if file is not None:
        (tmp_path / file).touch()
    with pytest.raises(error, match=message):
        read_weights(tmp_path, DIFFUSERS)
