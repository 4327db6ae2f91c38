"""From PyTorch's models to MLX's, for parity tests: weights under canonical names, and how far two results are apart.

Weights go straight from one framework to the other here, so that a fault in `convert` cannot hide one in a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import torch
from mlx.utils import tree_flatten
from numpy.typing import ArrayLike, NDArray

from mlx_moddit.load import DTYPES
from moddit.tensors import TensorInfo, is_precise

# The goal of the whole road for every stage, relative to the largest value, by the dtype that weights are stored in and
# computed with. In half precision weights are rounded as well: fifteen roundings of 2**-11 and 2**-8, of which 5 and 9
# were measured.
STAGE_TOLERANCES: Final = {"float32": 1e-4, "float16": 7.5e-3, "bfloat16": 6e-2}
STAGE_TOLERANCE: Final = STAGE_TOLERANCES["float32"]
# Pictures of the same seed, dB: at 45 the mean error is 1.4 of 255 levels, which nobody sees. At 33 it is 6, where
# the 8 bits of bfloat16 make a router keep other tokens. The least that was measured is 58, 54.9 and 39.9.
PICTURE_PSNRS: Final = {"float32": 45.0, "float16": 45.0, "bfloat16": 33.0}

ALIASES: Final = frozenset({"encoder.embed_tokens.weight"})  # second names of a tensor

M = TypeVar("M", bound=nn.Module)


def copy_weights(model: M, weights: Mapping[str, torch.Tensor]) -> M:
    """Load every weight of a PyTorch model into an MLX model, strictly."""
    arrays = [(name, to_mlx(value)) for name, value in weights.items() if name not in ALIASES]
    model.load_weights(arrays, strict=True)
    return model


def round_weights(model: M, tensors: Mapping[str, TensorInfo], dtype: str) -> M:
    """Round an MLX model's weights as a bundle of this dtype stores them: not norms and embeddings."""
    weights = dict(tree_flatten(model.parameters()))
    rounded = [(name, w if is_precise(name, tensors) else w.astype(DTYPES[dtype])) for name, w in weights.items()]
    model.load_weights(rounded, strict=True)
    return model


def to_mlx(value: torch.Tensor) -> mx.array:
    """Copy a float tensor; a convolution's weight (out, in, height, width) becomes (out, height, width, in)."""
    array = value.detach().float().numpy()
    return mx.array(array.transpose(0, 2, 3, 1) if array.ndim == 4 else array)


def to_nchw(images: mx.array) -> NDArray[np.float32]:
    """Turn MLX's NHWC into PyTorch's layout."""
    return np.array(images.astype(mx.float32)).transpose(0, 3, 1, 2)


def relative_error(found: mx.array | ArrayLike, wanted: mx.array | ArrayLike) -> float:
    """Compute the largest difference over the largest wanted value."""
    found, wanted = _to_float64(found), _to_float64(wanted)
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def share_alike(found: Sequence[Sequence[ArrayLike]], wanted: Sequence[Sequence[ArrayLike]]) -> float:
    """Compute which share of the tokens that a reference keeps is kept here too.

    Shapes:
        found, wanted: [steps][layers] (B, K)
    """
    shares = []
    for mine, theirs in zip(found, wanted, strict=True):
        for rows, rows_wanted in zip(mine, theirs, strict=True):
            pairs = zip(np.asarray(rows), np.asarray(rows_wanted), strict=True)
            shares += [np.isin(row_wanted, row).mean() for row, row_wanted in pairs]
    return float(np.mean(shares))


def psnr(found: ArrayLike, wanted: ArrayLike) -> float:
    """Compute the peak signal-to-noise ratio of pictures in 0..1, dB."""
    found, wanted = np.asarray(found, dtype=np.float64), np.asarray(wanted, dtype=np.float64)
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    error = float(np.mean((found - wanted) ** 2))
    return float("inf") if error == 0 else -10 * float(np.log10(error))


def _to_float64(values: mx.array | ArrayLike) -> NDArray[np.float64]:
    if isinstance(values, mx.array):
        values = np.array(values.astype(mx.float32))  # numpy has no bfloat16
    return np.asarray(values, dtype=np.float64)
