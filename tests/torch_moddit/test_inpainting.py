"""Learning to inpaint: masks, the input that is widened, every way to train, and what comes out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import Dataset

from moddit.edits import normalize
from moddit.errors import InputError, MissingError, ShapeError, UnsupportedError
from moddit.routing import RoutingPlan
from moddit.tokens import TokenPolicy
from tests import tiny
from tests.torch_moddit.test_edits import make_image, make_mask
from tests.torch_moddit.training import NULL, REPEATED, Latents, configure, difference, read_log, schedule
from torch_moddit.data import Item
from torch_moddit.export import save_adapter, save_checkpoint
from torch_moddit.finetune import FinetuneConfig, FinetuneResult, Mode, finetune
from torch_moddit.masks import draw_mask, hide
from torch_moddit.noising import Noising, make_generator
from torch_moddit.pipeline import ReferencePipeline
from torch_moddit.pixart import RoutedPixArt
from torch_moddit.settings import Task, Train
from torch_moddit.trainee import take_task

ROUTED = RoutedPixArt.from_dense(tiny.make_transformer(), TokenPolicy.topk(RoutingPlan(((10, 5), (3, 2), (7, 7)))))
# Channels of zeros may be added in another order, in which a convolution rounds otherwise.
ROUNDED = 1e-5


class Pictures(Dataset[Item]):
    """Random pictures of 16 pixels with captions."""

    def __init__(self, side: int = 16) -> None:
        chance = np.random.default_rng(0)
        self.pixels = [normalize(chance.integers(0, 256, (side, side, 3)).astype(np.uint8)) for _ in range(12)]
        self.captions = Latents()

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Item:
        told = self.captions[index]
        return {**told, "pixels": torch.from_numpy(self.pixels[index]).permute(2, 0, 1)}


class OnlyPictures(Pictures):
    def __getitem__(self, index: int) -> Item:
        item = super().__getitem__(index)
        return {name: item[name] for name in ("pixels", "text", "mask")}


def learn(config: FinetuneConfig, model: Any = None, **arguments: Any) -> FinetuneResult:
    given_ = {"dataset": OnlyPictures(), "components": {"vae": tiny.make_vae()}, **arguments}
    return finetune(config, model or tiny.make_transformer(), schedule=schedule(), null=NULL, **given_)


def inpaint(output: Path, **changes: Any) -> FinetuneConfig:
    return configure(output, task=Task.INPAINT, **{"steps": 4, "distill_weight": 0.0, **changes})


@given(st.integers(0, 2**31), st.sampled_from([1, 2, 4, 8]), st.integers(1, 9), st.integers(1, 9))
def test_masks_mark_something_and_depend_on_the_sample_alone(seed: int, unit: int, rows: int, columns: int) -> None:
    size = (rows * unit, columns * unit)
    mask = draw_mask(size, unit, make_generator(seed))
    assert mask.shape == size
    assert mask.any()
    assert np.array_equal(mask, draw_mask(size, unit, make_generator(seed)))


def test_masks_are_of_every_kind() -> None:
    masks = [draw_mask((64, 48), 8, make_generator(5, number)) for number in range(400)]
    assert 0.02 < np.mean([mask.all() for mask in masks]) < 0.09
    in_tokens = [mask for mask in masks if np.array_equal(mask, np.kron(mask[::8, ::8], np.ones((8, 8), bool)))]
    assert 0.35 < len(in_tokens) / len(masks) < 0.5
    shares = [mask.mean() for mask in masks]
    assert 0.2 < np.mean(shares) < 0.35
    assert np.quantile(shares, 0.1) < 0.12


def test_what_is_hidden_is_filled_with_the_mean_of_the_rest() -> None:
    pixels = torch.from_numpy(normalize(make_image())).permute(2, 0, 1)
    found = hide(pixels, make_mask())
    assert torch.equal(found[:, ~make_mask()], pixels[:, ~make_mask()])
    levels = ((pixels + 1) * 127.5)[:, ~make_mask()].mean(dim=1)
    assert ((found + 1) * 127.5)[:, make_mask()].sub(levels[:, None]).abs().max() < 0.51


def _embedding(model: Any) -> Any:
    return getattr(model, "transformer", model).pos_embed


@pytest.mark.parametrize("make", [tiny.make_transformer, tiny.make_dit, lambda: copy.deepcopy(ROUTED)])
def test_a_model_that_begins_to_inpaint_predicts_what_it_did(make: Any) -> None:
    model = make()
    before = copy.deepcopy(model)
    found, is_widened = take_task(inpaint(Path("unused")), model, 1000)
    assert is_widened
    old, new = (_embedding(item) for item in (before, found))
    latents = torch.randn(2, 4, 8, 8)
    shown = torch.randn(2, 5, 8, 8)
    assert (new(torch.cat([latents, shown], dim=1)) - old(latents)).abs().max() < ROUNDED
    assert (new.proj.weight[:, 4:] == 0).all()
    assert torch.equal(new.proj.weight[:, :4], old.proj.weight)
    again, is_widened = take_task(inpaint(Path("unused")), found, 1000)
    assert again is found
    assert not is_widened


@pytest.mark.parametrize(
    ("mode", "train"),
    [
        (Mode.DENSE, Train.ALL),
        (Mode.LEARNED, Train.ALL),
        (Mode.UNIFORM, Train.LORA),
        (Mode.LEARNED, Train.ROUTERS),
        (Mode.RANDOM, Train.LORA),
        (Mode.FIXED, Train.ALL),
    ],
)
def test_every_way_to_train_learns_to_inpaint(tmp_path: Path, mode: Mode, train: Train) -> None:
    model = copy.deepcopy(ROUTED) if mode is Mode.FIXED else None
    config = inpaint(tmp_path, mode=mode, train=train, lora_rank=2, regions=2, distill_weight=1.0, log_every=1)
    result = learn(config, model)
    assert result.model.spec.inpaints
    assert result.model.transformer.config.in_channels == 9
    assert bool((result.model.transformer.pos_embed.proj.weight[:, 4:] != 0).any())
    first = read_log(result)[0]
    if mode in (Mode.DENSE, Mode.LEARNED, Mode.FIXED):  # the teacher, who sees the same, begins as the model
        assert first["distill_loss"] < (1e-10 if mode is Mode.LEARNED else 1e-30)
    assert result.lora is None  # which a model of 4 channels could not take
    with pytest.raises(MissingError, match="made the model read a mask"):
        save_adapter(tmp_path / "adapter", result)
    if mode is Mode.RANDOM:  # no checkpoint says that tokens are kept at random
        return
    save_checkpoint(tmp_path / "model", result.model, pipeline=tiny.make_pipeline())
    settings: dict[str, Any] = {"image": make_image(), "mask": make_mask(), "steps": 2, "height": 40, "width": 24}
    drawn = np.round(ReferencePipeline.load(tmp_path / "model").generate("a red circle", **settings) * 255)
    assert np.array_equal(drawn[~make_mask()], make_image()[~make_mask()])


def test_adapters_of_a_model_that_inpaints_already_are_its_own(tmp_path: Path) -> None:
    config = inpaint(tmp_path, train=Train.LORA, lora_rank=2)
    result = learn(config, tiny.make_transformer(**tiny.INPAINTING))
    assert result.lora


@pytest.mark.parametrize("train", [Train.ALL, Train.LORA])
def test_a_run_that_was_stopped_goes_on(tmp_path: Path, train: Train) -> None:
    changes: dict[str, Any] = {"steps": 6, "train": train, "lora_rank": 2}
    whole = learn(inpaint(tmp_path / "whole", **changes))
    learn(inpaint(tmp_path / "parts", **changes), stop_after=3)
    parts = learn(inpaint(tmp_path / "parts", **changes))
    assert difference(whole, parts) < REPEATED


def test_what_a_model_is_shown_is_of_the_sample_alone() -> None:
    """Also where its latents were encoded before: only then pixels are masked alone."""
    noising = Noising(schedule(), 1, {"vae": tiny.make_vae()}, torch.device("cpu"), mask_patch=2)

    def show(indices: list[int], data: Dataset[Item]) -> Tensor:
        items = [data[index] for index in indices]
        batch = {key: torch.stack([item[key] for item in items]) for key in items[0]}
        generators = [make_generator(3, index) for index in indices]
        shown = noising(batch, torch.full((len(indices),), 500), generators).shown
        assert shown is not None
        return shown

    both = show([0, 1], OnlyPictures())
    assert both.shape == (2, 5, 8, 8)
    assert set(both[:, 0].unique().tolist()) <= {0.0, 1.0}
    assert torch.allclose(both[1:], show([1], OnlyPictures()), atol=1e-6)
    assert show([0], Pictures()).shape == (1, 5, 8, 8)


@pytest.mark.parametrize(
    ("task", "model", "dataset", "error", "message"),
    [
        (
            Task.INPAINT,
            {},
            Latents(),
            MissingError,
            "task inpaint masks pictures, but the dataset gives latents, mask,",
        ),
        (
            Task.INPAINT,
            {},
            OnlyPictures(18),
            ShapeError,
            "pictures of height 18 and width 18, want multiples of 4 pixels",
        ),
        (Task.GENERATE, tiny.INPAINTING, Latents(), UnsupportedError, "task generate got a model that inpaints"),
    ],
)
def test_what_cannot_be_learned_is_refused(
    tmp_path: Path, task: Task, model: dict[str, Any], dataset: Any, error: type[InputError], message: str
) -> None:
    with pytest.raises(error, match=message):
        learn(configure(tmp_path, task=task), tiny.make_transformer(**model), dataset=dataset)
