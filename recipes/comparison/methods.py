"""The rows of the comparison: which methods there are, at which keep ratios, and what has to be trained for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from moddit.routing import DENOMINATOR
from recipes.comparison.rivals import MERGING, PRUNING, RANDOM_DROP, Rival
from torch_moddit.settings import Mode, Train

DENSE: Final = "dense"
CONTROL: Final = "dense-trained"
DIFFCR: Final = "diffcr-lt"
BY_PRODUCT: Final = "by-product"
DIAL: Final = "dial"
LONGEST: Final = 5  # tenths that the run falls to whose by-products are drawn, and whose result keeps more
CACHE: Final = 0.1  # threshold of the first-block cache
RATIO_LOSS: Final = 0.3  # the paper's coefficient
_WHOLE: Final = (DENOMINATOR,)


@dataclass(frozen=True)
class Family:
    """A kind of training; there is one for each keep ratio and seed."""

    settings: Mapping[str, Any]  # fields of `FinetuneConfig`, beside the world's


@dataclass(frozen=True)
class Method:
    """A way of drawing pictures."""

    title: str
    family: str | None = None  # whose checkpoints it takes; None for the teacher
    rival: Rival | None = None  # what is done to the checkpoint
    options: Mapping[str, Any] = field(default_factory=dict)  # of the request
    keeps: tuple[int, ...] | None = None  # tenths, instead of those of the comparison
    partner: str = DENSE  # the method that is as cheap by fewer steps
    has_edge: bool = True  # drawn in few steps as well


@dataclass(frozen=True)
class Scale:
    """How much is trained and drawn."""

    prompts: int
    seeds: int  # of noise
    trainings: int  # seeds of training
    keeps: Sequence[int]  # tenths
    steps: Sequence[int]  # the first are those of the pictures that FLOPs are shares of
    reference_prompts: int  # drawn in `reference_steps` by each checkpoint
    reference_steps: int
    timed: Sequence[str]  # methods whose steps are timed; all of them if there is none
    trials: int  # of each
    training: Mapping[str, Any] = field(default_factory=dict)  # fields of `FinetuneConfig` in place of the world's


FULL: Final = Scale(
    prompts=500,
    seeds=3,
    trainings=2,
    keeps=(8, 7, 5),
    steps=(20, 10, 7, 5),
    reference_prompts=100,
    reference_steps=100,
    timed=(),
    trials=5,
)
SMOKE: Final = Scale(
    prompts=3,
    seeds=1,
    trainings=1,
    keeps=(5,),
    steps=(4, 2),
    reference_prompts=2,
    reference_steps=6,
    timed=("tome", DIFFCR),
    trials=1,
    training={"steps": 4, "batch_size": 4, "warmup": 1, "log_every": 1, "save_every": 4},
)

FAMILIES: Final[Mapping[str, Family]] = {
    CONTROL: Family({"mode": Mode.DENSE}),
    DIFFCR: Family({"mode": Mode.LEARNED}),
    "diffcr-lt-loss": Family({"mode": Mode.LEARNED, "ratio_loss": RATIO_LOSS}),
    "uniform": Family({"mode": Mode.UNIFORM}),
    "diffcr-l": Family({"mode": Mode.LEARNED, "regions": 1}),
    "diffcr-lora": Family({"mode": Mode.LEARNED, "train": Train.LORA}),
    "random": Family({"mode": Mode.RANDOM}),
}
METHODS: Final[Mapping[str, Method]] = {
    DENSE: Method("dense", keeps=_WHOLE),
    "tome": Method("ToMe", rival=MERGING),
    "at-edm": Method("AT-EDM", rival=PRUNING),
    "random-drop": Method("random drop", rival=RANDOM_DROP),
    "reuse-2": Method("static reuse, n = 2", options={"reuse": 2}, keeps=_WHOLE, has_edge=False),
    "reuse-3": Method("static reuse, n = 3", options={"reuse": 3}, keeps=_WHOLE, has_edge=False),
    "cache": Method("first-block cache", options={"cache": CACHE}, keeps=_WHOLE, has_edge=False),
    CONTROL: Method("dense, trained as long", CONTROL, keeps=_WHOLE, partner=CONTROL),
    "random": Method("random drop, trained", "random", RANDOM_DROP, partner=CONTROL),
    "uniform": Method("uniform MoD", "uniform", partner=CONTROL),
    "diffcr-l": Method("DiffCR-L", "diffcr-l", partner=CONTROL),
    "diffcr-lora": Method("DiffCR-LT, LoRA", "diffcr-lora", partner=CONTROL),
    "diffcr-lt-loss": Method("DiffCR-LT, ratio loss", "diffcr-lt-loss", partner=CONTROL),
    DIFFCR: Method("DiffCR-LT", DIFFCR, partner=CONTROL),
    "diffcr-reuse-2": Method("DiffCR-LT, reuse n = 2", DIFFCR, options={"reuse": 2}, partner=DIFFCR, has_edge=False),
    "diffcr-reuse-3": Method("DiffCR-LT, reuse n = 3", DIFFCR, options={"reuse": 3}, partner=DIFFCR, has_edge=False),
    "diffcr-cache": Method("DiffCR-LT, cache", DIFFCR, options={"cache": CACHE}, partner=DIFFCR, has_edge=False),
    BY_PRODUCT: Method("DiffCR-LT, on the way", DIFFCR, keeps=(9, 8, 7, 6), partner=CONTROL),
    DIAL: Method("DiffCR-LT, keeping more", DIFFCR, keeps=(8, 7, 6), partner=CONTROL, has_edge=False),
}


@dataclass(frozen=True)
class Training:
    """One run of fine-tuning."""

    family: str
    tenths: int  # target of the mean keep ratio
    seed: int
    passed: int | None = None  # tenths that the mean had passed; None at the end

    @property
    def name(self) -> str:
        passed = "" if self.passed is None else f"-at-{self.passed / DENOMINATOR}"
        return f"{self.family}-{self.tenths / DENOMINATOR}-s{self.seed}{passed}"


@dataclass(frozen=True)
class Entry:
    """A method at one keep ratio, of one training."""

    method: str
    tenths: int
    training: int | None  # its seed; None for what is not trained

    @property
    def name(self) -> str:
        return f"{self.method}-{self.tenths / DENOMINATOR}" + ("" if self.training is None else f"-s{self.training}")

    @property
    def how(self) -> Method:
        return METHODS[self.method]

    @property
    def options(self) -> Mapping[str, Any]:
        """Options of its requests."""
        return {"keep": self.tenths / DENOMINATOR} if self.method == DIAL else self.how.options

    @property
    def checkpoint(self) -> Training | None:
        """The training that it takes; None for the teacher."""
        family = self.how.family
        if family is None:
            return None
        assert self.training is not None
        passed = self.tenths if self.method == BY_PRODUCT else None
        return Training(family, LONGEST if self.method in (BY_PRODUCT, DIAL) else self.tenths, self.training, passed)

    @property
    def plain(self) -> Entry:
        """The method that does nothing to the checkpoint that it was not trained with."""
        if self.checkpoint is None:
            return Entry(DENSE, DENOMINATOR, None)
        if self.method == BY_PRODUCT:
            return self
        return Entry(self.checkpoint.family, self.checkpoint.tenths, self.training)

    @property
    def partner(self) -> Entry:
        """The method that it is compared with at its cost, of the same training where that has one."""
        name, other = self.how.partner, METHODS[self.how.partner]
        tenths = other.keeps[0] if other.keeps else self.tenths
        return Entry(name, tenths, None if other.family is None else self.training)


def list_trainings(scale: Scale, only: Sequence[str] = ()) -> Iterator[Training]:
    """List what is trained for some methods, or all: one seed of everything before the next."""
    wanted = {METHODS[name].family for name in only or METHODS}
    for seed in range(scale.trainings):
        for family in filter(wanted.__contains__, FAMILIES):
            for tenths in _WHOLE if family == CONTROL else scale.keeps:
                yield Training(family, tenths, seed)


def list_entries(scale: Scale, only: Sequence[str] = ()) -> Iterator[Entry]:
    """List what is drawn, trained or not yet, in the order of the table."""
    for name in only or METHODS:
        method = METHODS[name]
        for tenths in method.keeps or scale.keeps:
            for training in [None] if method.family is None else range(scale.trainings):
                yield Entry(name, tenths, training)
