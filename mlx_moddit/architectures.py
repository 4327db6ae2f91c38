"""The transformers of MLX, by the architecture of a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from mlx_moddit.dit import DiT
from mlx_moddit.pixart import PixArt
from moddit.models.dit import DiTSpec
from moddit.models.pixart import PixArtSpec

TRANSFORMERS: Final[Mapping[str, Any]] = {PixArtSpec.ARCHITECTURE: PixArt, DiTSpec.ARCHITECTURE: DiT}
