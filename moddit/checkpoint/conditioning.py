"""What a checkpoint is conditioned on: its tokenizer and text encoder, or the names of its classes.

A kind has two readers: of the whole, and of what the configuration files alone say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Final

from msgspec import Meta

from moddit.bounds import CLASSES, Name
from moddit.checkpoint.foreign import check_config, check_merged
from moddit.checkpoint.parts import Part, read_part
from moddit.checkpoint.prompt_tokenizer import PromptTokenizer
from moddit.checkpoint.sources import SourceFiles, Sources
from moddit.checkpoint.tokenizer import read_tokenizer
from moddit.checkpoint.weights import TRANSFORMERS, read_json
from moddit.conditioning import ClassName, Conditioning, Label, Text
from moddit.contract import TEXT_ENCODER
from moddit.errors import FormatError, ShapeError, UnsupportedError
from moddit.models.t5 import T5Spec
from moddit.models.transformer import TransformerSpec
from moddit.record import Keys, Origin, decode, quote

NAMES: Final = "id2label"  # in the index of a pipeline


@dataclass(frozen=True)
class ReadConditioning:
    """A conditioning, with the components that only it has."""

    conditioning: Conditioning
    parts: Mapping[str, Part] = field(default_factory=dict)
    documents: Mapping[str, bytes] = field(default_factory=dict)


def read_text(sources: Sources, files: SourceFiles, _: TransformerSpec) -> ReadConditioning:
    """Read tokenizer and text encoder.

    Raises:
        MissingError, FormatError, UnsupportedError, ValueRangeError: one of them is absent, damaged or of another kind.
        ShapeError: the tokenizer has more tokens than the encoder.
    """
    tokenizer = read_tokenizer(sources.component("tokenizer"), sources.class_of("tokenizer"))
    files.add(*tokenizer.files)
    text = configure_text(sources, files, _)
    encoder, folder = text.encoder, sources.component(TEXT_ENCODER)
    check_merged(folder)
    part = read_part(TEXT_ENCODER, folder, TRANSFORMERS, encoder.tensors(), sources, files)
    if tokenizer.size > encoder.vocab_size:
        raise ShapeError(
            f"[tokenizer] {tokenizer.place}: has {tokenizer.size} tokens, the text encoder's vocab_size is "
            f"{encoder.vocab_size}; check that they belong together"
        )
    # what generation will do with it, tried now
    PromptTokenizer.parse(
        tokenizer.text, tokenizer.files[0], vocab_size=encoder.vocab_size, max_length=text.max_sequence_length
    )
    return ReadConditioning(text, {TEXT_ENCODER: part}, {"tokenizer": tokenizer.text})


def configure_text(sources: Sources, files: SourceFiles, _: TransformerSpec) -> Text:
    """Read the configuration of the text encoder; raises as `read_text`."""
    path = sources.component(TEXT_ENCODER) / "config.json"
    config = read_json(path)
    check_config(config, str(path))
    files.add(path)
    encoder = T5Spec.from_transformers(config, str(path))
    return Text(encoder, sources.max_sequence_length or sources.pipeline().sequence_length)


@dataclass(frozen=True)
class _Names:
    """What an index says of the classes."""

    id2label: Annotated[Mapping[Name, ClassName], Meta(max_length=CLASSES)] | None = None


def configure_label(sources: Sources, _: SourceFiles, transformer: TransformerSpec) -> Label:
    """Read the names of the classes in the pipeline's index, which may have none.

    Raises:
        UnsupportedError: a length is given for texts that the model does not take.
        FormatError, ShapeError: the names are no object from numbers to texts, or of other classes than the model's.
    """
    if sources.max_sequence_length is not None:
        raise UnsupportedError(
            f"[source] {sources.index}: --max-sequence-length is {sources.max_sequence_length}, but this model draws "
            "classes, not texts; leave it out"
        )
    found = decode(sources.whole_index(), _Names, Origin("source", str(sources.index)), Keys.ANY).id2label or {}
    where = f"[source] {sources.index}: {NAMES}"
    for key in found:
        if not key.isascii() or not key.isdecimal():
            raise FormatError(f"{where} has the key {quote(key)}, want the number of a class")
    names = {int(key): name for key, name in found.items()}
    classes = transformer.num_classes
    if names and max(names) >= classes:
        raise ShapeError(f"{where} names class {max(names)}, the transformer has {classes}, want numbers below")
    return Label(tuple(names.get(number, "") for number in range(classes)) if names else ())


def read_label(sources: Sources, files: SourceFiles, transformer: TransformerSpec) -> ReadConditioning:
    """Read what `configure_label` reads, which is all; raises as it."""
    return ReadConditioning(configure_label(sources, files, transformer))


@dataclass(frozen=True)
class Readers:
    """How a kind of conditioning is read."""

    whole: Callable[[Sources, SourceFiles, TransformerSpec], ReadConditioning]
    configuration: Callable[[Sources, SourceFiles, TransformerSpec], Conditioning]


CONDITIONINGS: Final[Mapping[str, Readers]] = {
    Text.KIND: Readers(read_text, configure_text),
    Label.KIND: Readers(read_label, configure_label),
}
