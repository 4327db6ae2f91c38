"""What all kinds of published checkpoints share: the record of one, and how files are changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from moddit.checkpoint.sources import Sources
from tests import tiny

TRANSFORMER: Final = "transformer/diffusion_pytorch_model.safetensors"
TEXT_ENCODER: Final = "text_encoder/model.safetensors"
VAE: Final = "vae/diffusion_pytorch_model.safetensors"
LORA_SCALE: Final = 0.7


@dataclass
class Published:
    """A checkpoint, and how its reference is loaded."""

    sources: Sources
    kind: str = "sigma"
    reference: Callable[[], Any] | None = None  # by default the pipeline's folder

    @property
    def options(self) -> list[str]:
        """What a user types for it."""
        found = ["--hf-path", str(self.sources.main)]
        if self.sources.base is not None:
            found += ["--base", str(self.sources.base)]
        if self.sources.variant is not None:
            found += ["--variant", self.sources.variant]
        for lora in self.sources.loras:
            found += ["--lora", str(lora)]
        if self.sources.image_size is not None:
            found += ["--image-size", str(self.sources.image_size)]
        return found

    def load(self) -> Any:
        """Load the pipeline that draws what this checkpoint should draw."""
        if self.reference is not None:
            return self.reference()
        return DiffusionPipeline.from_pretrained(self.sources.main, variant=self.sources.variant)


Make = Callable[[Path], Published]
CASES: Final[dict[str, Make]] = {}


def case(make: Make) -> Make:
    """Name a case after its function."""
    CASES[make.__name__] = make
    return make


def save(folder: Path, kind: str = "sigma", **components: Any) -> Path:
    return tiny.save_pipeline(folder / "model", kind=kind, routed=False, **components)


def plain(folder: Path) -> Published:
    return Published(Sources(folder))


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    value = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: item for key, item in value.items() if item is not None}))


def null(path: Path, *keys: str) -> None:
    """Set keys of a JSON file to null."""
    path.write_text(json.dumps(json.loads(path.read_text()) | dict.fromkeys(keys)))


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of a file."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})
