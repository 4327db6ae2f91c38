"""A manifest that is imagined is the one that `convert` writes, as far as sizes go."""

from __future__ import annotations

from pathlib import Path

import pytest

from convert.cli import main as convert
from mlx_moddit.imagined import imagine_manifest
from moddit.manifest import read_manifest
from tests.tiny import save_pipeline


@pytest.mark.parametrize(
    ("dtype", "bits"), [("float16", None), ("float32", None), ("float16", 4), ("bfloat16", 8), ("float32", 3)]
)
def test_sizes_are_those_of_a_conversion(tmp_path: Path, dtype: str, bits: int | None) -> None:
    wide = {"num_attention_heads": 4, "attention_head_dim": 32, "cross_attention_dim": 128}
    source = save_pipeline(tmp_path / "source", kind="sigma", transformer=wide)
    command = ["--from", "hf-checkpoint", "--hf-path", str(source), "--out", str(tmp_path / "bundle"), "--dtype", dtype]
    assert convert([*command, *(["-q", "--q-bits", str(bits)] if bits else [])]) == 0
    found = read_manifest(tmp_path / "bundle")
    made = imagine_manifest(found.spec, found.tokens, dtype, bits)
    for name, component in found.components.items():
        imagined = made.components[name]
        assert imagined.parameters == component.parameters
        assert [item.packing for item in imagined.quantization] == [item.packing for item in component.quantization]
        if component.parameters:
            (file,) = imagined.files
            assert file.bytes == sum(numbers(tmp_path / "bundle" / info.path) for info in component.files), name


def numbers(path: Path) -> int:
    """Count the bytes of a file of safetensors without its header."""
    with path.open("rb") as file:
        return path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")
