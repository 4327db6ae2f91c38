"""What DiffCR adds to a transformer: the snapped plan in its configuration, routers and keep ratios in its weights.

The plan is the truth for inference; the ratios that it was snapped from are kept for the record.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from moddit.checkpoint.precision import check_dtypes, is_finite, widen
from moddit.checkpoint.stored import StoredTensor
from moddit.errors import FormatError, ShapeError, ValueRangeError
from moddit.routing import RoutingPlan, snap
from moddit.tokens import TokenPolicy

PLAN_KEY: Final = "diffcr"
# Before the class and the kind of block of the dense model: names that diffusers has not, so that it refuses a routed
# folder and draws nothing wrong.
ROUTED_CLASS: Final = "Routed"
ROUTED_NORM_TYPE: Final = "routed_"
# Routing by `RoutedTransformer.from_dense` doubles the MLP's last layer against the gate sigmoid(0) = 1/2.
MLP_GAIN: Final = 2.0
_ROUTER: Final = re.compile(r"transformer_blocks\.(\d+)\.router\.weight")
_KEEP_RATIO: Final = re.compile(r"transformer_blocks\.(\d+)\.keep_ratio")


def read_policy(config: Mapping[str, Any], layers: int, timesteps: int, where: str) -> TokenPolicy:
    """Read the plan in a transformer's configuration; without one the model is dense, over so many timesteps.

    Raises FormatError, ShapeError or ValueRangeError if it is damaged, or has another number of layers.
    """
    if PLAN_KEY not in config:
        return TokenPolicy.dense(layers, timesteps)
    where = f"{where}, {PLAN_KEY!r}"
    plan = RoutingPlan.from_json(config[PLAN_KEY], where)
    if plan.layers != layers:
        raise ShapeError(
            f"[routing] {where}: keep_tenths has {plan.layers} layers, want {layers}, the transformer's num_layers"
        )
    return TokenPolicy.topk(plan)


def check_timesteps(plan: RoutingPlan, num_train_timesteps: int, where: str) -> None:
    """Raise ValueRangeError if a plan divides other timesteps than the scheduler has."""
    if plan.num_train_timesteps != num_train_timesteps:
        raise ValueRangeError(
            f"[routing] {where}, {PLAN_KEY!r}: num_train_timesteps is {plan.num_train_timesteps}, "
            f"want {num_train_timesteps} as in scheduler_config.json"
        )


def is_routing(name: str) -> bool:
    """Say whether a canonical name is that of a router, or of the keep ratios of a layer."""
    return bool(_ROUTER.fullmatch(name) or _KEEP_RATIO.fullmatch(name))


def check_dense(tensors: Mapping[str, StoredTensor], where: str) -> None:
    """Raise FormatError if there are routers, or keep ratios, although there is no plan."""
    if any(map(is_routing, tensors)):
        raise FormatError(
            f"[transformer] {where}: has routers, but config.json has no {PLAN_KEY!r} object with the routing plan; "
            "export the checkpoint again"
        )


def take_keep_ratios(tensors: dict[str, StoredTensor], plan: RoutingPlan) -> tuple[dict[str, str], tuple[str, ...]]:
    """Take the learned ratios out of `tensors`, checked against the plan, which alone counts for inference.

    Returns:
        their names, with the reason why no bundle holds them; and what a user should know, one sentence each.

    Raises:
        ShapeError: ratios of other layers or regions than the plan's, or of some layers only.
        UnsupportedError, ValueRangeError: they are not numbers.
    """
    found = {int(match[1]): tensors.pop(match[0]) for match in filter(None, map(_KEEP_RATIO.fullmatch, list(tensors)))}
    if not found:
        return {}, ()
    rows = []
    for layer, tensor in sorted(found.items()):
        if layer >= plan.layers or tensor.shape != (plan.regions,):
            raise ShapeError(
                f"[transformer] {tensor.path}: {tensor.name!r} has shape {list(tensor.shape)}, want [{plan.regions}], "
                f"the plan's regions, in layers 0..{plan.layers - 1}; export the checkpoint again"
            )
        rows.append(_read_ratios(tensor))
    if len(rows) != plan.layers:
        absent = ", ".join(str(layer) for layer in range(plan.layers) if layer not in found)
        path = next(iter(found.values())).path
        raise ShapeError(f"[transformer] {path}: keep_ratio of layers {absent} is missing, want all layers or none")
    moved = [str(layer) for layer, row in enumerate(rows) if tuple(map(snap, row)) != plan.keep_tenths[layer]]
    note = f"keep_ratio of layers {', '.join(moved)} snaps to other tenths than the plan in config.json, which counts"
    unused = {tensor.name: "training only; the plan has its value in tenths" for tensor in found.values()}
    return unused, (note,) if moved else ()


def _read_ratios(tensor: StoredTensor) -> list[float]:
    check_dtypes("transformer", {tensor.name: tensor})
    values = tensor.read()
    if not is_finite(values, tensor.dtype):
        raise ValueRangeError(
            f"[transformer] {tensor.path}: {tensor.name!r} is NaN or infinite, want ratios of 0.1..1.0"
        )
    ratios: list[float] = widen(values, tensor.dtype).tolist()
    return ratios
