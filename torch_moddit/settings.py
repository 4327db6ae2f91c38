"""What a fine-tuning run is told: its configuration, and what follows from it at each step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final

from moddit.bounds import REGIONS
from moddit.errors import ValueRangeError
from moddit.routing import DENOMINATOR
from torch_moddit.ratios import MIN_RATIO, check_target

MOST_STEPS: Final = 10**8
TRACKERS: Final = ("tensorboard", "wandb")  # of Accelerate
RATE_SCHEDULES: Final = (  # ours, and those of diffusers.optimization (`torch_moddit.rates`)
    *("warmup_stable_decay", "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts"),
    "polynomial",
)
# What a run may be told: generous, so that a slip of the finger is an error instead of days or all of the memory.
RANGES: Final[Mapping[str, tuple[float, float]]] = {
    **dict.fromkeys(("steps", "log_every", "save_every", "keep_checkpoints"), (1, MOST_STEPS)),
    "batch_size": (1, 65_536),
    "target": (MIN_RATIO, 1.0),
    **dict.fromkeys(("accumulation", "lr_cycles"), (1, 4096)),
    "lr_power": (0, 100),
    "regions": (1, REGIONS),
    **dict.fromkeys(("warmup", "validate_every"), (0, MOST_STEPS)),
    "validation_share": (0, 0.5),
    "workers": (0, 256),
    "seed": (0, 2**64 - 1),
    **dict.fromkeys(("learning_rate", "router_rate", "ratio_rate", "weight_decay"), (0, 10)),
    **dict.fromkeys(("flat_share", "floor", "fall_share", "freeze_share", "caption_dropout"), (0, 1)),
    **dict.fromkeys(("beta2", "ema_decay"), (0, 1)),
    **dict.fromkeys(("max_grad_norm", "distill_weight"), (0, 10**6)),
}
# Fields of the configuration that may differ when a run resumes: no weight depends on them, or else only on what two of
# them make together, the samples of a step (`Trainer.conditions`).
_FREE: Final = (
    *("output", "steps", "log_every", "save_every", "keep_checkpoints", "validate_every"),
    *("by_products", "workers", "progress", "trackers"),
    *("batch_size", "accumulation", "gradient_checkpointing"),
)


class Mode(Enum):
    """What is learned beside the weights."""

    LEARNED = "learned"  # routers and keep ratios (DiffCR)
    UNIFORM = "uniform"  # routers; every keep ratio is the target (fixed-ratio MoD)
    RANDOM = "random"  # nothing; every keep ratio is the target, tokens are kept at random, no gate
    FIXED = "fixed"  # the routers of a routed model, under its own plan
    DENSE = "dense"  # nothing, every token is kept, no gate


@dataclass(frozen=True)
class FinetuneConfig:
    """How to train. Rates are AdamW's; shares are of `span`."""

    output: Path  # folder of the log and the checkpoints
    steps: int  # optimizer steps
    batch_size: int = 32  # samples of one process in one micro-step
    accumulation: int = 1  # micro-steps of one optimizer step
    mode: Mode = Mode.LEARNED
    target: float = 0.5  # mean keep ratio over layers and regions
    regions: int = 4  # of timesteps
    learning_rate: float = 1e-4  # of the transformer
    router_rate: float = 1e-3
    ratio_rate: float = 3e-3  # change of a keep ratio in one step at the mean gradient size (torch_moddit.ratios)
    weight_decay: float = 0.01  # of the transformer
    beta2: float = 0.99
    max_grad_norm: float = 1.0  # of transformer and routers
    lr_scheduler: str = RATE_SCHEDULES[0]
    warmup: int = 50  # steps
    flat_share: float = 0.5  # of warmup_stable_decay, before the rates fall as a cosine
    floor: float = 0.03  # share of the rates that it leaves at the end
    lr_cycles: int = 1  # of cosine_with_restarts
    lr_power: float = 1.0  # of polynomial
    fall_share: float = 0.35  # in which the ratios' mean falls from 1 to the target
    # after which the ratios are rounded and stay; the rest trains the final plan, at its cost
    freeze_share: float = 0.6
    schedule_steps: int | None = None  # that these shares are of, in a run that was made longer; None for all steps
    distill_weight: float = 0.0  # of the squared distance to the dense model's prediction; 0 for no teacher
    caption_dropout: float = 0.1  # share of samples trained on the empty caption
    ema_decay: float = 0.999
    mixed_precision: str = "no"  # or "fp16", "bf16"
    gradient_checkpointing: bool = False
    seed: int = 0
    log_every: int = 20  # steps
    save_every: int = 500  # steps
    keep_checkpoints: int = 2
    validate_every: int = 0  # steps; 0 for the end alone
    validation_share: float = 0.0  # of the dataset's end, which is not trained on but measured
    by_products: bool = True  # kept each time the mean of learned ratios passes a tenth
    workers: int = 0  # processes that read data
    progress: bool = True  # bar on stderr
    trackers: tuple[str, ...] = ()  # of TRACKERS, which are told the rows of the log

    def __post_init__(self) -> None:
        check_target(self.target)
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            if not least <= value <= most:  # NaN is in no range
                raise ValueRangeError(f"[finetune] {name} out of range, got {value}, want {least}..{most}")
        if not 1 <= self.span <= self.steps:
            raise ValueRangeError(f"[finetune] schedule_steps out of range, got {self.span}, want 1..{self.steps}")
        if self.lr_scheduler not in RATE_SCHEDULES:
            names = ", ".join(RATE_SCHEDULES)
            raise ValueRangeError(f"[finetune] lr_scheduler is {self.lr_scheduler!r}, want one of {names}")
        if unknown := set(self.trackers) - set(TRACKERS):
            raise ValueRangeError(f"[finetune] trackers has {unknown}, want {' and '.join(TRACKERS)}, or one of them")
        if self.mode in (Mode.UNIFORM, Mode.RANDOM) and not math.isclose(self.tenths, self.target * DENOMINATOR):
            raise ValueRangeError(
                f"[finetune] mode {self.mode.value} needs a target of whole tenths, got {self.target}"
            )

    @property
    def tenths(self) -> int:
        return round(self.target * DENOMINATOR)

    @property
    def span(self) -> int:
        """Steps in which rates and ratios go their way; after them both stay."""
        return self.schedule_steps or self.steps

    @property
    def freeze_step(self) -> int:
        return max(1, round(self.freeze_share * self.span))

    def goal(self, step: int) -> float:
        """Mean keep ratio after `step` steps: from 1 to the target in equal parts."""
        return 1.0 - (1.0 - self.target) * min(1.0, step / max(1, round(self.fall_share * self.span)))

    def ratio_factor(self, step: int) -> float:
        """Share of the full ratio rate: whole while the goal falls, then linearly to zero until the ratios freeze."""
        start = round(self.fall_share * self.span)
        return min(1.0, max(0.0, (self.freeze_step - step) / max(1, self.freeze_step - start)))


def describe(config: FinetuneConfig) -> dict[str, Any]:
    """Write the fields on which the weights depend as JSON values."""
    values = {name: value for name, value in asdict(config).items() if name not in _FREE}
    return {**values, "mode": config.mode.value, "schedule_steps": config.span}
