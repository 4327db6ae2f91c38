"""The transformer of a checkpoint, in diffusers' layout or the original one, dense or routed, with adapters merged."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from moddit.checkpoint import original
from moddit.checkpoint.diffcr import (
    MLP_GAIN,
    PLAN_KEY,
    ROUTED_CLASS,
    ROUTED_NORM_TYPE,
    check_dense,
    check_timesteps,
    read_policy,
    take_keep_ratios,
)
from moddit.checkpoint.foreign import check_config, check_tensors
from moddit.checkpoint.lora import Lora, is_mlp_end, read_lora
from moddit.checkpoint.merged import DoubledTensor
from moddit.checkpoint.parts import Part, finish_part
from moddit.checkpoint.sources import TRANSFORMER, LoraSource, SourceFiles, Sources
from moddit.checkpoint.stored import StoredTensor
from moddit.checkpoint.weights import DIFFUSERS, Weights, read_config, read_file, read_weights
from moddit.errors import FormatError, MissingError, UnsupportedError, ValueRangeError
from moddit.models.architectures import ARCHITECTURES
from moddit.models.config import check_implemented
from moddit.models.transformer import TransformerSpec
from moddit.record import Origin, parse_json, quote
from moddit.samplers import NoiseSchedule
from moddit.tokens import TokenPolicy

_OLD_CLASS: Final = "Transformer2DModel"  # before diffusers 0.29, which maps it by the kind of its blocks
# Of every published model, for a transformer that is read alone.
USUAL_TIMESTEPS: Final = 1000
USUAL_DOWNSCALE: Final = 8


@dataclass(frozen=True)
class Transformer:
    """A transformer, checked in everything but the values of its weights."""

    spec: TransformerSpec
    policy: TokenPolicy
    part: Part


def read_transformer(
    sources: Sources, files: SourceFiles, scheduler: NoiseSchedule | None, downscale: int | None
) -> Transformer:
    """Read the transformer of a checkpoint; weights are left on disk, and `files` is told what was read.

    Without a scheduler, whose timesteps the plan divides, or a VAE, which says how many picture pixels a latent pixel
    is, the usual ones count. Raises InputError if it is damaged, incomplete or of another architecture.
    """
    found, gain = _read_base(sources, files, scheduler, downscale)
    return _merge_loras(found, sources.loras, files, gain, scheduler)


def _read_base(
    sources: Sources, files: SourceFiles, scheduler: NoiseSchedule | None, downscale: int | None
) -> tuple[Transformer, float]:
    """Read the transformer without adapters; also return how much stronger the last layers of its MLPs are.

    Only our own routed models have them doubled: those of DiffCR's authors start from the dense model's.
    """
    place = sources.transformer
    if place.is_dir():
        path, config = _config_of_folder(sources, place, files)
        weights = read_weights(place, DIFFUSERS, sources.variant)
        files.add(*weights.files)
    else:
        path, weights = place, Weights(read_file(place), (place,))
        files.add(place)
        check_tensors(weights.tensors, str(place))
        if original.find_prefix(weights.tensors) is not None:
            return _read_original(place, weights.tensors, sources, scheduler, downscale), 1.0
        config = _config_of_file(sources, place, files)
    found = _read_named(path, config, weights, scheduler)
    return found, MLP_GAIN if found.policy.has_routers else 1.0


def read_configuration(
    sources: Sources, files: SourceFiles, scheduler: NoiseSchedule
) -> tuple[TransformerSpec, TokenPolicy]:
    """Read a transformer's dimensions and policy where its weights need not be there; raises as `read_transformer`.

    What a configuration leaves to the names of the tensors is as if there were none of these names.
    """
    place = sources.transformer
    if not place.is_dir():
        raise UnsupportedError(f"[transformer] {place}: a file of weights, want a folder with a config.json")
    path, config = _config_of_folder(sources, place, files)
    return _configure(path, config, {}, scheduler)


def _merge_loras(
    found: Transformer,
    loras: Sequence[LoraSource],
    files: SourceFiles,
    gain: float,
    scheduler: NoiseSchedule | None,
) -> Transformer:
    for index, source in enumerate(loras):
        lora = read_lora(source.path, source.scale, found.part.wanted)
        files.add(*lora.files, within=f"lora{index}@{source.scale:g}")
        merged = f"{source.path} is merged into {len(lora.additions)} tensors at {source.scale:g}"
        notes = (*found.part.notes, merged)
        part = replace(found.part, tensors=lora.merge(found.part.tensors, mlp_gain=gain), notes=notes)
        found = replace(found, part=part)
        if lora.routing:
            found, gain = _route(found, lora, source, scheduler), MLP_GAIN
    if loras and gain != 1:
        doubled = f"the last layers of the MLPs take {gain:g} times an adapter, as they have in routed models"
        found = replace(found, part=replace(found.part, notes=(*found.part.notes, doubled)))
    return found


def _route(found: Transformer, lora: Lora, source: LoraSource, scheduler: NoiseSchedule | None) -> Transformer:
    """Give a dense transformer the routers that were trained with an adapter, which is merged already.

    Raises:
        UnsupportedError: the transformer is routed already, or the adapter has not the strength it was trained at.
        FormatError, ShapeError, ValueRangeError: the plan, routers or keep ratios are damaged, or of another model.
    """
    where, spec = str(lora.files[0]), found.spec
    if not found.policy.is_dense:
        raise UnsupportedError(f"[lora] {where}: has routers, and so has the checkpoint; want its dense model")
    if source.scale != 1:
        raise UnsupportedError(f"[lora] {where}: its routers were trained at a scale of 1, got {source.scale:g}")
    if lora.plan is None:
        raise FormatError(f"[lora] {where}: has routers, but no {PLAN_KEY!r} in its metadata; export it again")
    advice = "export the adapter again"
    plan = parse_json(lora.plan.encode(), Origin("lora", f"{where}: {PLAN_KEY}", advice))
    policy = read_policy({PLAN_KEY: plan}, spec.num_layers, _timesteps(scheduler), where)
    if scheduler is not None:
        check_timesteps(policy.plan, scheduler.num_train_timesteps, where)
    routing = dict(lora.routing)
    unused, notes = take_keep_ratios(routing, policy.plan)
    doubled = {name: DoubledTensor.of(value) for name, value in found.part.tensors.items() if is_mlp_end(name)}
    tensors = {**found.part.tensors, **doubled, **routing}
    routed = f"{source.path} makes the model routed: mean keep ratio {policy.plan.mean_keep_ratio:.3f}"
    wanted = spec.tensors(has_routers=True)
    notes = (*found.part.notes, *notes, routed)
    return Transformer(
        spec, policy, finish_part("transformer", Path(where), tensors, wanted, {**found.part.unused, **unused}, notes)
    )


def read_spec(config: Mapping[str, Any], where: str, names: Mapping[str, object]) -> TransformerSpec:
    """Read a transformer's config.json, without the plan, as diffusers does, ours for routed models included.

    The names of the tensors say what it leaves open. Raises InputError, naming `where` and the key.
    """
    name, norm_type = config.get("_class_name"), config.get("norm_type")
    for kind in ARCHITECTURES.values():
        own, routed = {"_class_name": kind.DIFFUSERS_CLASS}, ROUTED_CLASS + kind.DIFFUSERS_CLASS
        if (name, norm_type) == (routed, ROUTED_NORM_TYPE + kind.NORM_TYPE):
            own["norm_type"] = kind.NORM_TYPE
        if name in (kind.DIFFUSERS_CLASS, routed) or (name, norm_type) == (_OLD_CLASS, kind.NORM_TYPE):
            return kind.from_diffusers(kind.complete({**config, **own}, names), where)
    check_implemented(config, {"_class_name": _classes(ARCHITECTURES.values())}, where, required=("_class_name",))
    raise UnsupportedError(
        f"[spec] {where}: norm_type = {quote(norm_type)} of a {_OLD_CLASS} is not implemented, want "
        f"{' or '.join(kind.NORM_TYPE for kind in ARCHITECTURES.values())}"
    )


def _routed_classes(kinds: Iterable[type[TransformerSpec]]) -> tuple[str, ...]:
    return tuple(ROUTED_CLASS + kind.DIFFUSERS_CLASS for kind in kinds)


def _classes(kinds: Collection[type[TransformerSpec]]) -> tuple[str, ...]:
    """List all names of the classes of transformers."""
    return (*(kind.DIFFUSERS_CLASS for kind in kinds), _OLD_CLASS, *_routed_classes(kinds))


def _read_named(where: Path, config: dict[str, Any], weights: Weights, scheduler: NoiseSchedule | None) -> Transformer:
    """Read a transformer under diffusers' names; `where` is its configuration, or the single file without one."""
    holder = where.parent if where.suffix == ".json" else where
    tensors = dict(weights.tensors)
    spec, policy = _configure(where, config, tensors, scheduler)
    if policy.is_dense:
        check_dense(tensors, str(holder))
    unused, notes = take_keep_ratios(tensors, policy.plan)
    wanted = spec.tensors(has_routers=policy.has_routers)
    part = finish_part("transformer", holder, tensors, wanted, unused, (*weights.notes, *notes))
    return Transformer(spec, policy, part)


def _configure(
    where: Path, config: dict[str, Any], names: Mapping[str, object], scheduler: NoiseSchedule | None
) -> tuple[TransformerSpec, TokenPolicy]:
    """Read dimensions and policy from a configuration and the names of tensors."""
    spec = read_spec(config, str(where), names)
    policy = read_policy(config, spec.num_layers, _timesteps(scheduler), str(where))
    if scheduler is not None:
        check_timesteps(policy.plan, scheduler.num_train_timesteps, str(where))
    return spec, policy


def _config_of_folder(sources: Sources, place: Path, files: SourceFiles) -> tuple[Path, dict[str, Any]]:
    """Read the configuration in a transformer's folder, with the class that the pipeline's index names."""
    path = place / "config.json"
    config = read_config(path)
    routed = _routed_classes(ARCHITECTURES.values())  # which indices of before do not name
    if place != sources.main and config.get("_class_name") not in routed:
        known = sources.known_pipeline
        kinds = ARCHITECTURES.values() if known is None else (known.transformer,)
        sources.name_class(TRANSFORMER, config, _classes(kinds))
    check_config(config, str(path))
    files.add(path)
    return path, config


def _config_of_file(sources: Sources, place: Path, files: SourceFiles) -> dict[str, Any]:
    """Find the configuration of a single file in diffusers' names: beside it, or that of the base's own transformer."""
    beside = place.parent / "config.json"
    config = read_config(beside) if beside.is_file() else sources.known_transformer()
    if beside.is_file():
        files.add(beside)
    if not config:
        raise MissingError(
            f"[transformer] {place}: weights without a config.json; put that of the model beside them, or name a "
            "pipeline of the same architecture, with its transformer, as --base"
        )
    return config


def _read_original(
    place: Path,
    tensors: Mapping[str, StoredTensor],
    sources: Sources,
    scheduler: NoiseSchedule | None,
    downscale: int | None,
) -> Transformer:
    found = original.rename(tensors, str(place))
    downscale = downscale or USUAL_DOWNSCALE
    if sources.image_size is not None and sources.image_size % downscale:
        raise ValueRangeError(
            f"[transformer] {place}: --image-size {sources.image_size} is not a multiple of {downscale}, the pixels of "
            "a latent pixel"
        )
    spec = original.infer_spec(
        found,
        str(place),
        whole_scales=sources.pipeline().whole_scales,
        latent_side=None if sources.image_size is None else sources.image_size // downscale,
        known=sources.known_transformer(),
    )
    policy = original.infer_policy(found, spec.num_layers, _timesteps(scheduler), str(place))
    wanted = spec.tensors(has_routers=policy.has_routers)
    note = (
        f"original layout of PixArt: {spec.num_attention_heads} heads, trained at {spec.sample_size * downscale} "
        f"pixels, positions scaled by {spec.interpolation_scale:g}"
    )
    return Transformer(spec, policy, finish_part("transformer", place, found.tensors, wanted, found.unused, (note,)))


def _timesteps(scheduler: NoiseSchedule | None) -> int:
    return USUAL_TIMESTEPS if scheduler is None else scheduler.num_train_timesteps
