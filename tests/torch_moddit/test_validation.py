"""Validation: what is held out, that measuring it changes nothing, and pictures of fixed prompts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from moddit.checkpoint.description import describe
from moddit.checkpoint.sources import Sources
from moddit.errors import InputError, UnsupportedError, ValueRangeError
from tests import tiny
from tests.shards import save_shards
from tests.torch_moddit.training import REPEATED, Latents, configure, difference, read_log, train
from torch_moddit import cli
from torch_moddit.byproducts import list_by_products
from torch_moddit.data import Item, hold_out
from torch_moddit.finetune import FinetuneResult, Mode
from torch_moddit.loading import load_checkpoint
from torch_moddit.pipeline import ReferencePipeline, load_component
from torch_moddit.shards import Shards
from torch_moddit.validation import Painter

DIVIDED = 1e-5  # of a loss whose batches are others


class Watched(Latents):
    """Latents that remember which were read."""

    def __init__(self) -> None:
        super().__init__()
        self.read: set[int] = set()

    def __getitem__(self, index: int) -> Item:
        self.read.add(index)
        return super().__getitem__(index)


def losses(result: FinetuneResult) -> dict[int, list[float]]:
    rows = read_log(result)
    return {row["step"]: row["validation_loss_by_region"] for row in rows if "validation_loss" in row}


def test_what_is_held_out_is_not_trained_on(tmp_path: Path) -> None:
    data, config = Watched(), configure(tmp_path, steps=20, validation_share=0.25, by_products=False)
    train(config, data, stop_after=12)  # two epochs
    assert data.read == set(range(18))
    data.read.clear()
    train(config, data)  # which looks at its end
    assert data.read == set(range(24))


@pytest.mark.parametrize("mode", [Mode.LEARNED, Mode.RANDOM])
def test_looking_changes_nothing(tmp_path: Path, mode: Mode) -> None:
    def draw(_: Any) -> list[Any]:
        return [torch.rand(8, 8, 3).numpy()]  # takes from PyTorch's own generator

    config = configure(tmp_path / "blind", mode=mode, validation_share=0.25)
    blind = train(config)
    looking = train(replace(config, output=tmp_path / "looking", validate_every=1), draw_pictures=draw)
    assert difference(looking, blind) <= REPEATED
    assert list(losses(blind)) == [8]
    assert list(losses(looking)) == list(range(1, 9))
    assert losses(looking)[8] == pytest.approx(losses(blind)[8], abs=REPEATED)
    assert len(list((tmp_path / "looking" / "validation").glob("*/00.png"))) == 8


@pytest.mark.parametrize("ratio_loss", [0.0, 0.3])
def test_the_last_look_is_at_the_plan_that_is_saved(tmp_path: Path, ratio_loss: float) -> None:
    """However ratios are rounded, and also where they learn to the end."""
    result = train(configure(tmp_path, ratio_loss=ratio_loss, freeze_share=1.0, validation_share=0.25, target=0.83))
    rows = [row["validated_keep_ratio"] for row in read_log(result) if "validated_keep_ratio" in row]
    assert rows[-1] == result.model.policy.plan.mean_keep_ratio


def test_a_loss_depends_on_the_model_alone(tmp_path: Path) -> None:
    """Not on the step, nor on how the samples are divided."""
    still = {"learning_rate": 0.0, "mode": Mode.DENSE, "validation_share": 0.25, "validate_every": 3}
    found = losses(train(configure(tmp_path / "a", **still)))
    assert list(found) == [3, 6, 8]
    assert found[3] == found[6] == found[8]
    assert len(set(found[3])) == 4
    other = losses(train(configure(tmp_path / "b", **still, batch_size=1, accumulation=4)))
    assert other[3] == pytest.approx(found[3], rel=DIVIDED)


def test_killed_and_resumed_tells_the_same(tmp_path: Path) -> None:
    config = configure(tmp_path / "whole", validation_share=0.25, validate_every=2)
    whole = train(config)
    killed = replace(config, output=tmp_path / "killed")
    train(killed, stop_after=5)
    resumed = train(killed)
    assert list(losses(resumed)) == list(losses(whole)) == [2, 4, 6, 8]
    for step, told in losses(whole).items():
        assert losses(resumed)[step] == pytest.approx(told, abs=REPEATED)
    scores = [[item.validation_loss for item in list_by_products(run.output)] for run in (config, killed)]
    assert scores[0] == pytest.approx(scores[1], abs=REPEATED)
    assert all(scores[0])


class Unmeasured(IterableDataset[Item]):
    """A dataset without a length, which is refused before anything of it is read."""

    def __iter__(self) -> Iterator[Item]:
        return iter(())


class Sizes(Dataset[Item]):
    buckets = (10, 3, 0, 20)

    def __getitem__(self, index: int) -> Any:
        return index


def test_a_share_of_each_picture_size_is_held_out() -> None:
    training, held_out = hold_out(Sizes(), 0.25)
    assert held_out is not None
    assert held_out.buckets == [2, 0, 0, 5]
    assert [held_out[index] for index in range(len(held_out))] == [8, 9, *range(28, 33)]
    part: Any = training
    assert part.buckets == [8, 3, 0, 15]
    assert [part[index] for index in range(len(part))] == [*range(8), 10, 11, 12, *range(13, 28)]


def test_views_of_a_picture_stay_together(tmp_path: Path) -> None:
    model = tiny.save_pipeline(tmp_path / "m", routed=False)
    description = describe(Sources(model))
    shards = Shards(save_shards(tmp_path / "data", model, counts=(3, 2), views=4), description.spec.transformer)
    _, held_out = hold_out(shards, 0.1)  # two samples of twenty
    assert held_out is not None
    assert list(held_out.ranges[0]) == [16, 17, 18, 19]


@pytest.mark.parametrize(
    ("data", "changes", "kind", "message"),
    [
        (Unmeasured(), {"validation_share": 0.1}, UnsupportedError, "without a length"),
        (Latents(), {"validation_share": 0.01}, ValueRangeError, r"0\.01 of 24 samples.* is none; want a larger share"),
        (Latents(), {"validate_every": 2}, ValueRangeError, "validate_every 2 has nothing to look at; want"),
    ],
)
def test_says_what_cannot_be_looked_at(
    tmp_path: Path, data: Dataset[Item], changes: dict[str, Any], kind: type[InputError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        train(configure(tmp_path, **changes), data)
    assert not list(tmp_path.iterdir())


def test_pictures_are_those_of_the_model_at_that_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = tiny.save_pipeline(tmp_path / "dense", kind="alpha", routed=False)
    data, out, loaded = save_shards(tmp_path / "data", dense), tmp_path / "out", []

    def load(sources: Sources, name: str, dtype: Any = torch.float32) -> Any:
        loaded.append(name)
        return load_component(sources, name, dtype)

    monkeypatch.setattr("torch_moddit.validation.load_component", load)
    prompts = ("--validation-prompt", "a red circle", "--validation-prompt", "a blue square")
    files = ("--model", dense, "--data", data, "--out", out)
    options = [*files, "--steps", 4, "--batch-size", 2, "--validate-every", 2, *prompts]
    done = CliRunner().invoke(cli.command, list(map(str, options)), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert loaded == ["text_encoder", "tokenizer", "vae", "vae"]
    folders = sorted((out / "validation").iterdir())
    assert [folder.name for folder in folders] == ["00000002", "00000004"]
    assert sorted(path.name for path in folders[1].iterdir()) == ["00.png", "01.png"]
    pipeline = ReferencePipeline.load(out / "model")
    for index, prompt in enumerate(("a red circle", "a blue square")):
        with Image.open(folders[1] / f"{index:02d}.png") as picture:
            found = np.asarray(picture).astype(int)
        assert np.abs(found - np.rint(255 * pipeline.generate(prompt))).max() <= 1


def test_classes_are_drawn_by_name_or_number(tmp_path: Path) -> None:
    sources = Sources(tiny.save_dit_pipeline(tmp_path / "dit", routed=False))
    spec = describe(sources).spec
    paint = Painter(sources, spec, ["goldfish", "207"], {}, device=torch.device("cpu"), height=16, width=32)
    model = load_checkpoint(sources)
    pictures = paint(model)
    assert [picture.shape for picture in pictures] == [(16, 32, 3)] * 2
    wanted = ReferencePipeline.load(sources).generate(label=1, height=16, width=32)
    np.testing.assert_array_equal(pictures[0], wanted)


def test_text_encoders_may_be_stored_in_half_precision(tmp_path: Path) -> None:
    pipeline = tiny.make_pipeline("alpha")
    pipeline.text_encoder.half()
    pipeline.save_pretrained(tmp_path / "m")
    sources = Sources(tmp_path / "m")
    paint = Painter(sources, describe(sources).spec, ["a red circle"], {}, device=torch.device("cpu"))
    (picture,) = paint(load_checkpoint(sources))
    assert picture.shape == (32, 32, 3)
