"""What a model draws is conditioned on: a text, or a class label. It decides which components a bundle has beside the
transformer and the VAE, and what a request for a picture says.
"""

from __future__ import annotations

import difflib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Final, Protocol

from msgspec import Meta

from moddit.bounds import CLASSES, NAME, TEXT_TOKENS, TextTokens
from moddit.contract import INPUT_IDS, TEXT, TEXT_ENCODER, TEXT_MASK
from moddit.errors import MissingError, ShapeError, UnsupportedError, ValueRangeError
from moddit.models.config import ComponentSpec
from moddit.models.t5 import T5Spec
from moddit.models.transformer import Shapes, TransformerSpec
from moddit.operations import Operation
from moddit.record import OneOf, quote
from moddit.tensors import Tensors

ClassName = Annotated[str, Meta(max_length=NAME)]
_SHOWN: Final = 5  # names that a message lists
_COMPARED: Final = 10_000  # names that one is compared with, to find the nearest
_DIGITS: Final = 12  # of a number of a class; no model has as many
_NUMBER: Final = re.compile(r"-?[0-9]+")


class Asked(Protocol):
    """What of a request for a picture is about what to draw."""

    @property
    def prompt(self) -> str: ...

    @property
    def negative_prompt(self) -> str: ...

    @property
    def label(self) -> int | None: ...


class Conditioning(ComponentSpec, ABC):
    """What a request for a picture has to say, and what it takes to tell the model."""

    KIND: ClassVar[str]  # its name in a bundle
    COMPONENTS: ClassVar[tuple[str, ...]]  # of a bundle, beside the transformer and the VAE
    GUIDANCE_SCALE: ClassVar[float]  # where a user names none
    EXAMPLE: ClassVar[Mapping[str, Any]]  # of what a request says, where nobody says anything

    @abstractmethod
    def rows(self, asked: Asked, transformer: TransformerSpec) -> tuple[Any, Any]:
        """Give what the rows of a batch are conditioned on, the negative one of guidance first."""

    @abstractmethod
    def null(self, transformer: TransformerSpec) -> Any:
        """Give what stands for no condition."""

    @abstractmethod
    def of_caption(self, caption: str, transformer: TransformerSpec) -> Any:
        """Take the caption of a picture for a condition; raises as `number`."""

    @abstractmethod
    def check_request(self, asked: Asked, transformer: TransformerSpec) -> None:
        """Check what a request says.

        Raises:
            UnsupportedError: it says what the model has no use for.
            MissingError, ValueRangeError: it lacks what the model needs, or has it outside its range.
        """

    def number(self, label: int | str, transformer: TransformerSpec) -> int:  # noqa: ARG002 # of models of classes
        """Find the class that a label names: by its number, or by one of its names, in capitals or not.

        Raises:
            UnsupportedError: the model draws no classes.
            ValueRangeError: no such number.
            MissingError: no such name.
        """
        raise UnsupportedError(f"[request] label is {quote(label)}, but this model draws a text; want a prompt")

    @property
    def text_tokens(self) -> int:
        """Tokens that every block attends to beside those of the picture."""
        return 0

    def tensors(self) -> dict[str, Tensors]:
        """List the canonical tensors of its components, by component."""
        return {}

    def features(self) -> dict[str, tuple[Shapes, Shapes]]:
        """List what the one function of each of its components' packages takes and gives, by what a package is for."""
        return {}

    def operations(self, tokens: int) -> list[Operation]:  # noqa: ARG002 # of a text
        """List the operations of its components that encode a text of so many tokens."""
        return []

    def check(self, transformer: TransformerSpec) -> None:
        """Check that a transformer can be conditioned so.

        Raises:
            UnsupportedError: it is conditioned on something else.
            ShapeError: on another size of it.
        """
        if transformer.CONDITIONING != self.KIND:
            raise UnsupportedError(
                f"[spec] a {transformer.TITLE} is conditioned on a {transformer.CONDITIONING}, got {self.KIND!r}"
            )


@dataclass(frozen=True)
class Text(Conditioning):
    """A prompt and a negative prompt, through a tokenizer and a text encoder."""

    KIND: ClassVar[str] = "text"
    COMPONENTS: ClassVar[tuple[str, ...]] = (TEXT_ENCODER, "tokenizer")
    GUIDANCE_SCALE: ClassVar[float] = 4.5
    EXAMPLE: ClassVar[Mapping[str, Any]] = {
        "prompt": "a large red circle on the left and a small blue square on the right on a white background"
    }

    encoder: T5Spec
    max_sequence_length: TextTokens  # text tokens, </s> included

    def __post_init__(self) -> None:
        if not 1 <= self.max_sequence_length <= TEXT_TOKENS:  # a command line may give it
            raise ValueRangeError(
                f"[spec] max_sequence_length is {self.max_sequence_length}, want 1..{TEXT_TOKENS} text tokens"
            )

    @property
    def text_tokens(self) -> int:
        return self.max_sequence_length

    def tensors(self) -> dict[str, Tensors]:
        return {TEXT_ENCODER: self.encoder.tensors()}

    def operations(self, tokens: int) -> list[Operation]:
        return self.encoder.operations(tokens)

    def features(self) -> dict[str, tuple[Shapes, Shapes]]:
        shape = (1, self.max_sequence_length)
        return {TEXT_ENCODER: ({INPUT_IDS: shape, TEXT_MASK: shape}, {TEXT: (*shape, self.encoder.d_model)})}

    def check(self, transformer: TransformerSpec) -> None:
        super().check(transformer)
        if transformer.caption_channels != self.encoder.d_model:
            raise ShapeError(
                f"[spec] transformer caption_channels {transformer.caption_channels} and text encoder d_model "
                f"{self.encoder.d_model} differ"
            )

    def rows(self, asked: Asked, _: TransformerSpec) -> tuple[str, str]:
        return asked.negative_prompt, asked.prompt

    def null(self, _: TransformerSpec) -> str:
        return ""

    def of_caption(self, caption: str, _: TransformerSpec) -> str:
        return caption

    def check_request(self, asked: Asked, _: TransformerSpec) -> None:
        if asked.label is not None:
            raise UnsupportedError(
                f"[request] label is {quote(asked.label)}, but this model draws a text; want a prompt alone"
            )


@dataclass(frozen=True)
class Label(Conditioning):
    """The number of a class; the one after the last stands for no class, as guidance needs it."""

    KIND: ClassVar[str] = "label"
    COMPONENTS: ClassVar[tuple[str, ...]] = ()
    GUIDANCE_SCALE: ClassVar[float] = 4.0  # of diffusers' DiTPipeline
    EXAMPLE: ClassVar[Mapping[str, Any]] = {"label": 0}

    # of every class in order, synonyms with commas between them, or of none
    names: Annotated[tuple[ClassName, ...], Meta(max_length=CLASSES)]

    def check(self, transformer: TransformerSpec) -> None:
        super().check(transformer)
        if self.names and len(self.names) != transformer.num_classes:
            raise ShapeError(f"[spec] names of {len(self.names)} classes for {transformer.num_classes} classes")

    def rows(self, asked: Asked, transformer: TransformerSpec) -> tuple[int, int]:
        assert asked.label is not None
        return self.null(transformer), asked.label

    def null(self, transformer: TransformerSpec) -> int:
        return transformer.num_classes

    def of_caption(self, caption: str, transformer: TransformerSpec) -> int:
        return self.number(caption, transformer)

    def check_request(self, asked: Asked, transformer: TransformerSpec) -> None:
        for name in ("prompt", "negative_prompt"):
            text = getattr(asked, name)
            if text:
                raise UnsupportedError(
                    f"[request] {name} is {quote(text)}, but this model draws a class; want a label alone"
                )
        most = transformer.num_classes - 1
        if asked.label is None:
            raise MissingError(f"[request] no label, though this model draws a class; want its number in 0..{most}")
        if not 0 <= asked.label <= most:
            raise ValueRangeError(f"[request] label out of range, got {asked.label}, want 0..{most}")

    def number(self, label: int | str, transformer: TransformerSpec) -> int:
        most = transformer.num_classes - 1
        if isinstance(label, str) and not _NUMBER.fullmatch(label.strip()):
            return self._find(label.strip(), most)
        is_short = isinstance(label, int) or len(label.strip()) <= _DIGITS
        if not is_short or not 0 <= int(label) <= most:
            shown = quote(label) if isinstance(label, str) or abs(label) < CLASSES else "of so many digits"
            raise ValueRangeError(f"[label] class {shown} out of range, want 0..{most}")
        return int(label)

    def _find(self, name: str, most: int) -> int:
        exact = self.numbers()
        loose = {known.casefold(): number for known, number in exact.items()}
        found = exact.get(name, loose.get(name.casefold()))
        if found is None:
            raise MissingError(f"[label] no class is called {quote(name)}; {self._advise(name, exact, most)}")
        return found

    def numbers(self) -> dict[str, int]:
        """Number every name, a synonym like the others; as diffusers, the last class of a name counts."""
        found = {name.strip(): number for number, names in enumerate(self.names) for name in names.split(",")}
        return {name: number for name, number in found.items() if name}

    def _advise(self, name: str, names: Mapping[str, int], most: int) -> str:
        if not self.names:
            return f"this model's classes have no names, want a number in 0..{most}"
        near: list[str] = []
        if len(names) <= _COMPARED and len(name) <= NAME:
            near = difflib.get_close_matches(name, names, n=_SHOWN, cutoff=0.4)
        return f"want a number in 0..{most} or a name such as {', '.join(map(quote, near or list(names)[:_SHOWN]))}"


@dataclass(frozen=True)
class ConditioningRecord(OneOf):
    """The conditioning of a model, by its kind."""

    text: Text | None = None
    label: Label | None = None


KINDS: Final[Mapping[str, type[Conditioning]]] = {kind.KIND: kind for kind in ConditioningRecord.alternatives()}
