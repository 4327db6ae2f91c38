"""What a run of fine-tuning has made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from torch_moddit.model import RoutedTransformer


@dataclass(frozen=True)
class FinetuneResult:
    """What a call of `finetune` reached."""

    model: RoutedTransformer  # averaged weights, evaluation mode, with the final plan
    keep_ratio: Tensor | None  # learned ratios [layers][regions]; None where none were learned
    step: int
    is_finished: bool
    log: Path
    # adapters that are merged into a model that was dense, by their names in diffusers' files
    lora: dict[str, Tensor] | None = None
