"""What people have instead of a model's plain weights, recognised so that one line can say what to do with it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from moddit.checkpoint.stored import StoredTensor
from moddit.errors import InputError, MissingError, UnsupportedError

_ADAPTER_CONFIG: Final = "adapter_config.json"
ADAPTER_FILES: Final = (_ADAPTER_CONFIG, "adapter_model.safetensors", "pytorch_lora_weights.safetensors")
_ADAPTER: Final = re.compile(
    r"(^|[._])(lora_[AB]|lora_down|lora_up|lora\.down|lora\.up|hada_w\d|lokr_w\d|dora_scale)[._]"
)
# What the tools that quantise leave beside or instead of a weight, by the end of its name.
_QUANTISED: Final[Mapping[str, str]] = {
    ".absmax": "bitsandbytes",
    ".quant_map": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".qweight": "GPTQ or AWQ",
    ".qzeros": "GPTQ or AWQ",
    ".scale_weight": "fp8 scaling",
    ".weight_scale": "fp8 scaling",
    "scaled_fp8": "fp8 scaling",
    ".scales": "MLX",
}
_FLOATS_OF_EIGHT_BITS: Final = ("F8_E4M3", "F8_E5M2", "F8_E8M0", "torch.float8_e4m3fn", "torch.float8_e5m2")
_OTHER_FORMATS: Final[Mapping[str, str]] = {".gguf": "GGUF", ".msgpack": "Flax", ".h5": "TensorFlow", ".onnx": "ONNX"}
_VARIANT: Final = re.compile(r"^[\w-]+\.(?P<variant>[\w-]+?)(-\d{5}-of-\d{5})?\.(safetensors|bin)$")


def check_config(config: Mapping[str, Any], where: str) -> None:
    """Raise UnsupportedError if a configuration says that its weights are quantised."""
    found = config.get("quantization_config")
    if found:
        method = found.get("quant_method", "another tool") if isinstance(found, Mapping) else "another tool"
        raise UnsupportedError(f"[source] {where}: quantised by {method}; convert the original, with -q or --compress")


def check_merged(folder: Path) -> None:
    """Raise UnsupportedError if an adapter lies beside the weights of a text encoder: transformers loads both."""
    if (folder / _ADAPTER_CONFIG).is_file():
        raise UnsupportedError(
            f"[source] {folder / _ADAPTER_CONFIG}: an adapter (LoRA) of this model, which transformers would load with "
            "it; merge it with peft's merge_and_unload and save the model, or remove it"
        )


def check_tensors(tensors: Mapping[str, StoredTensor], where: str) -> None:
    """Raise UnsupportedError if tensors are an adapter's or quantised."""
    adapter = next(filter(_ADAPTER.search, tensors), None)
    if adapter is not None:
        raise UnsupportedError(
            f"[source] {where}: an adapter (LoRA), not a model, since it has {adapter!r}; pass it with --lora, and the "
            "model that it was trained on with --hf-path"
        )
    for name, tensor in tensors.items():
        tool = next((tool for end, tool in _QUANTISED.items() if name.endswith(end)), None)
        if tensor.dtype in _FLOATS_OF_EIGHT_BITS:
            tool = "fp8"
        if tool is not None:
            raise UnsupportedError(
                f"[source] {where}: quantised by {tool}, since it has {name!r} in {tensor.dtype}; convert the "
                "original, with -q or --compress"
            )


def explain_folder(folder: Path, wanted: str) -> InputError:
    """Make the error for a component's folder without the weights that its library would read."""
    names = sorted(path.name for path in folder.iterdir() if not path.is_dir())
    listing = ", ".join(names) or "no files"
    if any(name in ADAPTER_FILES for name in names):
        return UnsupportedError(
            f"[source] {folder}: an adapter (LoRA), not a model, got {listing}; pass it with --lora"
        )
    variants = sorted(
        {match["variant"] for match in map(_VARIANT.match, names) if match and match["variant"] != "index"}
    )
    if variants:
        return MissingError(
            f"[source] {folder / wanted}: no such file; the folder has variant {' and '.join(variants)} only; "
            f"pass --variant {variants[0]}"
        )
    foreign = _other_format(names)
    if foreign is not None:
        return UnsupportedError(f"[source] {folder}: got weights in {foreign}, want safetensors; convert the original")
    return MissingError(
        f"[source] {folder / wanted}: no such file, nor an index of shards; the folder has {listing}; "
        "save the model with save_pretrained(..., safe_serialization=True)"
    )


def check_suffix(path: Path) -> None:
    """Raise UnsupportedError if a file's suffix is that of a format that is not read."""
    foreign = _other_format([path.name])
    if foreign is not None:
        raise UnsupportedError(f"[source] {path}: {foreign} is not read; convert the original, in safetensors or .pth")


def _other_format(names: Iterable[str]) -> str | None:
    return next((kind for name in names for suffix, kind in _OTHER_FORMATS.items() if name.endswith(suffix)), None)
