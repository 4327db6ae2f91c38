"""Routed and dense checkpoints as diffusers folders, written whole or not at all and read strictly.

The transformer's `config.json` gains a "diffcr" object (the snapped plan, the truth for inference), its safetensors
gain `transformer_blocks.{i}.router.weight` and, for the record, the learned `transformer_blocks.{i}.keep_ratio`
(float32).
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import PixArtTransformer2DModel
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from moddit.errors import FormatError, MissingError, OutputExistsError, ShapeError, StorageError, ValueRangeError
from moddit.routing import RoutingPlan
from moddit.spec import PixArtSpec
from moddit.tensors import KEEP_RATIO, check_names, transformer_tensors
from torch_moddit.model import RoutedPixArt

PLAN_KEY: Final = "diffcr"
WEIGHTS: Final = "diffusion_pytorch_model{suffix}.safetensors"
INDEX: Final = "diffusion_pytorch_model.safetensors.index.json"
TRANSFORMER: Final = "transformer"


def save_checkpoint(
    folder: Path,
    model: RoutedPixArt,
    *,
    source: Path | None = None,
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
        source: pipeline folder whose other components are copied.
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

    def write(target: Path) -> None:
        if source is not None:
            shutil.copytree(source, target, dirs_exist_ok=True, ignore=_ignore_transformer(source))
        elif pipeline is not None:
            _save_others(target, pipeline, dtype)
        write_transformer(target / TRANSFORMER, model, keep_ratio, dtype, max_shard_size)

    write_whole(folder, write, overwrite=overwrite)


def write_transformer(
    folder: Path,
    model: RoutedPixArt,
    keep_ratio: Tensor | None = None,
    dtype: torch.dtype | None = None,
    max_shard_size: int | str = "10GB",
) -> None:
    """Write `config.json` and safetensors into a folder that the caller makes appear whole."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {key: value for key, value in dict(model.transformer.config).items() if not key.startswith("_")}
    config = {"_class_name": "PixArtTransformer2DModel", **config}
    if model.plan is not None:
        config[PLAN_KEY] = model.plan.to_json()
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    state = model.transformer.state_dict()
    tensors = {name: value.detach().to("cpu", dtype or value.dtype).contiguous() for name, value in state.items()}
    if keep_ratio is not None:
        for layer, row in enumerate(keep_ratio.detach().to("cpu", torch.float32)):
            tensors[KEEP_RATIO.format(layer=layer)] = row.clone()
    shards = split_torch_state_dict_into_shards(
        tensors, filename_pattern=WEIGHTS.format(suffix="{suffix}"), max_shard_size=max_shard_size
    )
    for name, members in shards.filename_to_tensors.items():
        save_file({member: tensors[member] for member in members}, folder / name, metadata={"format": "pt"})
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def load_checkpoint(folder: Path, *, dtype: torch.dtype = torch.float32) -> RoutedPixArt:
    """Load the transformer of a checkpoint, routed or dense, in evaluation mode.

    Args:
        folder: a pipeline folder, or its `transformer/`.
        dtype: of the loaded weights.

    Raises:
        MissingError: a file is absent.
        FormatError: a file is not what it claims to be.
        ShapeError: tensors are missing, unexpected or mis-shaped, or the plan does not fit the transformer.
        UnsupportedError: another architecture.
        ValueRangeError: NaN or infinite weights, or a keep ratio out of range.
    """
    folder = _transformer_folder(folder)
    config, plan = read_config(folder)
    spec = PixArtSpec.from_diffusers(config, str(folder / "config.json"))
    tensors = _read_tensors(folder)
    _take_keep_ratios(tensors, plan, folder)
    wanted = transformer_tensors(spec, routed=plan is not None)
    check_names({name: tuple(value.shape) for name, value in tensors.items()}, wanted, str(folder))
    _check_finite(tensors, folder)
    transformer: Any = PixArtTransformer2DModel.from_config(config)
    model = RoutedPixArt(transformer, plan)
    transformer.load_state_dict(tensors, strict=True)
    return model.to(dtype).eval()


def read_config(folder: Path) -> tuple[dict[str, Any], RoutingPlan | None]:
    """Read `config.json` of a transformer folder, and the plan in it if the model is routed.

    Raises:
        MissingError, FormatError: absent, or not a JSON object.
        FormatError, ShapeError, ValueRangeError: the plan is damaged or has another number of layers.
    """
    path = folder / "config.json"
    config = _read_json(path)
    if PLAN_KEY not in config:
        return config, None
    where = f"{path}: {PLAN_KEY}"
    plan = RoutingPlan.from_json(config.pop(PLAN_KEY), where)
    if plan.layers != config.get("num_layers"):
        raise ShapeError(
            f"[export] {where}: keep_tenths has {plan.layers} layers, the transformer {config.get('num_layers')}"
        )
    return config, plan


def read_keep_ratios(folder: Path) -> Tensor | None:
    """Read the learned keep ratios of a checkpoint, (layers, regions) float32; None if it has none.

    Raises:
        as `load_checkpoint`
    """
    folder = _transformer_folder(folder)
    _, plan = read_config(folder)
    return _take_keep_ratios(_read_tensors(folder), plan, folder)


def write_whole(folder: Path, write: Callable[[Path], None], *, overwrite: bool) -> None:
    """Fill a new folder beside `folder` and rename it, so that readers see the old one or the whole new one.

    Raises:
        OutputExistsError: `folder` exists and may not be replaced.
        StorageError: disk full, or no permission.
    """
    if folder.exists() and not overwrite:
        raise OutputExistsError(f"[export] {folder} exists; choose another folder or allow overwriting")
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    old = folder.with_name(f"{folder.name}.{os.getpid()}.old")
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        if folder.exists():
            os.replace(folder, old)
        os.replace(temporary, folder)
    except OSError as error:
        raise StorageError(f"[export] cannot write {folder}: {error}; free space or choose another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _save_others(target: Path, pipeline: Any, dtype: torch.dtype | None) -> None:
    """Save every component of a diffusers pipeline but the transformer, and `model_index.json`."""
    index: dict[str, Any] = {"_class_name": type(pipeline).__name__}
    for name, part in sorted(pipeline.components.items()):
        component: Any = part
        index[name] = [type(component).__module__.split(".")[0], type(component).__name__]
        if name == TRANSFORMER:
            index[name] = ["diffusers", "PixArtTransformer2DModel"]
            continue
        if isinstance(component, torch.nn.Module) and dtype is not None:
            component = copy.deepcopy(component).to(dtype)
        component.save_pretrained(target / name)
    (target / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _ignore_transformer(source: Path) -> Callable[[str, list[str]], list[str]]:
    def ignore(folder: str, names: list[str]) -> list[str]:
        return [TRANSFORMER] if Path(folder) == source and TRANSFORMER in names else []

    return ignore


def _transformer_folder(folder: Path) -> Path:
    return folder / TRANSFORMER if (folder / TRANSFORMER).is_dir() else folder


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise MissingError(f"[export] {path}: no such file; want a diffusers folder") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FormatError(f"[export] {path}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise FormatError(f"[export] {path}: got {type(value).__name__}, want a JSON object")
    return value


def _weight_files(folder: Path) -> list[Path]:
    single = folder / WEIGHTS.format(suffix="")
    if single.is_file():
        return [single]
    if (folder / INDEX).is_file():
        weight_map = _read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise FormatError(f"[export] {folder / INDEX}: no weight_map of tensor names to files")
        return [folder / name for name in sorted(set(weight_map.values()))]
    raise MissingError(f"[export] {single}: no such file, and no {INDEX}; want safetensors weights")


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for path in _weight_files(folder):
        if not path.is_file():
            raise MissingError(f"[export] {path}: no such file, though {INDEX} lists it")
        try:
            with safe_open(path, framework="pt") as file:
                tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise FormatError(f"[export] {path}: not a safetensors file or truncated ({error})") from None
    return tensors


def _take_keep_ratios(tensors: dict[str, Tensor], plan: RoutingPlan | None, folder: Path) -> Tensor | None:
    """Remove the keep ratios from `tensors` and return them checked; all layers have them, or none."""
    if plan is None:
        return None
    names = [KEEP_RATIO.format(layer=layer) for layer in range(plan.layers)]
    found = [tensors.pop(name).float() for name in names if name in tensors]
    if not found:
        return None
    if len(found) != plan.layers or any(tuple(value.shape) != (plan.regions,) for value in found):
        shapes = [tuple(value.shape) for value in found]
        raise ShapeError(
            f"[export] {folder}: keep_ratio tensors do not fit the plan, got {shapes}, "
            f"want {plan.layers} of shape ({plan.regions},)"
        )
    table = torch.stack(found)
    if not bool(((table > 0) & (table <= 1)).all()):
        raise ValueRangeError(f"[export] {folder}: keep_ratio out of range, got {table.tolist()}, want 0 < ratio <= 1")
    return table


def _check_finite(tensors: Mapping[str, Tensor], folder: Path) -> None:
    broken = sorted(name for name, value in tensors.items() if not bool(torch.isfinite(value).all()))
    if broken:
        raise ValueRangeError(f"[export] {folder}: NaN or infinite weights in {', '.join(broken)}")
