"""What a picture's file says about how it was made: enough to make the same file again.

A PNG has two text chunks: "moddit", the JSON of `Metadata`, and "parameters", the lines that other programs show.
Nothing in them changes between two runs, so that a repeated picture is the same file, byte for byte.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Final, Self

import moddit
from mlx_moddit.load import DTYPE_NAMES
from mlx_moddit.settings import Settings
from moddit.bounds import Name, Text, Versions, choice
from moddit.errors import FormatError
from moddit.manifest import Manifest
from moddit.record import Keys, Origin, decode, parse_json, quote

METADATA_VERSION: Final = 1


@dataclass(frozen=True)
class ModelReference:
    """Which bundle made a picture."""

    path: Text | None  # as the user gave it; None for the embedded model
    fingerprint: Name  # of the bundle's contents
    source: Text  # of the bundle, from its provenance

    @classmethod
    def of(cls, manifest: Manifest, path: str | None) -> Self:
        return cls(path, fingerprint(manifest), manifest.provenance.source)


@dataclass(frozen=True)
class Metadata:
    """How one picture was made."""

    settings: Settings
    model: ModelReference
    dtype: Annotated[str, choice(*DTYPE_NAMES)] | None  # computed in; None in pictures of before it had a name
    versions: Versions  # of moddit and MLX

    def to_json(self) -> dict[str, Any]:
        """Write the version of this format first."""
        return {
            "version": METADATA_VERSION,
            "settings": self.settings.to_json(),
            "model": asdict(self.model),
            "dtype": self.dtype,
            "versions": dict(self.versions),
        }

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
        settings = self.settings
        facts = {
            "Steps": settings.steps,
            "Sampler": settings.sampler,
            "CFG scale": f"{settings.guidance_scale:g}",
            "Seed": settings.seed,
            "Size": f"{settings.width}x{settings.height}",
            "Model hash": self.model.fingerprint[:10],
            "Version": f"moddit {self.versions['moddit']}",
        }
        lines = [settings.prompt]
        if settings.is_guided and settings.negative_prompt:
            lines.append(f"Negative prompt: {settings.negative_prompt}")
        return "\n".join([*lines, ", ".join(f"{name}: {value}" for name, value in facts.items())])


def fingerprint(manifest: Manifest) -> str:
    """Hash what a bundle holds, independent of where it lies and when it was made."""
    files = sorted((info.path, info.sha256) for item in manifest.components.values() for info in item.files)
    plan = manifest.plan.to_json() if manifest.plan else None
    text = json.dumps([files, manifest.spec.to_json(), plan], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def versions() -> dict[str, str]:
    """Name the programs whose version can change a picture."""
    return {"moddit": moddit.__version__, "mlx": importlib.metadata.version("mlx")}
