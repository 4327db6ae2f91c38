"""Class-conditional DiT: the reference against diffusers' own model and pipeline, and its fine-tuning."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiTPipeline, DiTTransformer2DModel
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from moddit.errors import MissingError, UnsupportedError, ValueRangeError
from moddit.routing import RoutingPlan, capacity, select_tokens
from moddit.tokens import TokenPolicy
from tests import tiny
from tests.torch_moddit.training import configure, schedule
from torch_moddit.cli import command
from torch_moddit.data import Item, PictureFolder
from torch_moddit.dit import RoutedDiT
from torch_moddit.export import save_checkpoint
from torch_moddit.finetune import Mode, finetune
from torch_moddit.loading import load_checkpoint
from torch_moddit.model import BlockTrace
from torch_moddit.pipeline import ReferencePipeline
from torch_moddit.tokens import BinUse

LAST_BIT = 1e-6  # the operations are the same; products at differently aligned addresses may differ in the last bit
ROUNDING = 5e-5  # float32 sums in another order, on values of about 10
DECIBELS = 55.0  # of a picture against DiTPipeline's: another order of the batch's rows, and 8 steps that magnify it
NO_CLASS = 1000
LABELS = torch.tensor([0, 207, 999, NO_CLASS])
TIMESTEPS = torch.tensor([3, 260, 510, 999])  # one of each of four regions


def latents(height: int = 12, width: int = 10) -> Tensor:
    return torch.randn(4, 4, height, width, generator=torch.Generator().manual_seed(5))


def psnr(found: Any, wanted: Any) -> float:
    return float(-10 * np.log10(max(1e-12, np.mean((found - wanted) ** 2))))


@torch.no_grad()
@pytest.mark.parametrize("size", [(16, 16), (4, 4)])
@pytest.mark.parametrize("changes", [{}, {"out_channels": 4}, {"attention_bias": False}, {"norm_eps": 1e-3}], ids=str)
def test_equals_diffusers_when_all_tokens_are_kept(changes: dict[str, Any], size: tuple[int, int]) -> None:
    transformer = tiny.make_dit(**changes)
    values = latents(*size)
    wanted = transformer(values, timestep=TIMESTEPS, class_labels=LABELS).sample
    plan = RoutingPlan.uniform(3, 4, 10)
    models = {
        "dense": RoutedDiT(copy.deepcopy(transformer), TokenPolicy.dense(3, 1000)),
        "no gate": RoutedDiT.from_dense(copy.deepcopy(transformer), TokenPolicy.random(plan)),
        "folded gate": RoutedDiT.from_dense(copy.deepcopy(transformer), TokenPolicy.topk(plan)),
    }
    for name, model in models.items():
        assert float((model(values, TIMESTEPS, {"labels": LABELS}) - wanted).abs().max()) <= LAST_BIT, name


@torch.no_grad()
def test_routes_by_layer_and_region() -> None:
    plan = RoutingPlan(tuple(tuple(row) for row in tiny.random_tenths(3, 4)))
    transformer = tiny.make_dit()
    model = RoutedDiT(transformer, TokenPolicy.topk(plan))
    transformer.load_state_dict(tiny.router_weights(3, 48), strict=False)
    traces: list[BlockTrace] = []
    together = model(latents(), TIMESTEPS, {"labels": LABELS}, on_block=traces.append)
    for trace in traces:
        assert trace.scores is not None
        for row, kept in enumerate(trace.kept):
            count = capacity(plan.keep_tenths[trace.layer][row], 30)
            assert kept.tolist() == select_tokens(trace.scores[row : row + 1].numpy(), count)[0].tolist()
    for row in range(4):
        part = slice(row, row + 1)
        alone = model(latents()[part], TIMESTEPS[part], {"labels": LABELS[part]})
        torch.testing.assert_close(together[part], alone, rtol=0, atol=ROUNDING)


def test_labels_are_not_dropped_in_training() -> None:
    model = RoutedDiT(tiny.make_dit(), TokenPolicy.dense(3, 1000))
    with torch.no_grad():
        wanted = model.eval()(latents(), TIMESTEPS, {"labels": LABELS})
        torch.manual_seed(0)
        assert torch.equal(model.train()(latents(), TIMESTEPS, {"labels": LABELS}), wanted)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp-2m"])
@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_dense_pictures_are_those_of_diffusers(tmp_path: Path, sampler: str, guidance_scale: float) -> None:
    folder = tiny.save_dit_pipeline(tmp_path / "m", routed=False, sampler=sampler)
    pipeline: Any = DiTPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    wanted = pipeline(
        class_labels=pipeline.get_label_ids(["golden retriever"]),
        guidance_scale=guidance_scale,
        num_inference_steps=8,
        generator=torch.Generator().manual_seed(7),
        output_type="np",
    ).images[0]
    found = ReferencePipeline.load(folder).generate(
        label="golden retriever", seed=7, steps=8, guidance_scale=guidance_scale
    )
    assert found.shape == wanted.shape == (32, 32, 3)
    assert psnr(found, wanted) > DECIBELS


def test_what_a_label_may_be(tmp_path: Path) -> None:
    reference = ReferencePipeline.load(tiny.save_dit_pipeline(tmp_path / "m"))
    assert reference.request(label="Tinca tinca").label == 0
    assert reference.request(label="GOLDEN retriever").label == 207
    assert reference.request(label=3).guidance_scale == 4.0
    with pytest.raises(MissingError, match=r"no class is called 'golden retriver'.*'golden retriever'"):
        reference.request(label="golden retriver")
    with pytest.raises(ValueRangeError, match=r"class 1000 out of range, want 0\.\.999"):
        reference.request(label=1000)
    with pytest.raises(UnsupportedError, match="draws a class; want a label alone"):
        reference.request("a red circle", label=3)
    with pytest.raises(MissingError, match="no label"):
        reference.request()


def test_published_layouts_are_read(tmp_path: Path) -> None:
    """facebook's DiT-XL-2-256 has the class of before diffusers 0.29 and many keys that nothing reads."""
    folder = tiny.save_dit_pipeline(tmp_path / "m", routed=False)
    wanted = load_checkpoint(folder)
    path = folder / "transformer" / "config.json"
    config = json.loads(path.read_text()) | {"_class_name": "Transformer2DModel", "num_vector_embeds": None}
    path.write_text(json.dumps(config | {"cross_attention_dim": None, "only_cross_attention": False}))
    index = folder / "model_index.json"
    parts = json.loads(index.read_text())
    index.write_text(json.dumps(parts | {"transformer": ["diffusers", "Transformer2DModel"]}))
    found = load_checkpoint(folder)
    assert isinstance(found.transformer, DiTTransformer2DModel)
    assert found.spec == wanted.spec


class LabelledLatents(Dataset[Item]):
    """Random latents of random classes."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.latents = torch.randn(24, 4, 8, 8, generator=generator)
        self.labels = torch.randint(0, 1000, (24,), generator=generator)

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> Item:
        return {"latents": self.latents[index], "labels": self.labels[index]}


@pytest.mark.parametrize("mode", [Mode.LEARNED, Mode.DENSE, Mode.RANDOM])
def test_fine_tuning_reaches_the_target(tmp_path: Path, mode: Mode) -> None:
    config = replace(configure(tmp_path), mode=mode)
    null = {"labels": torch.tensor(NO_CLASS)}
    result = finetune(config, tiny.make_dit(sample_size=8), LabelledLatents(), schedule(), null=null)
    assert result.is_finished
    plan = result.model.policy.plan
    assert plan.mean_keep_ratio == (1.0 if mode is Mode.DENSE else pytest.approx(0.5, abs=0.1 / 12))


def test_fine_tunes_from_a_folder_of_pictures(tmp_path: Path) -> None:
    folder = tiny.save_dit_pipeline(tmp_path / "m", routed=False)
    (tmp_path / "data").mkdir()
    for index, label in enumerate(("golden retriever", "3", "Tinca tinca")):
        Image.new("RGB", (40, 32), (index * 40, 80, 10)).save(tmp_path / "data" / f"{index}.png")
        (tmp_path / "data" / f"{index}.txt").write_text(label)
    arguments = ["--model", str(folder), "--images", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    command.main([*arguments, "--steps", "2", "--batch-size", "2"], standalone_mode=False)
    found = ReferencePipeline.load(tmp_path / "out" / "model")
    assert found.model.policy.has_routers
    assert found.request(label="tench").label == 0  # names of classes stay in the index
    index = json.loads((tmp_path / "out" / "model" / "model_index.json").read_text())
    assert index["transformer"] == ["torch_moddit", "RoutedDiTTransformer2DModel"]


def test_names_of_classes_survive_a_save_of_a_pipeline(tmp_path: Path) -> None:
    pipeline: Any = DiTPipeline.from_pretrained(tiny.save_dit_pipeline(tmp_path / "m", routed=False))
    model = RoutedDiT.from_dense(pipeline.transformer, TokenPolicy.topk(RoutingPlan.uniform(3, 4, 5)))
    save_checkpoint(tmp_path / "out", model, pipeline=pipeline)
    reference = ReferencePipeline.load(tmp_path / "out")
    assert [reference.request(label=name).label for name in ("Tinca tinca", "tench", "golden retriever")] == [0, 0, 207]


def test_a_context_without_labels_is_refused() -> None:
    model = RoutedDiT(tiny.make_dit(), TokenPolicy.dense(3, 1000))
    with pytest.raises(MissingError, match=r"context has \['text'\], but no labels"):
        model(latents(), TIMESTEPS, {"text": torch.zeros(4, 3, 32)})


def test_a_caption_that_is_no_class_names_its_file(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("no such thing")
    spec = ReferencePipeline.load(tiny.save_dit_pipeline(tmp_path / "m")).spec

    def tell(caption: str) -> Item:
        return {"labels": torch.tensor(spec.conditioning.of_caption(caption, spec.transformer))}

    with pytest.raises(MissingError, match=r"no class is called 'no such thing'.*\(caption of .*a\.png\)"):
        PictureFolder(tmp_path, tell, height=8, width=8, sizes={})[0]


def test_a_transformer_loads_without_knowing_its_pipeline(tmp_path: Path) -> None:
    """As before: only whole pipelines need a class that is implemented."""
    folder = tiny.save_dit_pipeline(tmp_path / "m")
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"_class_name": "DiTPAGPipeline"}))
    assert load_checkpoint(folder).policy.has_routers
    with pytest.raises(UnsupportedError, match="'DiTPAGPipeline' is not implemented"):
        ReferencePipeline.load(folder)


def test_shares_add_up_to_one_in_half_precision() -> None:
    """Every layer mixes its whole output: shares in bfloat16, which add up to 1.002 or 0.998, would scale it."""
    model = RoutedDiT.from_dense(tiny.make_dit(), TokenPolicy.topk(RoutingPlan(((10,),) * 3))).eval()
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    share = torch.full((2,), 0.3018)  # of which bfloat16 makes 0.3027 and 0.6992

    def mix(_: int, __: Any) -> list[BinUse]:
        return [BinUse(10, None, share), BinUse(10, None, 1 - share)]

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        whole, mixed = (
            model(latents, torch.tensor([10, 700]), {"labels": torch.tensor([0, 1])}, routing=routing)
            for routing in (None, mix)
        )
    assert torch.equal(mixed, whole)
