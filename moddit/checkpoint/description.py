"""What a checkpoint is, apart from how any backend stores it: specification, plan and tensors under canonical names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moddit.checkpoint.conditioning import CONDITIONINGS
from moddit.checkpoint.parts import Part, read_part
from moddit.checkpoint.sources import SourceFiles, Sources
from moddit.checkpoint.transformer import Transformer, read_configuration, read_transformer
from moddit.checkpoint.weights import DIFFUSERS, read_config
from moddit.models.vae import VAE_IMPLEMENTED, VAESpec
from moddit.record import system_errors
from moddit.samplers import SCHEDULER_CLASSES, NoiseSchedule
from moddit.spec import ModelSpec
from moddit.tokens import TokenPolicy


@dataclass(frozen=True)
class Description:
    """A checkpoint, checked in everything but the values of its weights."""

    spec: ModelSpec
    policy: TokenPolicy
    parts: Mapping[str, Part]  # of the components that have weights
    documents: Mapping[str, bytes]  # JSON of the others: the tokenizer
    files: Mapping[str, Path]  # all that it was read from, by the names under which its hash counts them
    states: Mapping[Path, tuple[int, int, int]]  # of these files when they were read
    unused: Mapping[str, str]  # "component/tensor" to the reason why no bundle holds it
    notes: tuple[str, ...]  # what a user should know, one sentence each


@system_errors("source")
def describe(sources: Sources) -> Description:
    """Read a checkpoint; weights are left on disk, and only their headers are read.

    Raises:
        MissingError: a component or file is absent.
        FormatError: a file is damaged, or cannot be read.
        UnsupportedError: another architecture or feature than implemented.
        ShapeError: tensors or the plan do not fit the configuration.
        ValueRangeError: a value of the plan or of a configuration outside its range.
    """
    sources.check()
    files = SourceFiles(sources)
    pipeline = sources.pipeline()
    files.add(sources.index)
    scheduler = read_scheduler(sources, files)
    vae, vae_part = _read_vae(sources, files)
    transformer = read_transformer(sources, files, scheduler, vae.downscale)
    told = CONDITIONINGS[pipeline.conditioning.KIND].whole(sources, files, transformer.spec)
    spec = ModelSpec(transformer.spec, told.conditioning, vae, scheduler)
    parts = {"transformer": transformer.part, **told.parts, "vae": vae_part}
    return Description(
        spec,
        transformer.policy,
        parts,
        told.documents,
        files.paths,
        files.states,
        {f"{name}/{key}": reason for name, part in parts.items() for key, reason in part.unused.items()},
        tuple(note for part in parts.values() for note in part.notes),
    )


@system_errors("source")
def describe_configuration(sources: Sources) -> tuple[ModelSpec, TokenPolicy]:
    """Read what the configuration files of a checkpoint say, whose weights need not be there; raises as `describe`."""
    sources.check_places()
    files = SourceFiles(sources)
    pipeline = sources.pipeline()
    scheduler = read_scheduler(sources, files)
    transformer, policy = read_configuration(sources, files, scheduler)
    conditioning = CONDITIONINGS[pipeline.conditioning.KIND].configuration(sources, files, transformer)
    vae = replace(read_vae_spec(sources, files), shift_factor=0.0)
    return ModelSpec(transformer, conditioning, vae, scheduler), policy


@system_errors("source")
def describe_transformer(sources: Sources) -> Transformer:
    """Read the transformer of a checkpoint, which need have nothing else; raises as `describe`."""
    files = SourceFiles(sources)
    scheduler = read_scheduler(sources, files) if sources.has("scheduler") else None
    vae = read_vae_spec(sources, files) if sources.has("vae") else None
    return read_transformer(sources, files, scheduler, vae.downscale if vae else None)


def read_scheduler(sources: Sources, files: SourceFiles) -> NoiseSchedule:
    """Read the scheduler of a checkpoint; raises as `describe`."""
    path = sources.component("scheduler") / "scheduler_config.json"
    return NoiseSchedule.from_diffusers(_read_config(path, sources, files, SCHEDULER_CLASSES), str(path))


def read_vae_spec(sources: Sources, files: SourceFiles) -> VAESpec:
    """Read the dimensions of a checkpoint's VAE; raises as `describe`."""
    path = sources.component("vae") / "config.json"
    return VAESpec.from_diffusers(_read_config(path, sources, files, VAE_IMPLEMENTED["_class_name"]), str(path))


def _read_config(path: Path, sources: Sources, files: SourceFiles, classes: Iterable[str]) -> dict[str, Any]:
    """Read a component's configuration, with the class that the index names, whatever class it was saved from."""
    config = read_config(path)
    files.add(path)
    sources.name_class(path.parent.name, config, classes)
    return config


def _read_vae(sources: Sources, files: SourceFiles) -> tuple[VAESpec, Part]:
    spec = read_vae_spec(sources, files)
    part = read_part("vae", sources.component("vae"), DIFFUSERS, spec.tensors(), sources, files)
    if spec.shift_factor:
        note = f"the VAE's shift_factor {spec.shift_factor:g} is not used, as in diffusers' pipelines"
        part = replace(part, notes=(*part.notes, note))
    return replace(spec, shift_factor=0.0), part
