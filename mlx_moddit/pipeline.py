"""From a prompt to a picture.

    pipeline = Pipeline.load("bundle")
    result = pipeline.generate("a large red circle", seed=[1, 2], steps=20)
    result.pictures[0].image.save("circle.png")

`Pipeline.stages` is for callers that evaluate, show or free every stage themselves; `Pipeline.run` evaluates and
measures the stages and yields each picture when it is finished; `Pipeline.generate` collects them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mlx_moddit.load import DTYPES, Bundle, load_bundle
from mlx_moddit.memory import Meter, StageCost
from mlx_moddit.routes import RegionRoutes, RouteCounter
from mlx_moddit.stages import Decoded, Encoded, EncodedImage, Loaded, Models, Prepared, Stage, Step
from moddit.bounds import PICTURES
from moddit.edits import Edit
from moddit.errors import ModditError, UnsupportedError, ValueRangeError
from moddit.manifest import verify_files
from moddit.memory import peak_rss_bytes
from moddit.metadata import DTYPE_NAMES, STORED
from moddit.pictures import ImageLike, finish_edit, open_edit
from moddit.request import DEFAULT_STEPS, Request, choose_tile

LAP_NAMES: Final = {
    Loaded: "load",
    Encoded: "encode",
    EncodedImage: "encode_image",
    Prepared: "prepare",
    Step: "denoise",
    Decoded: "decode",
}


@dataclass(frozen=True)
class Picture:
    """A finished picture and how it came about."""

    request: Request
    pixels: NDArray[np.uint8]  # (H, W, 3); of an edit with a mask the size of its image
    step_seconds: tuple[float, ...]  # of full ones
    routes: tuple[RegionRoutes, ...]  # empty unless asked for
    profile: bytes | None = None  # of its colours, ICC's: that of the image of an edit

    @property
    def image(self) -> Image.Image:
        image = Image.fromarray(self.pixels)
        image.info["icc_profile"] = self.profile  # which Pillow writes into files
        return image


@dataclass(frozen=True)
class Result:
    """The pictures of a run, and what its stages cost."""

    pictures: tuple[Picture, ...]
    costs: tuple[StageCost, ...]  # load, encode, encode_image, prepare, denoise, decode: those that ran
    peak_rss_bytes: int  # of the process

    @property
    def images(self) -> tuple[NDArray[np.uint8], ...]:
        return tuple(picture.pixels for picture in self.pictures)


class Pipeline:
    """A model, ready to generate. Components are loaded on first use; one thread at a time may use them."""

    def __init__(self, bundle: Bundle, *, low_ram: bool = False):
        self.bundle = bundle
        self.low_ram = low_ram
        self._models = Models(bundle, low_ram=low_ram)

    @classmethod
    def load(cls, path: Path | str, dtype: str | None = None, low_ram: bool = False) -> Self:
        """Open a bundle that `python -m convert --to mlx` wrote.

        Args:
            path: folder.
            dtype: "float16", "bfloat16" or "float32", to compute in, or "stored" for what the files have. By default
                "stored" on a GPU, and "float32" on a CPU, where MLX takes 30 times as long for half precision.
            low_ram: keep one component in memory at a time, and the text encoder's blocks one by one, and decode in
                strips, which without it is done where memory is short; costs reading the weights again for every
                picture. The pixels are the same, but for rounding where there is more than one strip.

        Raises:
            MissingError, FormatError, UnsupportedError: the folder is not a bundle that can be used.
        """
        name = default_dtype() if dtype is None else dtype
        if name not in DTYPE_NAMES:
            raise UnsupportedError(f"[pipeline] dtype {name!r} is unknown, want one of {', '.join(DTYPE_NAMES)}")
        return cls(load_bundle(path, DTYPES.get(name)), low_ram=low_ram)

    @property
    def dtype(self) -> str:
        """What it computes in, as `load` takes it."""
        return self.bundle.dtype_name or STORED

    def generate(
        self,
        prompt: str = "",
        *,
        label: int | str | None = None,
        negative_prompt: str = "",
        seed: int | Sequence[int] = 0,
        num_images: int = 1,
        steps: int = DEFAULT_STEPS,
        guidance_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        sampler: str | None = None,
        resolution_binning: bool = False,
        vae_tiling: bool | None = None,
        vae_tile_size: int | None = None,
        reuse: int = 1,
        cache: float | None = None,
        keep: float | None = None,
        image: ImageLike | None = None,
        mask: ImageLike | None = None,
        strength: float | None = None,
        padding_mask_crop: int | None = None,
        routes: bool = False,
        on_stage: Callable[[Stage], None] | None = None,
    ) -> Result:
        """Generate pictures of a prompt, one after the other.

        Args:
            prompt: what to draw; a model of texts reads its first `spec.text_tokens` tokens.
            label: what to draw, for a model of classes: a class's number or one of its names.
            negative_prompt: what to avoid; without effect when not guided.
            seed: of the first picture, or several. A seed stands for the same noise as
                `torch.Generator("cpu").manual_seed(seed)` in diffusers.
            num_images: pictures for each seed, with seed, seed + 1, ...
            steps: denoising steps, 1 up to the training timesteps.
            guidance_scale: how much to follow the prompt or label; 1 or less generates without guidance, in half the
                time; by default what the model's kind of conditioning has.
            height: pixels, a multiple of `spec.pixels_per_patch`; by default the size the model was trained at.
            width: likewise.
            sampler: "dpmpp-2m", "ddim" or "euler"; by default the model's own.
            resolution_binning: generate at the size of the nearest aspect ratio that PixArt was trained at, then resize
                and crop to height and width, which may be any; what diffusers calls `use_resolution_binning`.
            vae_tiling: decode the picture in tiles that overlap, which bounds memory and changes pixels a little
                (diffusers' `enable_vae_tiling`). A picture of one tile is decoded as without.
            vae_tile_size: side of a tile, pixels, a multiple of `4 * spec.vae.downscale`; by default 512.
            reuse: ask the model in the first of every so many steps, and take its clean latents again in the others.
            cache: threshold of a first-block cache (`moddit.cache`), 0..1: a step whose first block does nearly what it
                did in the last full one, within this share, does not run the others; 0 for none. Not with `reuse`.
            keep: mean share of the tokens to keep, between what the model was trained to keep and 1.
            image: picture to start from, as `moddit.pictures.open_edit` takes it; without height and width what is
                drawn has about the model's size in its aspect ratio.
            mask: what of the image to draw anew, likewise; the rest of the result is the image, pixel by pixel.
            strength: share of the steps to take of an edit, the last ones: small ones stay near the image. By default
                0.8, with a mask 1.
            padding_mask_crop: draw a square around what the mask marks alone, with so many pixels around it.
            routes: count which tokens are kept (`Picture.routes`).
            on_stage: called after every stage has been computed.

        Raises:
            InputError: a request that this model cannot fulfil; raised before anything is computed.
            ModditError: the model gave values that are not finite, or MLX could not compute.
        """
        spec = self.bundle.spec
        edit = open_edit(spec, image, mask, height=height, width=width, padding_mask_crop=padding_mask_crop)
        first = Request.complete(
            spec,
            prompt,
            negative_prompt=negative_prompt,
            steps=steps,
            guidance_scale=guidance_scale,
            height=height,
            width=width,
            sampler=sampler,
            resolution_binning=resolution_binning,
            vae_tile_size=choose_tile(vae_tiling, vae_tile_size, None),
            label=None if label is None else spec.number(label),
            reuse=reuse,
            cache=cache,
            keep=keep,
            edit=edit,
            strength=strength,
        )
        requests = [replace(first, seed=number) for number in spread_seeds(seed, num_images)]
        run = self.run(requests, edit, routes=routes, on_stage=on_stage)
        return Result(tuple(run), run.costs, peak_rss_bytes())

    def run(
        self,
        requests: Sequence[Request],
        edit: Edit | None = None,
        *,
        routes: bool = False,
        on_stage: Callable[[Stage], None] | None = None,
    ) -> Generation:
        """Begin to generate a picture for each request, all of which were completed with the edit; otherwise as
        `generate`.
        """
        return Generation(self, requests, edit, self.stages(requests, edit, routes=routes), on_stage)

    def stages(
        self, requests: Sequence[Request], edit: Edit | None = None, *, routes: bool = False
    ) -> Generator[Stage, None, None]:
        """Yield the stages of a run in order, each before its arrays are evaluated (see `Models.stages`)."""
        return self._models.stages(requests, edit, routes=routes)


class Generation:
    """Evaluate and measure the stages of a run; iterating yields each picture when it is finished.

    While the device computes a step, Python builds the graph of the next; only where memory is short it waits, and with
    a first-block cache, which looks at the first block of a step before it builds the rest. The next is submitted when
    the step is done, not before: MLX submits no more than ten command buffers ahead (`MAX_ACTIVE_TASKS` in its
    transforms.cpp), so that submitting a step takes until it is nearly computed, and what is awaited then would be told
    as the time of the step before.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        requests: Sequence[Request],
        edit: Edit | None,
        stages: Generator[Stage, None, None],
        on_stage: Callable[[Stage], None] | None,
    ):
        self._pipeline = pipeline
        self._requests = requests
        self._edit = edit
        self._stages = stages
        self._on_stage = on_stage
        self._meter = Meter()
        self._waiting: Step | None = None
        self._step_seconds: list[float] = []
        self._routes: RouteCounter | None = None

    @property
    def costs(self) -> tuple[StageCost, ...]:
        """What the stages cost up to now; what the caller does between two pictures is not counted."""
        return self._meter.costs

    @property
    def laps(self) -> tuple[StageCost, ...]:
        """The same for every stage that has run, in order: one for each call of `on_stage`."""
        return tuple(self._meter.laps)

    def __iter__(self) -> Iterator[Picture]:
        self._meter.begin()
        try:
            for stage in self._stages:
                self._take(stage)
                if isinstance(stage, Decoded):
                    yield self._collect(stage)
                    self._meter.begin()
        except RuntimeError as error:
            raise ModditError(
                f"[pipeline] MLX could not compute: {error}; a smaller picture or low_ram needs less memory"
            ) from error
        finally:
            self._stages.close()

    def _take(self, stage: Stage) -> None:
        """Compute a stage, or begin to."""
        if self._waiting is not None:
            self._finish(self._waiting)
        self._waiting = stage if isinstance(stage, Step) and self._overlaps(stage) else None
        if self._waiting is not None:
            mx.async_eval(stage.arrays)
        else:
            self._finish(stage)

    def _overlaps(self, step: Step) -> bool:
        """Say whether the next step may be built while this one is computed."""
        return not (step.is_last or self._pipeline.low_ram or self._requests[step.picture].cache is not None)

    def _finish(self, stage: Stage) -> None:
        mx.eval(stage.arrays)
        seconds = self._meter.lap(LAP_NAMES[type(stage)])
        if isinstance(stage, Step):
            self._step_seconds += [seconds] if stage.is_full else []
            self._count(stage)
        if self._on_stage is not None:
            self._on_stage(stage)

    def _count(self, step: Step) -> None:
        if not step.kept:
            return
        plan, patch = self._pipeline.bundle.policy.plan, self._pipeline.bundle.spec.transformer.patch_size
        if self._routes is None:
            _, height, width, _ = step.latents.shape
            self._routes = RouteCounter(plan, height // patch, width // patch)
        self._routes.add(step.region, [np.array(layer) for layer in step.kept])

    def _collect(self, stage: Decoded) -> Picture:
        request = self._requests[stage.picture]
        if not stage.is_finite.item():
            bundle, dtype = self._pipeline.bundle, self._pipeline.dtype
            verify_files(bundle.folder, bundle.manifest, hashes=True)  # a damaged file is the first thing to think of
            advice = "" if dtype == "float32" else f"; try dtype float32 (now {dtype})"
            raise ModditError(f"[pipeline] the picture of seed {request.seed} has values that are not finite{advice}")
        routes = self._routes.result() if self._routes is not None else ()
        pixels, profile = np.array(stage.pixels), None
        if self._edit is not None:
            pixels, profile = finish_edit(self._edit, pixels), self._edit.profile
        picture = Picture(request, pixels, tuple(self._step_seconds), routes, profile)
        self._step_seconds, self._routes = [], None
        return picture


def spread_seeds(seed: int | Sequence[int], num_images: int) -> tuple[int, ...]:
    """List the seeds of `num_images` pictures for each first seed; raise ValueRangeError for none, or too many."""
    first = list(seed) if isinstance(seed, Sequence) else [seed]
    if num_images * len(first) > PICTURES:
        raise ValueRangeError(
            f"[pipeline] got {num_images} images of {len(first)} seeds, want at most {PICTURES} pictures"
        )
    if num_images < 1 or not first:
        raise ValueRangeError(f"[pipeline] nothing to generate, got {num_images} images of {len(first)} seeds")
    return tuple(int(number) + offset for number in first for offset in range(num_images))


def default_dtype() -> str:
    """Name the dtype to compute in where the user names none: the stored one, on a CPU float32."""
    return "float32" if mx.default_device() == mx.cpu else STORED
