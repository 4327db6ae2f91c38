"""Routed and dense checkpoints as diffusers folders, written whole or not at all.

A routed transformer's `config.json` gains a "diffcr" object (the snapped plan, the truth for inference), its
safetensors gain `transformer_blocks.{i}.router.weight` and, for the record, the learned
`transformer_blocks.{i}.keep_ratio` (float32). Its class is one that diffusers has not, in `config.json` and in
`model_index.json`: diffusers refuses the folder, instead of running it without routing.
"""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from torch import Tensor

from moddit.checkpoint.conditioning import NAMES
from moddit.checkpoint.diffcr import PLAN_KEY, ROUTED_CLASS, ROUTED_NORM_TYPE
from moddit.checkpoint.lora import DIFFUSERS_FILE, LORA_PREFIX
from moddit.checkpoint.sources import COMPONENTS, INDEX, TRANSFORMER, Sources, as_sources
from moddit.errors import MissingError
from moddit.files import check_folder, discard, new_folder, recover
from moddit.tensors import KEEP_RATIO, ROUTER
from torch_moddit.model import RoutedTransformer
from torch_moddit.result import FinetuneResult
from torch_moddit.tensorfiles import write_tensors

KIND: Final = "checkpoint"
ADAPTER: Final = "adapter"
WEIGHTS: Final = "diffusion_pytorch_model{suffix}.safetensors"
SHARD_INDEX: Final = "diffusion_pytorch_model.safetensors.index.json"


def check_output(folder: Path, *, overwrite: bool) -> None:
    """Raise OutputExistsError if `save_checkpoint` may not write there, once what a dead writer left is put right."""
    recover(folder)
    check_folder(folder, kind=KIND, may_replace=is_checkpoint if overwrite else None)


def check_adapter(folder: Path, *, overwrite: bool) -> None:
    """As `check_output`, for `save_adapter`."""
    recover(folder)
    check_folder(folder, kind=ADAPTER, may_replace=is_adapter if overwrite else None)


def save_checkpoint(
    folder: Path,
    model: RoutedTransformer,
    *,
    source: Path | Sources | None = None,
    pipeline: Any = None,
    keep_ratio: Tensor | None = None,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = "10GB",
    overwrite: bool = False,
) -> None:
    """Write a diffusers folder with the model as its transformer; it appears whole or not at all.

    Args:
        folder: of the pipeline.
        model: routed or dense.
        source: checkpoint whose other components are copied.
        pipeline: diffusers pipeline whose other components are saved, instead of `source`; with neither, only
            `transformer/` is written.
        keep_ratio: learned ratios [layers][regions], stored beside the routers; the plan stored is the model's.
        dtype: of the weights; None leaves them as they are. Keep ratios stay float32.
        max_shard_size: of one file, bytes or like "5GB".
        overwrite: replace an existing folder.

    Raises:
        OutputExistsError: the folder exists and may not be replaced.
        StorageError: it cannot be written.
    """
    with new_folder(folder, kind=KIND, may_replace=is_checkpoint if overwrite else None) as target:
        if source is not None:
            _write_index(target / INDEX, model, _copy_others(target, as_sources(source)))
        elif pipeline is not None:
            _write_index(target / INDEX, model, _save_others(target, pipeline, dtype))
        write_transformer(target / TRANSFORMER, model, keep_ratio, dtype, max_shard_size)


def save_adapter(
    folder: Path, result: FinetuneResult, *, dtype: torch.dtype = torch.float32, overwrite: bool = False
) -> None:
    """Write what a run with LoRA has added to a dense model, as one file in diffusers' form.

    Args:
        folder: of the file.
        result: of the run: adapters, routers, their plan and learned ratios.
        dtype: of adapters and routers.
        overwrite: replace an existing folder.

    Raises:
        MissingError: the run has trained no adapters, or those of a model that was routed before, whose routers would
            be taken for the run's own, or of one whose input was widened, which no adapter has.
        OutputExistsError: the folder exists and may not be replaced.
        StorageError: it cannot be written.
    """
    if result.lora is None:
        raise MissingError(
            f"[finetune] {folder}: the run has no adapters of a dense model; want a run with train lora, and not in "
            "mode fixed, nor one that made the model read a mask"
        )
    model, keep_ratio = result.model, result.keep_ratio
    tensors = {name: tensor.to(dtype) for name, tensor in result.lora.items()}
    metadata = {"format": "pt"}
    if model.policy.has_routers:
        for layer, weight in enumerate(model.router_parameters()):
            tensors[f"{LORA_PREFIX}{ROUTER.format(layer=layer)}"] = weight.detach().to("cpu", dtype)
        for layer, row in enumerate([] if keep_ratio is None else keep_ratio):
            tensors[f"{LORA_PREFIX}{KEEP_RATIO.format(layer=layer)}"] = row.detach().cpu().clone()
        metadata[PLAN_KEY] = json.dumps(model.policy.plan.to_json())
    with new_folder(folder, kind=ADAPTER, may_replace=is_adapter if overwrite else None) as target:
        write_tensors(target / DIFFUSERS_FILE, tensors, metadata)


def drop_adapter(folder: Path) -> None:
    """Remove what `save_adapter` has written there, if anything; raises StorageError."""
    if is_adapter(folder):
        discard(folder)


def write_transformer(
    folder: Path,
    model: RoutedTransformer,
    keep_ratio: Tensor | None = None,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = "10GB",
) -> None:
    """Write `config.json` and safetensors into a folder that the caller makes appear whole."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {key: value for key, value in dict(model.transformer.config).items() if not key.startswith("_")}
    config = {"_class_name": _class_name(model), **config}
    if not model.policy.is_dense:
        config |= {"norm_type": ROUTED_NORM_TYPE + model.spec.NORM_TYPE, PLAN_KEY: model.policy.plan.to_json()}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    state = model.transformer.state_dict()
    tensors = {name: value.detach().to("cpu", dtype or value.dtype) for name, value in state.items()}
    if keep_ratio is not None:
        for layer, row in enumerate(keep_ratio.detach().to("cpu", torch.float32)):
            tensors[KEEP_RATIO.format(layer=layer)] = row.clone()
    shards = split_torch_state_dict_into_shards(tensors, filename_pattern=WEIGHTS, max_shard_size=max_shard_size)
    for name, members in shards.filename_to_tensors.items():
        write_tensors(folder / name, {member: tensors[member] for member in members}, {"format": "pt"})
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        (folder / SHARD_INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def is_checkpoint(folder: Path) -> bool:
    """Say whether a folder is a checkpoint: only such a folder is ever replaced."""
    return any((folder / name).is_file() for name in (INDEX, f"{TRANSFORMER}/config.json"))


def is_adapter(folder: Path) -> bool:
    """Say whether a folder has adapters: only such a folder is ever replaced by others."""
    return (folder / DIFFUSERS_FILE).is_file()


def _class_name(model: RoutedTransformer) -> str:
    return ("" if model.policy.is_dense else ROUTED_CLASS) + model.spec.DIFFUSERS_CLASS


def _write_index(path: Path, model: RoutedTransformer, index: dict[str, Any]) -> None:
    """Write a pipeline's index, with the class of this transformer."""
    index[TRANSFORMER] = ["diffusers" if model.policy.is_dense else "torch_moddit", _class_name(model)]
    path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _copy_others(target: Path, sources: Sources) -> dict[str, Any]:
    """Copy every component of a checkpoint but the transformer; return the index of the pipeline that they make."""
    for name in COMPONENTS:
        if name != TRANSFORMER and sources.has(name):
            (target / name).mkdir()
            for path in sources.component(name).iterdir():
                if path.is_file():
                    shutil.copyfile(path, target / name / path.name)
    return sources.whole_index()


def _class_names(pipeline: Any) -> dict[str, Any]:
    """Give the names of a pipeline's classes as an index has them: diffusers keeps the number of each name alone."""
    names: dict[str, list[str]] = {}
    for name, number in getattr(pipeline, "labels", {}).items():
        names.setdefault(str(number), []).append(name)
    return {NAMES: {number: ", ".join(found) for number, found in sorted(names.items())}} if names else {}


def _save_others(target: Path, pipeline: Any, dtype: torch.dtype | None) -> dict[str, Any]:
    """Save every component of a diffusers pipeline but the transformer; return its index."""
    index: dict[str, Any] = {"_class_name": type(pipeline).__name__, **_class_names(pipeline)}
    for name, part in sorted(pipeline.components.items()):
        component: Any = part
        index[name] = [type(component).__module__.split(".")[0], type(component).__name__]
        if name == TRANSFORMER:
            continue
        if isinstance(component, torch.nn.Module) and dtype is not None:
            component = copy.deepcopy(component).to(dtype)
        try:
            component.save_pretrained(target / name)
        except SafetensorError as error:  # which has what the system said in its text alone
            raise OSError(str(error)) from error
    return index
