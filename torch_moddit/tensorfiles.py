"""Tensors of PyTorch in files of the safetensors format.

Written here, not by safetensors' `save_file`: that hides what the system said of a disk that is full, and makes a file
that only its owner may read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import IO, Final

import torch
from torch import Tensor

from moddit.checkpoint.safetensors import format_header

_DTYPES: Final[Mapping[torch.dtype, str]] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors of any device and layout, those with the widest items first, so that all are aligned; raises
    OSError.
    """
    with path.open("wb") as file:
        dump_tensors(file, tensors, metadata)


def dump_tensors(file: IO[bytes], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """As `write_tensors`, into a file that is open."""
    items = sorted(tensors.items(), key=lambda item: -item[1].element_size())
    file.write(format_header([(name, _DTYPES[item.dtype], tuple(item.shape)) for name, item in items], metadata))
    for _, item in items:
        file.write(item.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
