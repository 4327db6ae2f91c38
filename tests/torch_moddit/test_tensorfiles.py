"""Files of tensors: as safetensors reads them, aligned, and as readable as other files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from torch_moddit.tensorfiles import write_tensors

DTYPES = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
)


def make_tensors() -> dict[str, Tensor]:
    tensors = {str(dtype): (torch.arange(15) % 2).to(dtype).reshape(3, 5) for dtype in DTYPES}
    return {**tensors, "scalar": torch.tensor(3.5), "empty": torch.ones(0, 2), "turned": torch.randn(3, 5).T}


def test_safetensors_reads_what_was_written(tmp_path: Path) -> None:
    tensors = make_tensors()
    write_tensors(tmp_path / "a.safetensors", tensors, {"format": "pt"})
    found = load_file(tmp_path / "a.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_others_may_read_it_as_any_file(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", {"a": torch.ones(2)}, {})
    (tmp_path / "b").touch()
    assert os.stat(tmp_path / "a.safetensors").st_mode == os.stat(tmp_path / "b").st_mode


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_an_error_of_the_system() -> None:
    with pytest.raises(OSError, match="No space left on device"):
        write_tensors(Path("/dev/full"), {"a": torch.ones(100_000)}, {})
