"""By-products of a run that learns keep ratios: the model as it was each time their mean had fallen to a tenth.

    OUT/by-products/0.8/transformer/     averaged weights in float32, with the plan of that mean, as diffusers has them
    OUT/by-products/0.8/by-product.json  the step it is of, its learned ratios, its validation loss

They lie apart from the checkpoints that a run resumes from, and no later one takes their place.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Final

import torch
from msgspec import Meta
from torch import Tensor

from moddit.checkpoint.sources import TRANSFORMER, Sources
from moddit.errors import MissingError
from moddit.files import discard, new_folder
from moddit.record import Keys, Origin, decode, read_json
from moddit.routing import DENOMINATOR, RoutingPlan
from torch_moddit.export import save_checkpoint, write_transformer
from torch_moddit.loading import load_checkpoint
from torch_moddit.model import RoutedTransformer
from torch_moddit.ratios import KeepRatios
from torch_moddit.targets import round_to_budget

BY_PRODUCTS: Final = "by-products"
RECORD: Final = "by-product.json"
NAMES: Final = tuple(f"{tenths / DENOMINATOR:.1f}" for tenths in range(DENOMINATOR - 1, 0, -1))
_NEAR: Final = 1e-6  # of a mean of float32 ratios to what it was projected onto


@dataclass(frozen=True)
class ByProduct:
    """One by-product of a run."""

    tenths: Annotated[int, Meta(ge=1, le=DENOMINATOR)]  # mean keep ratio, which its plan has at most
    step: Annotated[int, Meta(ge=0)]
    ratios: tuple[tuple[float, ...], ...]  # [layers][regions], before they were rounded
    validation_loss: float | None = None  # where samples are held out

    @property
    def name(self) -> str:
        return f"{self.tenths / DENOMINATOR:.1f}"

    def folder(self, output: Path) -> Path:
        return output / BY_PRODUCTS / self.name

    def plan(self, targets: Sequence[float], num_train_timesteps: int) -> RoutingPlan:
        """Round the ratios to this tenth's budget, which regions with targets of their own have their parts of."""
        fallen = (1 - self.tenths / DENOMINATOR) / (1 - fmean(targets))
        rows = round_to_budget(self.ratios, [1 - (1 - target) * fallen for target in targets])
        return RoutingPlan(tuple(map(tuple, rows)), num_train_timesteps)

    def write(self, output: Path, model: RoutedTransformer) -> None:
        """Write it whole, with a model that follows its plan; raises StorageError."""
        with new_folder(self.folder(output), kind="by-product", may_replace=lambda _: True) as part:
            write_transformer(part / TRANSFORMER, model, dtype=torch.float32)
            (part / RECORD).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def find_by_products(ratios: KeepRatios, before: float, targets: Sequence[float], step: int) -> list[ByProduct]:
    """List what a step has made: one for each tenth above the target that the mean had `before` and has passed now."""
    after, table = ratios.mean, tuple(map(tuple, ratios.values.detach().tolist()))
    means = ((tenths, tenths / DENOMINATOR) for tenths in range(DENOMINATOR - 1, 0, -1))
    return [
        ByProduct(tenths, step, table)
        for tenths, mean in means
        if after - _NEAR <= mean < before - _NEAR and mean > fmean(targets) + _NEAR
    ]


def list_by_products(output: Path) -> list[ByProduct]:
    """List the by-products of a run, that which keeps most first; raises FormatError if one is damaged."""
    return [_read(path) for path in sorted((output / BY_PRODUCTS).glob(f"[!.]*/{RECORD}"), reverse=True)]


def drop_by_products(output: Path, step: int) -> None:
    """Remove those of later steps, which a resumed run makes again; raises FormatError or StorageError."""
    for found in list_by_products(output):
        if found.step > step:
            discard(found.folder(output))


def pick(output: Path, name: str, sources: Sources, *, dtype: torch.dtype, overwrite: bool = False) -> Path:
    """Write one by-product of a run as a pipeline, beside the run's own `model`.

    Args:
        output: folder of the run.
        name: mean keep ratio, one of NAMES.
        sources: of the model that was trained, for the other components.
        dtype: of the written transformer.
        overwrite: replace a pipeline that is there.

    Returns:
        the pipeline's folder.

    Raises:
        MissingError: the run has none of that name.
        InputError: its files are damaged.
        OutputExistsError: the pipeline is there.
        StorageError: it cannot be written.
    """
    found = {by_product.name: by_product for by_product in list_by_products(output)}
    if name not in found:
        raise MissingError(
            f"[finetune] {output / BY_PRODUCTS}: has {', '.join(found) or 'nothing'}, want {name}; a run of mode "
            "learned has those between 1 and its target, as soon as it has passed them; its result is its folder model"
        )
    folder = found[name].folder(output)
    target = output / f"model-{name}"
    save_checkpoint(
        target,
        load_checkpoint(folder),
        source=sources,
        keep_ratio=_to_tensor(found[name].ratios),
        dtype=dtype,
        overwrite=overwrite,
    )
    return target


def _to_tensor(ratios: tuple[tuple[float, ...], ...]) -> Tensor:
    return torch.tensor(ratios, dtype=torch.float32)


def _read(path: Path) -> ByProduct:
    origin = Origin("finetune", str(path), f"remove {path.parent}")
    return decode(read_json(path, origin, absent=origin.advice), ByProduct, origin, Keys.EXACT)
