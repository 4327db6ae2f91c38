"""bfloat16 by its bits, against torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moddit.checkpoint.precision import is_finite, narrow, widen


def test_every_bfloat16_widens_and_narrows_to_itself() -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    bits = bits[~np.isnan((bits.astype(np.uint32) << 16).view(np.float32))]
    wanted = torch.from_numpy(bits).view(torch.bfloat16).float().numpy()
    assert np.array_equal(widen(bits, "BF16"), wanted)
    assert np.array_equal(narrow(wanted, "BF16"), bits)


@pytest.mark.parametrize(("dtype", "target"), [("BF16", torch.bfloat16), ("F16", torch.float16)])
def test_rounds_as_torch_does(dtype: str, target: torch.dtype) -> None:
    bits = np.random.default_rng(0).integers(0, 1 << 32, 200_000, dtype=np.uint32)
    values = np.concatenate(
        [bits.view(np.float32), np.array([1.00390625, 1.01171875, 65504, 65520, 3.4e38], np.float32)]
    )
    values = values[~np.isnan(values)]
    wanted = torch.from_numpy(values).to(target).view(torch.uint16).numpy()
    assert np.array_equal(narrow(values, dtype).view(np.uint16), wanted)


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_finds_what_is_not_finite(dtype: str, value: float) -> None:
    values = np.array([1.0, 0.0, value], np.float32)
    assert not is_finite(narrow(values, dtype), dtype)
    assert is_finite(narrow(values[:2], dtype), dtype)
