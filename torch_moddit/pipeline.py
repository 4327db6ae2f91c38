"""The reference pipeline, the truth for parity: the routed transformer between a text encoder and a VAE of their own
libraries, in the one loop of all backends (`moddit.sampling`).

Tests hold dense pictures to those of diffusers' own pipelines, loop and scheduler, with `clean_caption=False`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import diffusers
import numpy as np
import torch
import transformers
from diffusers.image_processor import PixArtImageProcessor
from numpy.typing import NDArray
from torch import Tensor

from moddit.cache import FirstBlockCache
from moddit.checkpoint.description import describe
from moddit.checkpoint.sources import WEIGHTED, Sources, as_sources
from moddit.contract import TEXT_ENCODER
from moddit.edits import Edit
from moddit.errors import FormatError, UnsupportedError
from moddit.pictures import ImageLike, finish_edit, open_edit
from moddit.record import escape
from moddit.request import Request
from moddit.samplers import NoiseSchedule
from moddit.sampling import Denoised, denoise, guide
from moddit.spec import ModelSpec
from torch_moddit.conditioning import Components, encode_rows
from torch_moddit.loading import load_checkpoint
from torch_moddit.model import BlockTrace, Context, RoutedTransformer
from torch_moddit.tokens import follow_plan, relative_change

# Classes of the components of a checkpoint without an index.
_USUAL: Final[Mapping[str, tuple[str, str]]] = {
    "tokenizer": ("transformers", "T5Tokenizer"),
    TEXT_ENCODER: ("transformers", "T5EncoderModel"),
    "vae": ("diffusers", "AutoencoderKL"),
}

OnBlock = Callable[[int, BlockTrace], None]  # step, what the block did to [negative, positive]
OnStep = Callable[[Denoised[Tensor]], None]  # latents (1, C, h, w)


class ReferencePipeline:
    """A pipeline in PyTorch, dense or routed; its components are "vae" and what the conditioning has."""

    def __init__(self, spec: ModelSpec, model: RoutedTransformer, components: Components) -> None:
        self.spec = spec
        self.model = model
        self.components = components

    @classmethod
    def load(
        cls, source: Path | Sources, *, dtype: torch.dtype = torch.float32, device: str = "cpu"
    ) -> ReferencePipeline:
        """Load every component of a checkpoint, the transformer as `load_checkpoint`, the others by their libraries.

        Raises InputError if a component is absent, damaged, or not of a pipeline that is implemented.
        """
        sources = as_sources(source)
        spec = describe(sources).spec  # the libraries check less, and say less of what they do not read
        model = load_checkpoint(sources, dtype=dtype).to(device)
        components = load_components(sources, spec, dtype)
        for part in components.values():
            if isinstance(part, torch.nn.Module):
                part.to(device)
        return cls(spec, model, components)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """That of the latents."""
        return next(self.model.parameters()).dtype

    def request(
        self,
        prompt: str = "",
        negative_prompt: str = "",
        *,
        label: int | str | None = None,
        **settings: Any,
    ) -> Request:
        """Complete a request by what the model has; raises as `Request.complete` and `ModelSpec.number`."""
        number = None if label is None else self.spec.number(label)
        return Request.complete(self.spec, prompt, negative_prompt=negative_prompt, label=number, **settings)

    def generate(
        self,
        prompt: str = "",
        negative_prompt: str = "",
        *,
        on_block: OnBlock | None = None,
        on_step: OnStep | None = None,
        image: ImageLike | None = None,
        mask: ImageLike | None = None,
        padding_mask_crop: int | None = None,
        **settings: Any,
    ) -> NDArray[np.float32]:
        """Generate a picture; the settings are a label, a strength, and those of `Request.complete`.

        Without guidance, the negative prompt is without effect. `on_block` is called after each block of each step,
        `on_step` after each step. An image, with a mask or without, is edited as by `mlx_moddit`.

        Shapes:
            -> (height, width, 3), 0..1; with a mask the size of the image, unless another is asked for

        Raises InputError as `request` and `TokenPolicy.keeping`, and UnsupportedError for a size that diffusers'
        resizing loses.
        """
        size = {name: settings.get(name) for name in ("height", "width")}
        edit = open_edit(self.spec, image, mask, **size, padding_mask_crop=padding_mask_crop)
        request = self.request(prompt, negative_prompt, edit=edit, **settings)
        return self.draw(request, edit, on_block=on_block, on_step=on_step)

    def draw(
        self,
        request: Request,
        edit: Edit | None = None,
        *,
        on_block: OnBlock | None = None,
        on_step: OnStep | None = None,
    ) -> NDArray[np.float32]:
        """Generate the picture of a request, which was completed with the edit; otherwise as `generate`."""
        for done in self.denoise(request, edit, on_block=on_block):
            if on_step is not None:
                on_step(done)
        picture = self.decode(request, done.latents)
        if edit is None or edit.mask is None:
            return picture
        return finish_edit(edit, np.round(picture * 255).astype(np.uint8)).astype(np.float32) / np.float32(255)

    @torch.no_grad()
    def denoise(
        self, request: Request, edit: Edit | None = None, *, on_block: OnBlock | None = None
    ) -> Iterator[Denoised[Tensor]]:
        """Take the steps of a request; arguments as `draw`."""
        spec = self.spec
        request.check_edit(spec, edit)
        routing = follow_plan(self.model.policy.keeping(request.keep).plan)
        height, width = request.generated_size(spec)
        rows = request.rows(spec)
        sizes = spec.transformer.size_features(height, width)
        told = {name: torch.tensor([values] * len(rows), device=self.device) for name, values in sizes.items()}
        context = {**self.encode(rows), **told}
        shape = (1, spec.transformer.latent_channels, height // spec.vae.downscale, width // spec.vae.downscale)
        generator = torch.Generator("cpu").manual_seed(request.seed)
        image = None if edit is None else self._encode_image(edit.pixels(), generator)
        noise = torch.randn(shape, generator=generator).to(self.device, self.dtype)
        mask = None if edit is None else self._take_mask(edit)
        shown = [self._show(edit, generator)] if edit is not None and spec.transformer.inpaints else []
        cache = None if request.cache is None else FirstBlockCache(request.cache, relative_change)

        def predict(index: int, step: Any, latents: Tensor) -> Tensor:
            watch = None if on_block is None else lambda trace: on_block(index, trace)
            timestep = torch.full((len(rows),), step.timestep, device=self.device)
            batch = torch.cat([latents, *shown], dim=1).expand(len(rows), -1, -1, -1)
            output = self.model(batch, timestep, context, routing=routing, on_block=watch, cache=cache)
            return guide(output.split(1), request.guidance_scale)[:, : shape[1]]

        yield from denoise(request.table(spec), noise, predict, image, mask)

    def _encode_image(self, image: NDArray[np.float32], generator: torch.Generator) -> Tensor:
        """Sample the latents of an image. Shapes: (1, H, W, 3), -1..1 -> (1, C, h, w)."""
        vae = self.components["vae"]
        pixels = torch.from_numpy(image).permute(0, 3, 1, 2).to(self.device, vae.dtype)
        latents: Tensor = vae.encode(pixels).latent_dist.sample(generator) * self.spec.vae.scaling_factor
        return latents.to(self.dtype)

    def _take_mask(self, edit: Edit) -> Tensor | None:
        """Give the mask of an edit in latents. Shapes: -> (1, 1, h, w)."""
        mask = edit.latent_mask(self.spec.vae.downscale)
        return None if mask is None else torch.from_numpy(mask).permute(0, 3, 1, 2).to(self.device, self.dtype)

    def _show(self, edit: Edit, generator: torch.Generator) -> Tensor:
        """Make what a model that inpaints reads beside the noisy latents: the mask and the latents of the masked image.

        Shapes: -> (1, 1 + C, h, w)
        """
        mask = self._take_mask(edit)
        assert mask is not None
        return torch.cat([mask, self._encode_image(edit.masked_pixels(), generator)], dim=1)

    def encode(self, rows: tuple[Any, ...]) -> Context:
        """Turn what the rows of a batch are conditioned on (`Request.rows`) into the model's context."""
        return encode_rows(self.spec, self.components, rows, self.device)

    @torch.no_grad()
    def decode(self, request: Request, latents: Tensor) -> NDArray[np.float32]:
        """Turn latents into a picture of the size that is wanted. Shapes: latents (1, C, h, w) -> (H, W, 3), 0..1."""
        image = self.components["vae"].decode(latents / self.spec.vae.scaling_factor).sample
        if request.resolution_binning:
            image = PixArtImageProcessor.resize_and_crop_tensor(image, request.width, request.height)
        picture: NDArray[np.float32] = (image[0].float() / 2 + 0.5).clamp(0, 1).permute(1, 2, 0).cpu().numpy()
        if picture.shape[:2] != (request.height, request.width):
            raise UnsupportedError(
                f"[pipeline] diffusers resized the picture to {picture.shape[:2]}, want "
                f"{(request.height, request.width)}; it loses a pixel to rounding at this size, choose another"
            )
        return picture


def read_schedule(scheduler: Any) -> NoiseSchedule:
    """Read the noise levels and prediction type of a diffusers scheduler; raises UnsupportedError."""
    return NoiseSchedule.from_diffusers({"_class_name": type(scheduler).__name__, **scheduler.config}, "scheduler")


def load_components(sources: Sources, spec: ModelSpec, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Load what a model has beside its transformer, by name; raises as `load_component`."""
    return {name: load_component(sources, name, dtype) for name in spec.components if name != "transformer"}


def load_component(sources: Sources, name: str, dtype: torch.dtype | str = torch.float32) -> Any:
    """Load one component with the class that the index of its pipeline names, or else the usual one.

    Args:
        sources: of the checkpoint.
        name: of the component.
        dtype: of its weights; "auto" for that of its file, where transformers loads it.

    Raises:
        UnsupportedError: the class is of another library.
        FormatError: the library cannot load it.
        MissingError: it is not there.
    """
    folder, variant = sources.component(name), sources.variant
    library_name, class_name = sources.entry(name) or _USUAL[name]
    library = {"diffusers": diffusers, "transformers": transformers}.get(library_name)
    if library is None or not hasattr(library, class_name):
        raise UnsupportedError(
            f"[pipeline] {folder}: a {library_name}.{class_name}, as the index says, want diffusers or transformers"
        )
    part: Any = getattr(library, class_name)
    arguments: dict[str, Any] = {}
    if name in WEIGHTED:
        has_variant = variant is not None and any(f".{variant}" in file.name for file in folder.iterdir())
        key = "dtype" if library is transformers else "torch_dtype"
        arguments = {"variant": variant if has_variant else None, key: dtype}
    try:
        return part.from_pretrained(folder, **arguments)
    except Exception as error:  # noqa: BLE001 # whatever the libraries do not check before they use it
        files = ", ".join(sorted(file.name for file in folder.iterdir()))
        raise FormatError(
            f"[pipeline] {folder}: {library_name}'s {class_name} cannot load {files} "
            f"({type(error).__name__}: {escape(' '.join(str(error).split()))}); save or download it again"
        ) from None
