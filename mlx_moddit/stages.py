"""A generation as a generator of stages, each yielded before it is computed.

The stages hold lazy arrays: whoever iterates decides when to evaluate them, what to show and what to forget. Components
are opened when a stage needs them, and dropped after it where memory is short.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_moddit.estimate import Compute, choose_strip_bytes
from mlx_moddit.layers import has_bfloat16
from mlx_moddit.load import Bundle
from mlx_moddit.memory import memory_limits
from mlx_moddit.t5 import T5Encoder
from mlx_moddit.tokens import TokenRun
from mlx_moddit.transformer import Conditions, Transformer
from mlx_moddit.vae import AutoencoderKL
from moddit.bins import resize_and_crop
from moddit.checkpoint.prompt_tokenizer import PromptTokenizer
from moddit.conditioning import Label, Text
from moddit.contract import TEXT_ENCODER
from moddit.edits import Edit
from moddit.errors import UnsupportedError
from moddit.noise import NoiseStream
from moddit.request import Request
from moddit.samplers import SamplerStep, SamplerTable
from moddit.sampling import denoise, guide, is_guided

Arrays = tuple[mx.array, ...]


@dataclass(frozen=True)
class Loaded:
    """A component was opened; evaluating `arrays` reads its weights, otherwise their first use does."""

    arrays: Arrays
    component: str


@dataclass(frozen=True)
class Encoded:
    """What a picture is conditioned on, encoded."""

    arrays: Arrays  # per row of the batch: states of a text (L, d_model)
    tokens: tuple[int, ...]  # number of tokens of each text


@dataclass(frozen=True)
class EncodedImage:
    """The image that an edit starts from, encoded."""

    # mean and deviation of its latents (1, h, w, C) float32; of the masked one, too, for a model that inpaints
    arrays: Arrays


@dataclass(frozen=True)
class Prepared:
    """What all steps of a picture share is computed."""

    arrays: Arrays


@dataclass(frozen=True)
class Step:
    """One denoising step."""

    arrays: Arrays
    picture: int  # index into the requests
    index: int
    total: int
    timestep: float
    latents: mx.array  # (1, h, w, C) float32, after the step
    denoised: mx.array  # (1, h, w, C) float32, the clean latents that the model expects
    region: int  # of the timestep
    is_reused: bool  # the model was not asked
    is_cached: bool  # the first block alone ran
    kept: Arrays  # of every layer that ran and ranks its tokens (B, K); empty unless asked for

    @property
    def is_last(self) -> bool:
        return self.index == self.total - 1

    @property
    def is_full(self) -> bool:
        """Whether all blocks ran."""
        return not (self.is_reused or self.is_cached)


@dataclass(frozen=True)
class Decoded:
    """A picture."""

    arrays: Arrays
    picture: int  # index into the requests
    pixels: mx.array  # (H, W, 3) uint8
    is_finite: mx.array  # (), whether no value on the way became infinite or NaN


Stage = Loaded | Encoded | EncodedImage | Prepared | Step | Decoded


class Models:
    """The components of a model in memory, and the stages of generations with them.

    Components stay in memory for the next generation, unless `low_ram`: then one at a time is in memory, and of the
    text encoder about one block.
    """

    def __init__(self, bundle: Bundle, *, low_ram: bool):
        self.bundle = bundle
        self.low_ram = low_ram
        self._tokenizer: PromptTokenizer | None = None
        self.loaded: dict[str, nn.Module] = {}  # by component

    def stages(
        self, requests: Sequence[Request], edit: Edit | None = None, *, routes: bool = False
    ) -> Generator[Stage, None, None]:
        """Yield the stages of a run in order, each before its arrays are evaluated.

        Per picture: Loaded for every component that is not in memory, Encoded (of texts), EncodedImage (of an edit) and
        Prepared if the picture before it did not share them, Step for every step, Decoded. A step's arrays depend on
        those of the step before, so a caller evaluates `stage.arrays` once per stage. Only what is encoded or decoded
        in strips or tiles is computed before its stage. With `routes` every Step has the kept tokens. The requests were
        completed with the edit, if there is one.

        Raises:
            InputError: at once, if the model cannot fulfil one of the requests.
        """
        if routes and not self.bundle.policy.has_routers:
            raise UnsupportedError(f"[pipeline] {self.bundle.folder}: the model is dense, it has no routes to show")
        for item in requests:
            item.check(self.bundle.spec)
            item.table(self.bundle.spec)
            item.check_edit(self.bundle.spec, edit)
            self.bundle.policy.keeping(item.keep)
        return self._stages(requests, edit, routes)

    def _stages(self, requests: Sequence[Request], edit: Edit | None, routes: bool) -> Generator[Stage, None, None]:
        encode = CONDITIONINGS[self.bundle.spec.conditioning.KIND]
        with memory_limits(low_ram=self.low_ram):
            told: tuple[Any, ...] = ()
            context: Arrays = ()
            shared: Request | None = None
            conditions: Conditions | None = None
            posterior: Arrays = ()
            for picture, item in enumerate(requests):
                rows = item.rows(self.bundle.spec)
                if rows != told:
                    told, context = rows, (yield from encode(self, rows))
                # Pictures that differ in nothing but their seeds share everything but the noise.
                if shared != replace(item, seed=0):
                    shared, conditions = replace(item, seed=0), None
                if edit is not None and not posterior:
                    posterior = yield from self._encode_image(edit, self._strip_bytes(item))
                start = self._start(item, edit, posterior)
                latents, conditions = yield from self._denoise(picture, item, context, conditions, start, routes)
                yield from self._decode(picture, item, latents)

    def encode_texts(self, texts: tuple[str, ...]) -> Generator[Stage, None, Arrays]:
        """Encode the texts of one picture in one batch, which therefore depends on nothing but its request."""
        if self._tokenizer is None:
            self._tokenizer = self.bundle.tokenizer()
        ids = [self._tokenizer.encode(text) for text in texts]
        lengths = [len(row) for row in ids]
        longest = max(lengths)
        padded = mx.array([row + [0] * (longest - len(row)) for row in ids])
        mask = None if min(lengths) == longest else mx.arange(longest) < mx.array(lengths)[:, None]
        model: T5Encoder = yield from self._model(TEXT_ENCODER, self.bundle.text_encoder, is_streamed=self.low_ram)
        states = model(padded, mask, release=self.low_ram)
        del model
        rows = tuple(states[index, :length] for index, length in enumerate(lengths))
        yield Encoded(rows, tuple(lengths))
        self._free(rows)
        return rows

    def _encode_image(self, edit: Edit, strip_bytes: int | None) -> Generator[Stage, None, Arrays]:
        """Encode the image of an edit, which all pictures of a run share."""
        model: AutoencoderKL = yield from self._model("vae", self.bundle.vae, part="encoder")
        posterior: Arrays = model.encode(mx.array(edit.pixels()), strip_bytes=strip_bytes)
        if self.bundle.spec.transformer.inpaints:
            posterior = (*posterior, *model.encode(mx.array(edit.masked_pixels()), strip_bytes=strip_bytes))
        del model
        yield EncodedImage(posterior)
        self._free(posterior)
        return posterior

    def _denoise(
        self,
        picture: int,
        request: Request,
        context: Arrays,
        conditions: Conditions | None,
        start: Start,
        routes: bool,
    ) -> Generator[Stage, None, tuple[mx.array, Conditions]]:
        spec, plan = self.bundle.spec, self.bundle.policy.plan
        table = request.table(spec)
        model: Transformer = yield from self._model("transformer", self.bundle.transformer)
        if conditions is None:
            conditions = self._prepare(model, request, context, table)
            yield Prepared(tuple(conditions.arrays()))
        kept: list[mx.array] = []
        watch = (lambda _, __, chosen: kept.append(chosen)) if routes else None
        run = conditions.start(on_block=watch, cache=request.cache)
        predict = partial(_predict, model, conditions, run, request.guidance_scale, start.shown)
        for done in denoise(table, start.noise, predict, start.image, start.mask):
            latents, timestep = done.latents, done.step.timestep
            arrays, total, region = (latents, *kept, *run.remembered), len(table.steps), plan.region(timestep)
            yield Step(
                arrays,
                picture,
                done.index,
                total,
                timestep,
                latents,
                done.clean,
                region,
                done.step.is_reused,
                run.is_cached,
                tuple(kept),
            )
            kept.clear()
        del model, predict, run
        self._free((latents,))
        return latents, conditions

    def _decode(self, picture: int, request: Request, latents: mx.array) -> Generator[Stage, None, None]:
        model: AutoencoderKL = yield from self._model("vae", self.bundle.vae, part="decoder")
        tile = request.vae_tile_size
        image = model.decode(
            latents,
            tile=None if tile is None else tile // self.bundle.spec.vae.downscale,
            strip_bytes=self._strip_bytes(request),
        )[0]
        del model
        if request.resolution_binning:
            image = resize(image, request.height, request.width)
        pixels = mx.round(mx.clip(image / 2 + 0.5, 0, 1) * 255).astype(mx.uint8)
        is_finite = mx.all(mx.isfinite(image))
        yield Decoded((pixels, is_finite), picture, pixels, is_finite)
        self._free((pixels,))

    def _strip_bytes(self, request: Request) -> int | None:
        compute = Compute(mx.default_device() != mx.cpu, self.bundle.dtype_name, has_bfloat16())
        size = request.generated_size(self.bundle.spec)
        return choose_strip_bytes(self.bundle.manifest, compute, size, low_ram=self.low_ram)

    def _model(
        self, name: str, build: Callable[[], Any], *, part: str | None = None, is_streamed: bool = False
    ) -> Generator[Stage, None, Any]:
        """Give a component that is in memory, or build it.

        Of one that is used in parts, only the part is read; what is streamed reads its weights while it runs.
        """
        if name in self.loaded:
            return self.loaded[name]
        model = build()
        read = model if part is None else model[part]
        yield Loaded(() if is_streamed else tuple(dict(tree_flatten(read.parameters())).values()), name)
        if not self.low_ram:
            self.loaded[name] = model
        return model

    def _free(self, results: Arrays) -> None:
        """Give the memory of a component that was just dropped back, once nothing waits for its weights any more."""
        if self.low_ram:
            mx.eval(results)
            mx.clear_cache()

    def _prepare(self, model: Transformer, request: Request, context: Arrays, table: SamplerTable) -> Conditions:
        downscale = self.bundle.spec.vae.downscale
        height, width = request.generated_size(self.bundle.spec)
        sizes = self.bundle.spec.transformer.size_features(height, width)
        conditions = model.prepare(context, table.timesteps, height // downscale, width // downscale, sizes=sizes)
        return replace(conditions, policy=self.bundle.policy.keeping(request.keep))

    def _start(self, request: Request, edit: Edit | None, posterior: Arrays) -> Start:
        """Draw the noise that a picture begins with: before it that of the VAE's sample of an image, and after it that
        of the masked one, for a model that inpaints.
        """
        spec, stream = self.bundle.spec, NoiseStream(request.seed)
        sides = (side // spec.vae.downscale for side in request.generated_size(spec))
        shape = (1, spec.transformer.latent_channels, *sides)
        if edit is None:
            return Start(_draw(stream, shape))
        mean, deviation, *masked = posterior
        image, noise = mean + deviation * _draw(stream, shape), _draw(stream, shape)
        marks = edit.latent_mask(spec.vae.downscale)
        if marks is None:
            return Start(noise, image)
        mask = mx.array(marks)
        if not masked:
            return Start(noise, image, mask)
        mean, deviation = masked
        shown = mx.concatenate([mask, mean + deviation * _draw(stream, shape)], axis=-1)
        return Start(noise, image, mask, shown)


@dataclass(frozen=True)
class Start:
    """What the denoising of a picture starts from."""

    noise: mx.array  # (1, h, w, C) float32
    image: mx.array | None = None  # alike, clean latents
    mask: mx.array | None = None  # (1, h, w, 1), 1 where latents are drawn anew
    shown: mx.array | None = None  # (1, h, w, 1 + C), the mask and clean latents of the masked image


def _draw(stream: NoiseStream, shape: Sequence[int]) -> mx.array:
    """Draw PyTorch's noise, which is NCHW. Shapes: -> (1, h, w, C) float32."""
    return mx.array(stream.normal(shape).transpose(0, 2, 3, 1))


def _encode_labels(_: Models, numbers: tuple[int, ...]) -> Generator[Stage, None, Arrays]:
    """Take the numbers of classes as they are; what they mean is in the transformer."""
    yield from ()
    return tuple(mx.array(number, mx.int32) for number in numbers)


CONDITIONINGS: Final[Mapping[str, Callable[[Models, Any], Generator[Stage, None, Arrays]]]] = {
    Text.KIND: Models.encode_texts,
    Label.KIND: _encode_labels,
}


def resize(image: mx.array, height: int, width: int) -> mx.array:
    """Scale a picture until it covers a size, and crop the middle (see `moddit.bins`).

    Shapes: image (H, W, C) float -> (height, width, C)
    """
    rows, columns = resize_and_crop((image.shape[0], image.shape[1]), (height, width))
    for axis, taps in enumerate((rows, columns)):
        weight = mx.array(taps.weight).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        lower, upper = (mx.take(image, mx.array(index), axis=axis) for index in (taps.lower, taps.upper))
        image = lower * (1 - weight) + upper * weight
    return image


def _predict(
    model: Transformer,
    conditions: Conditions,
    run: TokenRun,
    scale: float,
    shown: mx.array | None,
    index: int,
    _: SamplerStep,
    x: mx.array,
) -> mx.array:
    """Predict a step, with classifier-free guidance if the scale asks for it, without the learned variance.

    Shapes: x (1, h, w, C) -> (1, h, w, C) float32
    """
    rows = 2 if is_guided(scale) else 1
    x = x if shown is None else mx.concatenate([x, shown], axis=-1)
    output = model(mx.concatenate([x] * rows), index, conditions, run)
    return guide(list(mx.split(output, rows)), scale)[..., : model.spec.latent_channels]
