"""What a model is: the dimensions and scale factors of its components, as a bundle says them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from moddit.bounds import SIDE
from moddit.conditioning import Conditioning, ConditioningRecord
from moddit.errors import InputError, ShapeError, ValueRangeError
from moddit.models.architectures import TransformerRecord
from moddit.models.transformer import TransformerSpec
from moddit.models.vae import VAESpec
from moddit.samplers import NoiseSchedule
from moddit.tensors import Tensors


@dataclass(frozen=True)
class ModelSpec:
    """A whole pipeline, from what a picture is conditioned on to its pixels."""

    transformer: TransformerSpec
    conditioning: Conditioning
    vae: VAESpec
    scheduler: NoiseSchedule

    def __post_init__(self) -> None:
        latent, found = self.vae.latent_channels, self.transformer.in_channels
        wanted = 2 * latent + 1 if self.transformer.inpaints else latent
        if found != wanted:
            raise ShapeError(
                f"[spec] transformer in_channels {found} and VAE latent_channels {latent} differ, want in_channels "
                f"{wanted}"
            )
        self.conditioning.check(self.transformer)
        if self.default_side > SIDE:
            raise ValueRangeError(
                f"[spec] sample_size {self.transformer.sample_size} is {self.default_side} pixels, want at most {SIDE}"
            )

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the components of a bundle."""
        return ("transformer", "vae", *self.conditioning.COMPONENTS)

    def tensors(self, *, has_routers: bool) -> dict[str, Tensors]:
        """List the canonical tensors of each component that has any."""
        own = {"transformer": self.transformer.tensors(has_routers=has_routers), "vae": self.vae.tensors()}
        return own | self.conditioning.tensors()

    def number(self, label: int | str) -> int:
        """Find the class that a label names; raises as `Conditioning.number`."""
        return self.conditioning.number(label, self.transformer)

    @property
    def text_tokens(self) -> int:
        """Tokens that every block attends to beside those of the picture."""
        return self.conditioning.text_tokens

    @property
    def pixels_per_patch(self) -> int:
        """Picture sides must be multiples of this."""
        return self.transformer.patch_size * self.vae.downscale

    @property
    def default_side(self) -> int:
        """Side of the square picture the model was trained on, pixels."""
        return self.transformer.sample_size * self.vae.downscale

    def to_json(self) -> dict[str, Any]:
        """Write every component; the transformer by its architecture and the conditioning by its kind."""
        return {
            "transformer": {self.transformer.ARCHITECTURE: self.transformer.to_json()},
            "conditioning": {self.conditioning.KIND: self.conditioning.to_json()},
            "vae": self.vae.to_json(),
            "scheduler": self.scheduler.to_json(),
        }

    @classmethod
    def of(cls, record: ModelRecord, where: str) -> ModelSpec:
        """Make the specification of a record; raises InputError if its parts do not fit together."""
        try:
            return cls(record.transformer.chosen, record.conditioning.chosen, record.vae, record.scheduler)
        except InputError as error:
            raise type(error)(f"{error} (in {where})") from None


@dataclass(frozen=True)
class ModelRecord:
    """The "spec" object of a manifest."""

    transformer: TransformerRecord
    conditioning: ConditioningRecord
    vae: VAESpec
    scheduler: NoiseSchedule
