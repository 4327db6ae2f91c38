"""What a user asks of one picture: everything that decides it besides the model, completed and checked."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import Annotated, Any, Final, Self

from msgspec import Meta

from moddit.bins import Size, bin_size
from moddit.bounds import (
    CLASSES,
    GUIDANCE,
    PIXELS,
    SIDE,
    TEXT,
    TIMESTEPS,
    TOKENS,
    TRAINED_TOKENS,
    ClassNumber,
    Sha256,
    Side,
    Text,
    Timesteps,
    choice,
)
from moddit.conditioning import Label
from moddit.edits import Edit
from moddit.errors import MissingError, ShapeError, UnsupportedError, ValueRangeError
from moddit.noise import SEED_MAX, SEED_MIN
from moddit.routing import DENOMINATOR
from moddit.samplers import SAMPLERS, SamplerTable, build_table, count_steps
from moddit.sampling import is_guided
from moddit.spec import ModelSpec

DEFAULT_STEPS: Final = 20
IMAGE_STRENGTH: Final = 0.8  # of diffusers' img2img
MASK_STRENGTH: Final = 1.0  # of diffusers' inpainting
# Of models that inpaint, with a caption and without: on shapes64 4.5 cost tone, and 1 with a caption form.
INPAINTING_GUIDANCE: Final = 2.0
CAPTIONLESS_GUIDANCE: Final = 1.0
DEFAULT_VAE_TILE_SIZE: Final = 512  # pixels
TILE_PARTS: Final = 4  # tiles overlap by one part of so many; every part must be made of whole latent pixels
# The least and the largest value, of what a command line or a program may give.
_RANGES: Final = {
    "steps": (1, TIMESTEPS),
    "height": (1, SIDE),
    "width": (1, SIDE),
    "vae_tile_size": (1, SIDE),
    "seed": (SEED_MIN, SEED_MAX),
    "guidance_scale": (0, GUIDANCE),
    "label": (0, CLASSES - 1),
    "reuse": (1, TIMESTEPS),
    "cache": (0, 1),
    "keep": (1 / DENOMINATOR, 1),
    "strength": (0, 1),
    "padding_mask_crop": (0, SIDE),
}


@dataclass(frozen=True)
class Request:
    """One picture that is asked for.

    Equal requests, model, dtype and device give the equal picture; a large one, where memory differs, but for rounding.
    """

    prompt: Text  # empty for a model that is conditioned on a label
    negative_prompt: Text
    seed: int  # of 64 bits, with a sign or without
    steps: Timesteps
    guidance_scale: Annotated[float, Meta(ge=0, le=GUIDANCE)]  # 1 and below generate without guidance, in half the time
    height: Side  # pixels
    width: Side  # pixels
    sampler: Annotated[str, choice(*SAMPLERS)]
    # Fields with a default came later: a picture's file leaves them out where they have it.
    resolution_binning: bool = False  # generate at the nearest size the model was trained at, then resize and crop
    vae_tile_size: Side | None = None  # pixels; None decodes without tiles, which change pixels a little
    label: ClassNumber | None = None  # number of a class, for a model that is conditioned on one
    reuse: Timesteps = 1  # the model is asked in the first of so many steps, and its clean latents serve the others
    cache: Annotated[float, Meta(ge=0, le=1)] | None = None  # threshold of a first-block cache (`moddit.cache`)
    keep: Annotated[float, Meta(ge=1 / DENOMINATOR, le=1)] | None = None  # of the tokens, in the mean; None as trained
    image: Sha256 | None = None  # that an edit starts from (`moddit.edits`)
    mask: Sha256 | None = None  # of what is drawn anew; None for all of it
    strength: Annotated[float, Meta(ge=0, le=1)] | None = None  # share of the steps that an edit takes, the last ones
    padding_mask_crop: Annotated[int, Meta(ge=0, le=SIDE)] | None = (
        None  # pixels around the mask that are drawn as well
    )

    def __post_init__(self) -> None:
        for name, (least, most) in _RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:  # NaN is in no range
                raise ValueRangeError(f"[request] {name} out of range, got {value}, want {least}..{most}")
        if self.height * self.width > PIXELS:
            raise ValueRangeError(
                f"[request] a picture of height {self.height} and width {self.width} is too large, want at most "
                f"{PIXELS} pixels"
            )
        self._check_edit()
        taken = self.taken_steps
        if self.reuse > 1 and self.reuse >= taken:
            raise ValueRangeError(
                f"[request] reuse {self.reuse} of {taken} steps leaves a single one, want fewer than the steps"
            )
        if self.reuse > 1 and self.cache is not None:
            raise UnsupportedError(
                f"[request] reuse {self.reuse} and cache {self.cache} at once, which nobody has measured; give one"
            )
        if self.sampler not in SAMPLERS:
            raise UnsupportedError(f"[request] sampler {self.sampler!r} is unknown, want one of {', '.join(SAMPLERS)}")
        for name in ("prompt", "negative_prompt"):
            if len(getattr(self, name)) > TEXT:
                raise ValueRangeError(
                    f"[request] {name} has {len(getattr(self, name))} characters, want at most {TEXT}"
                )
            try:
                getattr(self, name).encode("utf-8")
            except UnicodeEncodeError:
                raise ValueRangeError(f"[request] {name} is not Unicode text, got {getattr(self, name)!r}") from None

    def _check_edit(self) -> None:
        for name in ("mask", "strength"):
            if self.image is None and getattr(self, name) is not None:
                raise UnsupportedError(f"[request] {name} without an image, which it says what to do with; give one")
        if self.mask is None and self.padding_mask_crop is not None:
            raise UnsupportedError("[request] padding_mask_crop without a mask, around which it crops; give one")
        if self.image is not None and self.strength is None:
            raise UnsupportedError("[request] image without a strength, want the share of the steps to take")
        if self.image is not None and self.resolution_binning:
            raise UnsupportedError(
                "[request] resolution_binning and an image at once, which says what size to draw; give one"
            )

    @classmethod
    def complete(
        cls,
        spec: ModelSpec,
        prompt: str = "",
        *,
        negative_prompt: str = "",
        seed: int = 0,
        steps: int = DEFAULT_STEPS,
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        sampler: str | None = None,
        resolution_binning: bool = False,
        vae_tile_size: int | None = None,
        label: int | None = None,
        reuse: int = 1,
        cache: float | None = None,
        keep: float | None = None,
        edit: Edit | None = None,
        strength: float | None = None,
    ) -> Self:
        """Fill in the model's own size, sampler and guidance where none is given, and check the rest against the model.

        An edit has the size that it is drawn in, whatever height and width are, and a strength of its own.

        A tile that holds the whole picture is dropped: it would change nothing. A cache with threshold 0 is none.

        Raises:
            ShapeError: a side is not made of whole patches, or a tile not of what can overlap; the message names the
                nearest sides that are.
            UnsupportedError: an unknown sampler, or resolution binning for a model without a table of sizes.
            ValueRangeError: any other setting that cannot be used.
        """
        if edit is not None:
            height, width = edit.size
            strength = (IMAGE_STRENGTH if edit.mask is None else MASK_STRENGTH) if strength is None else strength
        request = cls(
            prompt=prompt,
            negative_prompt=negative_prompt,
            seed=seed,
            steps=steps,
            guidance_scale=float(_default_guidance(spec, prompt) if guidance_scale is None else guidance_scale),
            height=spec.default_side if height is None else height,
            width=spec.default_side if width is None else width,
            sampler=spec.scheduler.sampler if sampler is None else sampler,
            resolution_binning=resolution_binning,
            vae_tile_size=vae_tile_size,
            label=label,
            reuse=reuse,
            cache=float(cache) if cache else None,
            keep=None if keep is None else float(keep),
            image=None if edit is None else edit.image_digest,
            mask=None if edit is None else edit.mask_digest,
            strength=None if strength is None else float(strength),
            padding_mask_crop=None if edit is None else edit.padding_mask_crop,
        )
        request.check(spec)
        is_whole = vae_tile_size is not None and vae_tile_size >= max(request.generated_size(spec))
        return replace(request, vae_tile_size=None) if is_whole else request

    @property
    def is_guided(self) -> bool:
        return is_guided(self.guidance_scale)

    @property
    def subject(self) -> str:
        """What is to be drawn, in words."""
        return self.prompt if self.label is None else f"class {self.label}"

    @property
    def taken_steps(self) -> int:
        """Of `steps`, how many are taken; raises ValueRangeError if that is none."""
        return count_steps(self.steps, 1.0 if self.strength is None else self.strength)

    def rows(self, spec: ModelSpec) -> tuple[Any, ...]:
        """List what the rows of a batch are conditioned on: texts or numbers of classes.

        The negative one comes first, as in diffusers, unless the picture is generated without guidance.
        """
        negative, positive = spec.conditioning.rows(self, spec.transformer)
        return (negative, positive) if self.is_guided else (positive,)

    def generated_size(self, spec: ModelSpec) -> Size:
        """Find the height and width to generate at, pixels; with resolution binning the picture is resized from it.

        Raises UnsupportedError for resolution binning where the model has no table of sizes.
        """
        if self.resolution_binning:
            if not spec.transformer.HAS_BINS:
                raise UnsupportedError(
                    f"[request] resolution_binning is not defined for a {spec.transformer.TITLE}; generate without it"
                )
            return bin_size(spec.transformer.sample_size, spec.default_side, self.height, self.width)
        return self.height, self.width

    def table(self, spec: ModelSpec) -> SamplerTable:
        """Compute the sampling run; raises as `build_table`."""
        return build_table(
            spec.scheduler,
            self.sampler,
            self.steps,
            self.reuse,
            strength=1.0 if self.strength is None else self.strength,
            starts_from_image=self.image is not None and self.mask is None,
        )

    def check(self, spec: ModelSpec) -> None:
        """Check the sizes against a model: sides of what is generated in patches, a tile in quarters that overlap, and
        no more tokens than the model can be asked for.

        Raises:
            ShapeError: naming the nearest sides that are.
            ValueRangeError: too many tokens.
            UnsupportedError: as `generated_size`.
            InputError: what the model is conditioned on is not what the request says.
        """
        spec.conditioning.check_request(self, spec.transformer)
        height, width = self.generated_size(spec)
        _check_multiple("height", height, spec.pixels_per_patch)
        _check_multiple("width", width, spec.pixels_per_patch)
        if self.vae_tile_size is not None:
            _check_multiple("vae_tile_size", self.vae_tile_size, TILE_PARTS * spec.vae.downscale)
        tokens = height * width // spec.pixels_per_patch**2
        most = min(TOKENS, TRAINED_TOKENS * spec.transformer.base_size**2)
        if tokens > most:
            raise ValueRangeError(
                f"[request] a picture of height {height} and width {width} has {tokens} tokens, want at most {most}: "
                f"{TRAINED_TOKENS} times those of the {spec.default_side} pixels that the model was trained at, and no "
                f"more than {TOKENS}"
            )

    def check_edit(self, spec: ModelSpec, edit: Edit | None) -> None:
        """Check that an edit is the one that the request was completed with, and what the model draws.

        Raises:
            ValueRangeError: it is another one.
            MissingError: the model inpaints, and there is no image or no mask.
        """
        if spec.transformer.inpaints and (edit is None or edit.mask is None):
            raise MissingError(
                f"[request] no {'image' if edit is None else 'mask'}, though this model inpaints: it draws a part of "
                "an image anew; want an image and a mask, as generate takes them"
            )
        wanted = (self.image, self.mask, self.padding_mask_crop)
        found = (None,) * 3 if edit is None else (edit.image_digest, edit.mask_digest, edit.padding_mask_crop)
        if found != wanted or (edit is not None and edit.size != (self.height, self.width)):
            raise ValueRangeError(f"[request] image, mask and padding_mask_crop are {found}, want {wanted}")

    def to_json(self) -> dict[str, Any]:
        """Write every field, but those that have their default."""
        values = asdict(self)
        return {field.name: values[field.name] for field in fields(self) if values[field.name] != field.default}


def _default_guidance(spec: ModelSpec, prompt: str) -> float:
    if not spec.transformer.inpaints:
        return spec.conditioning.GUIDANCE_SCALE
    has_caption = bool(prompt.strip()) or spec.conditioning.KIND == Label.KIND
    return INPAINTING_GUIDANCE if has_caption else CAPTIONLESS_GUIDANCE


def choose_tile(tiling: bool | None, tile_size: int | None, default: int | None) -> int | None:
    """Combine the wish for tiles and their size, pixels, either of which a user may leave open.

    The default, which may be no tiles, counts where a user says neither: that of a picture that is repeated. Raises
    ValueRangeError for a size of tiles that are not wanted.
    """
    if tiling is False:
        if tile_size is not None:
            raise ValueRangeError(
                f"[request] vae_tile_size {tile_size} without effect, since vae_tiling is off; leave one of them out"
            )
        return None
    if tile_size is not None:
        return tile_size
    return default or DEFAULT_VAE_TILE_SIZE if tiling else default


def _check_multiple(name: str, side: int, unit: int) -> None:
    if side % unit:
        below = side // unit * unit
        nearest = f"{below} or {below + unit}" if below else f"{unit}"
        raise ShapeError(f"[request] {name} is not a multiple of {unit} pixels, got {side}, want {nearest}")
