"""From pictures and captions to shards: the latents and text states of diffusers, whatever stops it on the way."""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from diffusers import PixArtSigmaPipeline
from PIL import Image

from moddit.checkpoint.description import describe
from moddit.checkpoint.sources import Sources
from moddit.errors import (
    FormatError,
    MissingError,
    ModditError,
    OutputExistsError,
    ShapeError,
    ValueRangeError,
)
from moddit.pictures import fit
from tests import tiny
from torch_moddit import cli, encoding, prepare
from torch_moddit.encoding import Cut, Encoding, Report
from torch_moddit.loading import load_checkpoint
from torch_moddit.pictures import to_pixels
from torch_moddit.pipeline import load_component
from torch_moddit.samples import list_samples
from torch_moddit.shards import Encoders, Shards

HALF = 2e-3  # of float16 with 11 bits, for numbers of the size of latents and text states
SIZES = ((16, 16), (8, 32))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_pipeline(tmp_path_factory.mktemp("model") / "m", routed=False)


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_dit_pipeline(tmp_path_factory.mktemp("classes") / "m", routed=False)


def save_noise(path: Path, size: tuple[int, int], seed: int = 0) -> None:
    """Save a picture of random blocks, width x height."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST).save(path)


def save_pictures(folder: Path, count: int = 5) -> Path:
    for index in range(count):
        save_noise(folder / f"{index}.png", (40, 36) if index % 2 else (60, 16), index)
        (folder / f"{index}.txt").write_text(" ".join(["a red circle", "and a blue square"][: 1 + index % 2]))
    return folder


def open_encoding(model: Path, output: Path, **changes: Any) -> Encoding:
    return replace(Encoding(Sources(model), output, Cut(SIZES, shard_size=2), progress=False), **changes)


def encode(model: Path, images: Path, output: Path, **changes: Any) -> Report:
    are_classes = "labels" in describe(Sources(model)).spec.transformer.sample_shapes()
    return open_encoding(model, output, **changes).run(list_samples(images, are_classes=are_classes))


def open_shards(model: Path, folder: Path) -> Shards:
    description = describe(Sources(model))
    return Shards(folder, description.spec.transformer, Encoders.of(description))


def items_of(shards: Shards) -> list[dict[str, torch.Tensor]]:
    return [shards[index] for index in range(len(shards))]


def test_latents_and_texts_are_those_of_diffusers(model: Path, tmp_path: Path) -> None:
    images = save_pictures(tmp_path / "images")
    report = encode(model, images, tmp_path / "data")
    assert (report.pictures, report.sizes, report.skipped) == (5, 2, {})
    shards = open_shards(model, tmp_path / "data")
    assert shards.buckets == [3, 2]  # 8x32 first
    pipeline = PixArtSigmaPipeline.from_pretrained(model)
    for item, index in zip(items_of(shards), (0, 2, 4, 1, 3), strict=True):
        size = SIZES[1 - index % 2]
        pixels = to_pixels(fit(Image.open(images / f"{index}.png"), *size))[None]
        posterior = pipeline.vae.encode(pixels).latent_dist
        scale = pipeline.vae.config.scaling_factor
        torch.testing.assert_close(item["latents"].float(), posterior.mean[0] * scale, rtol=HALF, atol=HALF)
        torch.testing.assert_close(item["std"].float(), posterior.std[0] * scale, rtol=HALF, atol=HALF)
        text, mask, *_ = pipeline.encode_prompt(
            (images / f"{index}.txt").read_text(), do_classifier_free_guidance=False, max_sequence_length=16
        )
        length = int(mask.sum())
        assert item["text"].shape == (length, tiny.TEXT_WIDTH)
        torch.testing.assert_close(item["text"].float(), text[0, :length], rtol=HALF, atol=HALF)
        assert item["mask"].tolist() == [1] * length
    assert shards.null["text"].shape == (1, tiny.TEXT_WIDTH)  # </s>


def test_training_from_shards_is_training_from_pictures(model: Path, tmp_path: Path) -> None:
    """With one crop of one size; what differs is float16, and the padding of texts."""
    images = save_pictures(tmp_path / "images")
    encode(model, images, tmp_path / "data", cut=Cut(SIZES[:1]))
    arguments = ("--model", model, "--steps", 3, "--batch-size", 2, "--warmup", 1, "--distill-weight", 1)
    runs = {"data": ("--data", tmp_path / "data"), "images": ("--images", images, "--height", 16, "--width", 16)}
    before = load_checkpoint(model).transformer.state_dict()
    kept = [name for name in before if "ff.net.2" not in name]  # which routing doubles

    def flatten(state: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([state[name].flatten() for name in kept])

    logs, weights = [], []
    for name, source in runs.items():
        out = tmp_path / f"from-{name}"
        run_command(cli.command, *arguments, *source, "--out", out, "--log-every", 1)
        logs.append([json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()])
        weights.append(flatten(load_checkpoint(out / "model").transformer.state_dict()))
    for first, second in zip(*logs, strict=True):
        for key in ("loss", "diffusion_loss", "distill_loss", "keep_ratio"):
            assert first[key] == pytest.approx(second[key], rel=HALF), key
    assert (weights[0] - weights[1]).norm() <= 0.01 * (weights[1] - flatten(before)).norm()


def test_training_from_shards_loads_no_encoder(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode(model, save_pictures(tmp_path / "images"), tmp_path / "data")

    def refuse(*_: object) -> None:
        pytest.fail("an encoder is loaded")

    monkeypatch.setattr("torch_moddit.pipeline.load_component", refuse)
    arguments = ("--model", model, "--data", tmp_path / "data", "--out", tmp_path / "out", "--steps", 4)
    run_command(cli.command, *arguments, "--batch-size", 2)
    assert load_checkpoint(tmp_path / "out" / "model").policy.has_routers


def test_the_documentation_names_options_that_exist() -> None:
    commands = {"prepare": prepare.command, "finetune": cli.command}
    text = (Path(__file__).parents[2] / "docs" / "finetuning.md").read_text(encoding="utf-8")
    lines = re.findall(r"^python -m torch_moddit\.(\w+) (.*)$", text, re.MULTILINE)
    assert list(dict(lines)) == list(commands)
    for name, arguments in lines:
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert {word for word in arguments.split() if word.startswith("--")} <= known


def run_command(command: Any, *arguments: object) -> Any:
    result = CliRunner().invoke(command, list(map(str, arguments)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_the_command_tells_what_it_did(model: Path, tmp_path: Path) -> None:
    images = save_pictures(tmp_path / "images")
    (images / "0.txt").write_text(" ")
    (images / "1.png").write_bytes(b"no picture")
    content = (images / "2.png").read_bytes()
    (images / "2.png").write_bytes(content[: len(content) // 2])  # which its header does not tell
    how = ("--size", "16x16", "--size", "8x32", "--shard-size", 1)
    arguments = ("--model", model, "--images", images, *how, "--out")
    for name in ("1.png", "2.png"):
        with pytest.raises(FormatError, match=rf"\[data\] {images}/{name}: cannot read .* --skip-damaged"):
            run_command(prepare.command, *arguments, tmp_path / "data")
        if name == "1.png":
            save_noise(images / "1.png", (40, 36))
    (images / "1.png").write_bytes(b"no picture")
    result = run_command(prepare.command, *arguments, tmp_path / "whole", "--skip-damaged", "--flip", "--workers", 1)
    assert result.stdout == f"{tmp_path / 'whole'}\n"
    told = result.stderr.splitlines()
    assert [line.split(":")[0] for line in told[:2]] == ["left out 1.png", "left out 2.png"]
    assert told[2] == "3 pictures, 2 views of each in 2 sizes, 2 left out, 1 without words"
    shards = open_shards(model, tmp_path / "whole")
    assert shards.buckets == [4, 2]
    item = shards[0]
    assert item["text"].shape[0] == 1
    assert not torch.equal(item["latents"], shards[1]["latents"])
    assert torch.equal(item["text"], shards[1]["text"])


@pytest.mark.parametrize("dies_at", [1, 2, 4, 6])
def test_what_was_encoded_stays(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: int) -> None:
    """Three shards of two files, and the empty caption: what kills the run while it writes one loses that one."""
    images = save_pictures(tmp_path / "images")
    written: list[str] = []

    def write(path: Path, *arguments: Any) -> None:
        if len(written) == dies_at:
            raise KeyboardInterrupt
        written.append(path.name)
        real(path, *arguments)

    from torch_moddit import shards

    real = shards._write
    monkeypatch.setattr(shards, "_write", write)
    cut = Cut(SIZES, shard_size=2, crops=2)
    with pytest.raises(KeyboardInterrupt):
        encode(model, images, tmp_path / "killed", cut=cut)
    assert len(written) == dies_at
    with pytest.raises(MissingError, match="files are not there yet"):
        open_shards(model, tmp_path / "killed")
    dies_at = -1
    encode(model, images, tmp_path / "killed", cut=cut)
    assert len(written) == len(set(written)) == 7
    monkeypatch.setattr(encoding, "load_component", lambda *_: pytest.fail("nothing is left to encode"))
    assert encode(model, images, tmp_path / "killed", cut=cut).pictures == 5
    monkeypatch.undo()
    encode(model, images, tmp_path / "whole", cut=cut)
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "killed" / path.name).read_bytes() == path.read_bytes(), path.name


def test_one_encoder_is_in_memory_and_the_text_encoder_as_it_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.save_pipeline(tmp_path / "model", routed=False, dtype="float16")
    loaded: dict[str, tuple[torch.dtype, Callable[[], object]]] = {}
    real = load_component

    def load(sources: Sources, name: str, *dtype: Any) -> Any:
        part = real(sources, name, *dtype)
        assert all(alive() is None for _, alive in loaded.values())
        if isinstance(part, torch.nn.Module):
            loaded[name] = next(part.parameters()).dtype, weakref.ref(part)
        return part

    monkeypatch.setattr(encoding, "load_component", load)
    encode(model, save_pictures(tmp_path / "images"), tmp_path / "data")
    assert {name: dtype for name, (dtype, _) in loaded.items()} == {
        "vae": torch.float32,
        "text_encoder": torch.float16,
    }


def test_another_dataset_is_not_mixed_in(model: Path, tmp_path: Path) -> None:
    images = save_pictures(tmp_path / "images")
    encode(model, images, tmp_path / "data")
    (images / "3.txt").write_text("a green circle")
    with pytest.raises(OutputExistsError, match=r"another source in dataset\.json"):
        encode(model, images, tmp_path / "data")
    with pytest.raises(OutputExistsError, match=r"exists, and is no dataset"):
        encode(model, images, images)


def test_shards_of_another_model_are_refused(model: Path, classes: Path, tmp_path: Path) -> None:
    encode(model, save_pictures(tmp_path / "images"), tmp_path / "data")
    other = tiny.save_pipeline(tmp_path / "other", routed=False, seed=1)
    routed = tiny.save_pipeline(tmp_path / "routed")  # the same encoders
    assert len(open_shards(routed, tmp_path / "data")) == 5
    with pytest.raises(ValueRangeError, match=r"dataset\.json: made by another vae \(.*\) than this model's"):
        open_shards(other, tmp_path / "data")
    with pytest.raises(ModditError, match=r"dataset\.json: made by another text_encoder \(.*\) than this model's"):
        open_shards(classes, tmp_path / "data")


def test_classes_are_names_of_folders_or_labels_of_metadata(classes: Path, tmp_path: Path) -> None:
    for index, name in enumerate(("golden retriever", "1", "Tinca tinca")):
        save_noise(tmp_path / "folders" / name / "a.png", (20, 20), index)
        save_noise(tmp_path / "listed" / f"{index}.png", (20, 20), index)
    labels: list[object] = ["golden retriever", 1, "0"]
    lines = [json.dumps({"file_name": f"{index}.png", "label": label}) for index, label in enumerate(labels)]
    (tmp_path / "listed" / "metadata.jsonl").write_text("\n".join(lines))
    for name, order in (("folders", [1, 0, 207]), ("listed", [207, 1, 0])):
        encode(classes, tmp_path / name, tmp_path / f"{name}-data")
        shards = open_shards(classes, tmp_path / f"{name}-data")
        assert [int(item["labels"]) for item in items_of(shards)] == order
        assert int(shards.null["labels"]) == 1000
    arguments = ("--model", classes, "--data", tmp_path / "folders-data", "--out", tmp_path / "out")
    run_command(cli.command, *arguments, "--steps", 2, "--batch-size", 2)
    (tmp_path / "listed" / "metadata.jsonl").write_text('{"file_name": "0.png", "label": "a dog"}')
    with pytest.raises(MissingError, match=r"no class is called 'a dog'.*\(class of .*0\.png\)"):
        encode(classes, tmp_path / "listed", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_sizes_are_those_that_the_model_was_trained_at(model: Path, tmp_path: Path) -> None:
    spec = describe(Sources(model)).spec
    assert Cut.of(spec).sizes == ((32, 32),)  # 16 latent pixels, at which PixArt was never trained
    vae = replace(spec.vae, block_out_channels=(8, 8, 8, 16))
    big = replace(spec, transformer=replace(spec.transformer, sample_size=64), vae=vae)
    cut = Cut.of(big)
    assert len(cut.sizes) == 33
    assert cut.size_for(600, 600) == (512, 512)
    assert cut.size_for(1000, 1500) == (416, 608)
    assert cut.size_for(10, 1000) == (256, 1024)
    for size, error in (((16, 18), ShapeError), ((0, 16), ShapeError), ((16_384, 16_384), ValueRangeError)):
        with pytest.raises(error, match=f"size {size[0]}x{size[1]}"):
            Cut.of(spec, [size])
