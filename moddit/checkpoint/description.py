"""What a checkpoint is, apart from how any backend stores it: specification, plan and tensors under canonical names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from moddit.checkpoint.foreign import check_config, check_merged, check_tensors
from moddit.checkpoint.names import canonical_tensors
from moddit.checkpoint.parts import Part, ReadPart, finish_part
from moddit.checkpoint.prompt_tokenizer import PromptTokenizer
from moddit.checkpoint.sources import SEQUENCE_LENGTHS, SourceFiles, Sources
from moddit.checkpoint.tokenizer import read_tokenizer
from moddit.checkpoint.transformer import Transformer, read_transformer
from moddit.checkpoint.weights import DIFFUSERS, TRANSFORMERS, Naming, read_config, read_json, read_weights
from moddit.errors import ShapeError
from moddit.record import system_errors
from moddit.routing import RoutingPlan
from moddit.samplers import SCHEDULER_CLASSES, NoiseSchedule
from moddit.spec import VAE_IMPLEMENTED, ModelSpec, T5Spec, VAESpec
from moddit.tensors import Tensors, text_encoder_tensors, vae_tensors


@dataclass(frozen=True)
class Description:
    """A checkpoint, checked in everything but the values of its weights."""

    spec: ModelSpec
    plan: RoutingPlan | None  # None for a dense model
    parts: Mapping[str, Part]
    tokenizer: bytes  # tokenizer.json
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
    pipeline = sources.pipeline_class()
    files.add(sources.index)
    tokenizer = read_tokenizer(sources.component("tokenizer"), sources.class_of("tokenizer"))
    files.add(*tokenizer.files)
    scheduler = read_scheduler(sources, files)
    text_encoder, text_part = _read_text_encoder(sources, files)
    vae, vae_part = _read_vae(sources, files)
    transformer = read_transformer(sources, files, scheduler, vae.downscale)
    spec = ModelSpec(
        transformer.spec, text_encoder, vae, scheduler, sources.max_sequence_length or SEQUENCE_LENGTHS[pipeline]
    )
    if tokenizer.size > text_encoder.vocab_size:
        raise ShapeError(
            f"[tokenizer] {tokenizer.place}: has {tokenizer.size} tokens, the text encoder's vocab_size is "
            f"{text_encoder.vocab_size}; check that they belong together"
        )
    # what generation will do with it, tried now
    PromptTokenizer.parse(
        tokenizer.text, tokenizer.files[0], vocab_size=text_encoder.vocab_size, max_length=spec.max_sequence_length
    )
    read = {"transformer": transformer.read, "text_encoder": text_part, "vae": vae_part}
    return Description(
        spec,
        transformer.plan,
        {name: part.part for name, part in read.items()},
        tokenizer.text,
        files.paths,
        files.states,
        {f"{name}/{key}": reason for name, part in read.items() for key, reason in part.unused.items()},
        tuple(note for part in read.values() for note in part.notes),
    )


@system_errors("source")
def describe_transformer(sources: Sources) -> Transformer:
    """Read the transformer of a checkpoint, which need have nothing else; raises as `describe`."""
    files = SourceFiles(sources)
    scheduler = read_scheduler(sources, files) if sources.has("scheduler") else None
    vae = read_vae_spec(sources, files) if sources.has("vae") else None
    return read_transformer(sources, files, scheduler, vae.downscale if vae else None)


def read_scheduler(sources: Sources, files: SourceFiles) -> NoiseSchedule:
    """Read the scheduler of a checkpoint; raises as `describe`.

    Its class is the one that the pipeline's index names, whatever class its configuration was saved from.
    """
    path = sources.component("scheduler") / "scheduler_config.json"
    config = read_config(path)
    files.add(path)
    sources.name_class("scheduler", config, SCHEDULER_CLASSES)
    return NoiseSchedule.from_diffusers(config, str(path))


def read_vae_spec(sources: Sources, files: SourceFiles) -> VAESpec:
    """Read the dimensions of a checkpoint's VAE; raises as `describe`."""
    path = sources.component("vae") / "config.json"
    config = read_config(path)
    files.add(path)
    sources.name_class("vae", config, VAE_IMPLEMENTED["_class_name"])
    return VAESpec.from_diffusers(config, str(path))


def _read_text_encoder(sources: Sources, files: SourceFiles) -> tuple[T5Spec, ReadPart]:
    folder = sources.component("text_encoder")
    config = read_json(folder / "config.json")
    check_config(config, str(folder / "config.json"))
    check_merged(folder)
    files.add(folder / "config.json")
    spec = T5Spec.from_transformers(config, str(folder / "config.json"))
    return spec, _read_part("text_encoder", folder, TRANSFORMERS, text_encoder_tensors(spec), sources, files)


def _read_vae(sources: Sources, files: SourceFiles) -> tuple[VAESpec, ReadPart]:
    spec = read_vae_spec(sources, files)
    part = _read_part("vae", sources.component("vae"), DIFFUSERS, vae_tensors(spec), sources, files)
    if spec.shift_factor:
        note = f"the VAE's shift_factor {spec.shift_factor:g} is not used, as in diffusers' pipelines of PixArt"
        part = replace(part, notes=(*part.notes, note))
    return replace(spec, shift_factor=0.0), part


def _read_part(
    name: str, folder: Path, naming: Naming, wanted: Tensors, sources: Sources, files: SourceFiles
) -> ReadPart:
    weights = read_weights(folder, naming, sources.variant)
    files.add(*weights.files)
    check_tensors({key: tensor.dtype for key, tensor in weights.tensors.items()}, str(folder))
    tensors, unused = canonical_tensors(name, weights.tensors, str(folder))
    return finish_part(name, folder, tensors, wanted, unused, weights.notes)
