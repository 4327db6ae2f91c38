"""What the comparison asks of a world: prompts that nobody trained on, a teacher, and who judges pictures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from torch_moddit.finetune import FinetuneConfig, FinetuneResult

Pictures = NDArray[np.float32]  # (B, H, W, 3), RGB in 0..1
Outcomes = dict[str, NDArray[np.bool_]]  # by the name of a measure, of each picture, (B,)


class World(ABC):
    """An embedded text-to-image problem; what it makes once it keeps in a folder.

    Args:
        work: that folder.
        is_smoke: make as little as shows that everything runs.
    """

    NAME: ClassVar[str]
    OUTCOME: ClassVar[str]  # the measure that claims are about
    # Fields of `FinetuneConfig` with which its models are fine-tuned, steps among them.
    SETTINGS: ClassVar[Mapping[str, Any]]

    def __init__(self, work: Path, *, is_smoke: bool) -> None:
        self.work = work
        self.is_smoke = is_smoke

    @abstractmethod
    def teacher(self) -> Path:
        """Give the diffusers folder of the dense pipeline."""

    @abstractmethod
    def finetune(self, config: FinetuneConfig) -> FinetuneResult:
        """Fine-tune the teacher on the world's training set."""

    @abstractmethod
    def prompts(self, count: int) -> list[str]:
        """Give the first of the held-out prompts, always the same ones; fewer if there are not so many."""

    @abstractmethod
    def show(self, prompts: Sequence[str]) -> Pictures:
        """Give a true picture of each held-out prompt, always the same one."""

    @abstractmethod
    def score(self, pictures: Pictures, prompts: Sequence[str]) -> Outcomes:
        """Say of each picture which measures it satisfies; OUTCOME is among them."""

    @abstractmethod
    def features(self, pictures: Pictures) -> NDArray[np.float64]:
        """Give what a classifier makes of each picture, between which distances mean something. Shapes: -> (B, D)."""
