"""From PyTorch's models to MLX's, for parity tests: weights under canonical names, and how far two results are apart.

Weights go straight from one framework to the other here, so that a fault in `convert` cannot hide one in a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

# The goal of the whole road for every stage in float32; one rounding is 6e-8 and a stage has some hundreds in a row.
STAGE_TOLERANCE: Final = 1e-4  # relative to the largest value
# Pictures of the same seed: at 45 dB the mean error is 1.4 of 255 levels, which nobody sees.
PICTURE_PSNR: Final = 45.0  # dB

ALIASES: Final = frozenset({"encoder.embed_tokens.weight"})  # second names of a tensor

M = TypeVar("M", bound=nn.Module)


def copy_weights(model: M, weights: Mapping[str, torch.Tensor]) -> M:
    """Load every weight of a PyTorch model into an MLX model, strictly."""
    arrays = [(name, to_mlx(value)) for name, value in weights.items() if name not in ALIASES]
    model.load_weights(arrays, strict=True)
    return model


def to_mlx(value: torch.Tensor) -> mx.array:
    """Copy a float tensor; a convolution's weight (out, in, height, width) becomes (out, height, width, in)."""
    array = value.detach().float().numpy()
    return mx.array(array.transpose(0, 2, 3, 1) if array.ndim == 4 else array)


def to_nchw(images: mx.array) -> NDArray[np.float32]:
    """Turn MLX's NHWC into PyTorch's layout."""
    return np.array(images.astype(mx.float32)).transpose(0, 3, 1, 2)


def relative_error(found: ArrayLike, wanted: ArrayLike) -> float:
    """Compute the largest difference over the largest wanted value."""
    found, wanted = np.asarray(found, dtype=np.float64), np.asarray(wanted, dtype=np.float64)
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def psnr(found: ArrayLike, wanted: ArrayLike) -> float:
    """Compute the peak signal-to-noise ratio of pictures in 0..1, dB."""
    found, wanted = np.asarray(found, dtype=np.float64), np.asarray(wanted, dtype=np.float64)
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    error = float(np.mean((found - wanted) ** 2))
    return float("inf") if error == 0 else -10 * float(np.log10(error))
