"""What a picture's file says about how it was made: enough to make the same file again.

A PNG has two text chunks: "moddit", the JSON of `Metadata`, and "parameters", the lines that other programs show.
Nothing in them changes between two runs, so that a repeated picture is the same file, byte for byte.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Final, Self

from moddit.bounds import Name, Text, Versions, choice
from moddit.errors import FormatError
from moddit.manifest import Manifest
from moddit.record import Keys, Origin, decode, parse_json, quote
from moddit.request import Request

METADATA_VERSION: Final = 1
STORED: Final = "stored"  # each component in the dtype that its files have
_TRADES: Final = ("reuse", "cache", "keep")  # of quality for time or back; people are told which are used
DTYPE_NAMES: Final = (STORED, "float16", "bfloat16", "float32")  # to compute in


@dataclass(frozen=True)
class ModelReference:
    """Which bundle made a picture."""

    path: Text | None  # as the user gave it; None for the embedded model
    fingerprint: Name  # of the bundle's contents
    source: Text  # of the bundle, from its provenance

    @classmethod
    def of(cls, manifest: Manifest, path: str | None) -> Self:
        return cls(path, manifest.fingerprint, manifest.provenance.source)


@dataclass(frozen=True)
class Metadata:
    """How one picture was made."""

    settings: Request  # the name that files of before have
    model: ModelReference
    dtype: Annotated[str, choice(*DTYPE_NAMES)] | None  # computed in; None in pictures of before it had a name
    versions: Versions  # of moddit and MLX

    def to_json(self) -> dict[str, Any]:
        """Write the version of this format first."""
        return {"version": METADATA_VERSION, **asdict(self), "settings": self.settings.to_json()}

    @classmethod
    def from_text(cls, text: str, where: str) -> Self:
        """Read the JSON of `to_json` strictly.

        Raises:
            FormatError: not JSON, another version, or unknown or missing fields.
            InputError: settings whose values are not allowed.
        """
        origin = Origin("metadata", where)
        value = parse_json(text.encode("utf-8", "surrogatepass"), origin)
        version = value.pop("version", None) if isinstance(value, dict) else None
        if type(version) is not int or version != METADATA_VERSION:
            raise FormatError(f"{origin}: version is unknown, got {quote(version)}, want {METADATA_VERSION}")
        return decode(value, cls, origin, Keys.KNOWN)

    def describe(self) -> str:
        """Write the lines that image browsers show under "parameters"."""
        settings, written = self.settings, self.settings.to_json()
        facts = {
            "Steps": settings.steps,
            "Sampler": settings.sampler,
            "CFG scale": f"{settings.guidance_scale:g}",
            "Seed": settings.seed,
            "Size": f"{settings.width}x{settings.height}",
            **({} if settings.strength is None else {"Denoising strength": f"{settings.strength:g}"}),
            **{name.capitalize(): f"{written[name]:g}" for name in _TRADES if name in written},
            "Model hash": self.model.fingerprint[:10],
            "Version": f"moddit {self.versions['moddit']}",
        }
        lines = [settings.subject]
        if settings.is_guided and settings.negative_prompt:
            lines.append(f"Negative prompt: {settings.negative_prompt}")
        return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in facts.items())])
