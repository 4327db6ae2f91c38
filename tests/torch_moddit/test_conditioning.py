"""What samples and requests say, as the transformer takes it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from moddit.errors import MissingError
from tests import tiny
from tests.torch_moddit.training import Latents, configure, schedule
from torch_moddit.conditioning import make_context, teller
from torch_moddit.data import Item
from torch_moddit.finetune import finetune
from torch_moddit.pipeline import ReferencePipeline


class Tokens(Latents):
    """Captions as token numbers, which only a text encoder turns into what the transformer takes."""

    def __getitem__(self, index: int) -> Item:
        item = super().__getitem__(index)
        return {"latents": item["latents"], "input_ids": torch.full((16,), index), "mask": item["mask"]}


class Pixels(Latents):
    def __getitem__(self, index: int) -> Item:
        item = super().__getitem__(index)
        return {"pixels": torch.zeros(3, 64, 64), "text": item["text"], "mask": item["mask"]}


def test_a_text_and_a_sample_with_its_tokens_are_encoded_alike(tmp_path: Path) -> None:
    reference = ReferencePipeline.load(tiny.save_pipeline(tmp_path))
    tell = teller(reference.spec, reference.components)
    items = [tell("a red circle"), tell("")]
    batch = {key: torch.stack([item[key] for item in items]) for key in items[0]}
    with torch.no_grad():
        found = make_context(batch, reference.components)
    for name, value in reference.encode(("a red circle", "")).items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Tokens(), r"dataset gives input_ids: pass `components` with a 'text_encoder'"),
        (Pixels(), r"dataset gives pixels: pass `components` with a 'vae'"),
    ],
)
def test_a_dataset_that_no_component_encodes_is_refused(tmp_path: Path, dataset: Latents, message: str) -> None:
    config = configure(tmp_path, caption_dropout=0.0)
    with pytest.raises(MissingError, match=message):
        finetune(config, tiny.make_transformer(), dataset, schedule())


def test_all_components_of_a_pipeline_may_be_given(tmp_path: Path) -> None:
    """What diffusers calls `pipeline.components`; its transformer is the one that is trained, not kept as it is."""
    reference = ReferencePipeline.load(tiny.save_pipeline(tmp_path / "m", routed=False))
    model = reference.model.transformer
    given = {**reference.components, "transformer": model, "scheduler": None}
    config = configure(tmp_path / "out", caption_dropout=0.0, steps=2)
    result = finetune(config, model, Tokens(), schedule(), components=given)
    assert result.is_finished
    assert any(weight.requires_grad for weight in result.model.parameters())
