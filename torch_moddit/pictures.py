"""Pictures as tensors; `moddit.pictures` reads them."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from moddit.edits import normalize


def to_pixels(picture: Image.Image) -> Tensor:
    """Turn a picture into what a VAE takes. Shapes: -> (3, H, W), -1..1."""
    return torch.from_numpy(normalize(np.asarray(picture))).permute(2, 0, 1)
