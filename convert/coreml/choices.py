"""What a user chooses of a bundle for Core ML."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from convert.coreml.compress import Scheme
from moddit.bins import Size


class Routing(Enum):
    """How tokens are moved."""

    ROWS = "rows"
    ONEHOT = "onehot"


@dataclass(frozen=True)
class Choices:
    """The choices; each adds functions to the transformer's packages, or changes how they are stored."""

    sizes: tuple[Size, ...] = ()  # of pictures, pixels; by default the size the model was trained at
    batches: tuple[int, ...] = (2,)
    routing: Routing = Routing.ROWS
    scheme: Scheme = Scheme.NONE
    chunks: int = 1
    max_functions: int | None = None  # for each size and batch
    allow_fewer: bool = False  # where rows are merged, keep fewer tokens than trained
    keep: float | None = None  # share of the tokens in the mean, more than trained
