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
from torch_moddit.targets import check_target

MOST_STEPS: Final = 10**8
TRACKERS: Final = ("tensorboard", "wandb")  # of Accelerate
RATE_SCHEDULES: Final = (  # ours, and those of diffusers.optimization (`torch_moddit.rates`)
    *("warmup_stable_decay", "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts"),
    "polynomial",
)
# How far a ratio whose gradient has the mean size could go in all, while ratios are learned, and the most in one step.
# On shapes64 the held-out distance to the teacher was .058, .041 and .051 with 0.5, 1.5 and 4 (200 steps of 16 samples,
# target 0.7, one seed each).
RATIO_PATH: Final = 1.5
MOST_RATIO_RATE: Final = 0.05  # half a bin
# What a run may be told: generous, so that a slip of the finger is an error instead of days or all of the memory.
RANGES: Final[Mapping[str, tuple[float, float]]] = {
    **dict.fromkeys(("steps", "log_every", "save_every", "keep_checkpoints"), (1, MOST_STEPS)),
    "batch_size": (1, 65_536),
    **dict.fromkeys(("accumulation", "lora_rank", "lr_cycles"), (1, 4096)),
    "lr_power": (0, 100),
    "regions": (1, REGIONS),
    **dict.fromkeys(("warmup", "validate_every"), (0, MOST_STEPS)),
    "validation_share": (0, 0.5),
    "workers": (0, 256),
    "seed": (0, 2**64 - 1),
    **dict.fromkeys(("learning_rate", "router_rate", "ratio_rate", "weight_decay"), (0, 10)),
    **dict.fromkeys(("flat_share", "floor", "fall_share", "freeze_share", "caption_dropout"), (0, 1)),
    **dict.fromkeys(("beta2", "ema_decay"), (0, 1)),
    **dict.fromkeys(("max_grad_norm", "distill_weight", "ratio_loss"), (0, 10**6)),
}
# Fields of the configuration that may differ when a run resumes: no weight depends on them, or else only on what two of
# them make together, the samples of a step (`Trainer.conditions`).
_FREE: Final = (
    *("output", "steps", "log_every", "save_every", "keep_checkpoints", "validate_every"),
    *("by_products", "workers", "progress", "trackers"),
    *("batch_size", "accumulation", "gradient_checkpointing"),
)


Target = float | tuple[float, ...]  # mean keep ratio over layers and regions, or of each region


class Train(Enum):
    """Which of the transformer's weights are trained, beside routers and keep ratios."""

    ALL = "all"
    LORA = "lora"  # adapters beside the blocks' matrices (`torch_moddit.lora`)
    ROUTERS = "routers"  # none


class Task(Enum):
    """What the model learns to draw."""

    GENERATE = "generate"  # whole pictures
    INPAINT = "inpaint"  # what a mask hides of one (`torch_moddit.masks`)


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
    task: Task = Task.GENERATE
    mode: Mode = Mode.LEARNED
    train: Train = Train.ALL
    lora_rank: int = 32
    target: Target = 0.5
    regions: int = 4  # of timesteps; 1 for one keep ratio a layer (DiffCR-L)
    learning_rate: float = 1e-4  # of the transformer
    router_rate: float = 1e-3
    ratio_rate: float | None = None  # change of a keep ratio in one step (torch_moddit.movers); None for RATIO_PATH
    ratio_loss: float = 0.0  # least coefficient of the paper's loss on the mean keep ratio; 0 projects the mean instead
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
    mixed_precision: str = "no"  # or "fp16", "bf16"; matrices that are not trained are stored in it
    use_8bit_adam: bool = False  # of bitsandbytes
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
        for target in self.targets:
            check_target(target)
        if len(self.targets) not in (1, self.regions):
            count = len(self.targets)
            raise ValueRangeError(
                f"[finetune] target has {count} numbers, want one, or one for each of {self.regions} regions"
            )
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:  # NaN is in no range
                raise ValueRangeError(f"[finetune] {name} out of range, got {value}, want {least}..{most}")
        if self.fall_share > self.freeze_share:
            raise ValueRangeError(
                f"[finetune] fall_share {self.fall_share} is more than freeze_share {self.freeze_share}: the keep "
                "ratios would freeze before their mean is the target; want at most as much"
            )
        self._check_schedule()
        if self.mode in (Mode.UNIFORM, Mode.RANDOM) and not all(
            math.isclose(tenths, target * DENOMINATOR) for tenths, target in zip(self.tenths, self.targets, strict=True)
        ):
            raise ValueRangeError(
                f"[finetune] mode {self.mode.value} needs a target of whole tenths, got {self.target}"
            )
        if self.train is Train.ROUTERS and self.mode in (Mode.RANDOM, Mode.DENSE):
            raise ValueRangeError(
                f"[finetune] train routers got mode {self.mode.value}, which has none; want learned, uniform, fixed"
            )

    def _check_schedule(self) -> None:
        if not 1 <= self.span <= self.steps:
            raise ValueRangeError(f"[finetune] schedule_steps out of range, got {self.span}, want 1..{self.steps}")
        if self.lr_scheduler not in RATE_SCHEDULES:
            names = ", ".join(RATE_SCHEDULES)
            raise ValueRangeError(f"[finetune] lr_scheduler is {self.lr_scheduler!r}, want one of {names}")
        if unknown := set(self.trackers) - set(TRACKERS):
            raise ValueRangeError(f"[finetune] trackers has {unknown}, want {' and '.join(TRACKERS)}, or one of them")

    @property
    def targets(self) -> tuple[float, ...]:
        """Mean keep ratio: one over layers and regions, or one of each region over layers."""
        return self.target if isinstance(self.target, tuple) else (self.target,)

    @property
    def tenths(self) -> tuple[int, ...]:
        return tuple(round(target * DENOMINATOR) for target in self.targets)

    @property
    def span(self) -> int:
        """Steps in which rates and ratios go their way; after them both stay."""
        return self.schedule_steps or self.steps

    @property
    def freeze_step(self) -> int:
        return max(1, round(self.freeze_share * self.span))

    def goals(self, step: int) -> tuple[float, ...]:
        """Mean keep ratio after `step` steps, as `targets`: from 1 to the target in equal parts."""
        fallen = min(1.0, step / max(1, self.fall_steps))
        return tuple(1.0 - (1.0 - target) * fallen for target in self.targets)

    @property
    def fall_steps(self) -> int:
        return round(self.fall_share * self.span)

    @property
    def moving_steps(self) -> float:
        """Steps at the full ratio rate that those are worth in which ratios are learned."""
        return (self.fall_steps + self.freeze_step) / 2

    @property
    def full_ratio_rate(self) -> float:
        """The ratio rate that was asked for, or the one that lets ratios of a run of any length go equally far."""
        return min(MOST_RATIO_RATE, RATIO_PATH / self.moving_steps) if self.ratio_rate is None else self.ratio_rate

    def ratio_rate_at(self, step: int) -> float:
        """Rate of the ratios: full while the goal falls, then linearly to zero until the ratios freeze."""
        left = (self.freeze_step - step) / max(1, self.freeze_step - self.fall_steps)
        return self.full_ratio_rate * min(1.0, max(0.0, left))


# Settings of a purpose, by name; `FinetuneConfig(output=..., steps=..., **PRESETS["mac"])`.
PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {
    # DiffCR's text-to-image (arXiv 2412.16822): ratios are learned to the end, the dense model teaches nothing
    "paper": {
        "train": Train.LORA,
        "lora_rank": 32,
        "regions": 4,
        "target": 0.8,
        "ratio_loss": 0.3,
        "freeze_share": 1.0,
        "distill_weight": 0.0,
    },
    # little memory; on MPS bfloat16 needs no scaling of the loss, and macOS 14, as moddit does
    "mac": {"batch_size": 1, "accumulation": 16, "gradient_checkpointing": True, "mixed_precision": "bf16"},
}


def preset(name: str) -> dict[str, Any]:
    """Give the settings of a preset as JSON and the command line have them."""
    return {name: _plain(value) for name, value in PRESETS[name].items()}


def describe(config: FinetuneConfig) -> dict[str, Any]:
    """Write the fields on which the weights depend as JSON values."""
    values = {name: _plain(value) for name, value in asdict(config).items() if name not in _FREE}
    if config.task is Task.GENERATE:  # that of runs which were begun before there were others
        del values["task"]
    return {**values, "schedule_steps": config.span}


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    return list(value) if isinstance(value, tuple) else value
