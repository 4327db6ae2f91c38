"""The reference pipeline: diffusers' own PixArt pipeline around the routed transformer, the truth for parity.

Nothing of the sampling loop is written here. For a dense checkpoint every operation is that of `PixArtSigmaPipeline` or
`PixArtAlphaPipeline` with `clean_caption=False` and, unless asked for, `use_resolution_binning=False`, and so are the
pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import diffusers
import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from torch import Tensor, nn

from moddit.bins import bin_size
from moddit.checkpoint.description import describe
from moddit.checkpoint.sources import INDEX, SEQUENCE_LENGTHS, WEIGHTED, Sources, as_sources
from moddit.checkpoint.weights import read_json, read_optional_json
from moddit.errors import FormatError, MissingError, UnsupportedError
from moddit.record import escape
from moddit.samplers import NoiseSchedule
from torch_moddit.loading import load_checkpoint
from torch_moddit.model import BlockTrace, RoutedPixArt

# Classes of the components of a checkpoint without an index.
_USUAL: Final[Mapping[str, tuple[str, str]]] = {
    "tokenizer": ("transformers", "T5Tokenizer"),
    "text_encoder": ("transformers", "T5EncoderModel"),
    "vae": ("diffusers", "AutoencoderKL"),
}
_SCHEDULERS: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = {
    "dpmpp-2m": ("DPMSolverMultistepScheduler", {}),
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "euler": ("EulerDiscreteScheduler", {}),
}

Record = Callable[[int, BlockTrace], None]  # step, what the block did to [negative, positive]
OnStep = Callable[[int, float, Tensor], None]  # step, timestep, latents (B, C, H, W) after it


class ReferencePipeline:
    """A text-to-image pipeline in PyTorch, from a dense or routed diffusers folder.

    Args:
        pipeline: diffusers pipeline whose transformer is replaced by `model`.
        model: the transformer.
        max_sequence_length: longest caption in tokens, </s> included; by default the pipeline's own limit.
    """

    def __init__(self, pipeline: Any, model: RoutedPixArt, max_sequence_length: int | None = None) -> None:
        self.pipeline = pipeline
        self.model = model
        self.max_sequence_length = max_sequence_length or SEQUENCE_LENGTHS[type(pipeline).__name__]
        self._adapter = _Adapter(model)
        pipeline.register_modules(transformer=self._adapter)
        pipeline.set_progress_bar_config(disable=True)

    @classmethod
    def load(
        cls, source: Path | Sources, *, dtype: torch.dtype = torch.float32, device: str = "cpu"
    ) -> ReferencePipeline:
        """Load every component of a checkpoint, the transformer as `load_checkpoint`, the others by their libraries.

        Args:
            source: a pipeline folder, or all places of a checkpoint.
            dtype: of the weights.
            device: to put them on.

        Raises:
            InputError: a component is absent, damaged, or not of a PixArt pipeline.
        """
        sources = as_sources(source)
        describe(sources)  # the libraries check less, and say less of what they do not read
        model = load_checkpoint(sources, dtype=dtype).to(device)
        names = ("tokenizer", "text_encoder", "vae", "scheduler")
        parts = {name: _load_part(sources.component(name), sources.variant, dtype) for name in names}
        pipeline = getattr(diffusers, sources.pipeline_class())(transformer=_Adapter(model), **parts)
        return cls(pipeline.to(device), model, sources.max_sequence_length)

    @property
    def default_side(self) -> int:
        """Side of the square picture the model was trained on, pixels."""
        return int(self.model.spec.sample_size * self.pipeline.vae_scale_factor)

    @property
    def schedule(self) -> NoiseSchedule:
        """Noise levels and prediction type."""
        return read_schedule(self.pipeline.scheduler)

    @torch.no_grad()
    def generate(
        self,
        prompt: str,
        negative_prompt: str = "",
        *,
        seed: int = 0,
        steps: int = 20,
        guidance_scale: float = 4.5,
        sampler: str | None = None,
        height: int | None = None,
        width: int | None = None,
        resolution_binning: bool = False,
        latents: Tensor | None = None,
        record: Record | None = None,
        on_step: OnStep | None = None,
    ) -> NDArray[np.float32]:
        """Generate a picture.

        Args:
            prompt: what to draw.
            negative_prompt: what to avoid; without effect if `guidance_scale` is at most 1.
            seed: of the noise, as `torch.Generator("cpu").manual_seed(seed)`.
            steps: model evaluations.
            guidance_scale: of classifier-free guidance; at most 1 for none.
            sampler: "dpmpp-2m", "ddim" or "euler"; the checkpoint's own scheduler by default.
            height: pixels; by default the size the model was trained at.
            width: likewise.
            resolution_binning: generate at the nearest size PixArt was trained at, then resize and crop to height and
                width (diffusers' `use_resolution_binning`).
            latents: noise to start from, (1, C, H / f, W / f) of the size to generate at, instead of the seed's.
            record: called after each block of each step.
            on_step: called after each step.

        Shapes:
            -> (height, width, 3), 0..1

        Raises:
            UnsupportedError: an unknown sampler, resolution binning for a model without a table of sizes, or a size
                that diffusers' resizing loses.
        """
        wanted = (height or self.default_side, width or self.default_side)
        if resolution_binning:
            bin_size(self.model.spec.sample_size, self.default_side, *wanted)
        pipeline = self.pipeline
        original = pipeline.scheduler
        if sampler is not None:
            pipeline.register_modules(scheduler=make_scheduler(read_schedule(original), sampler))
        self._adapter.start(record)
        try:
            pictures = pipeline(
                prompt,
                negative_prompt=negative_prompt,
                num_inference_steps=steps,
                guidance_scale=guidance_scale,
                height=height,
                width=width,
                latents=latents,
                generator=torch.Generator("cpu").manual_seed(seed),
                output_type="np",
                callback=None if on_step is None else lambda step, t, x: on_step(step, float(t), x),
                callback_steps=1,
                clean_caption=False,
                use_resolution_binning=resolution_binning,
                max_sequence_length=self.max_sequence_length,
            ).images
        finally:
            pipeline.register_modules(scheduler=original)
            self._adapter.start(None)
        picture: NDArray[np.float32] = pictures[0]
        if resolution_binning and picture.shape[:2] != wanted:
            raise UnsupportedError(
                f"[pipeline] diffusers resized the picture to {picture.shape[:2]}, want {wanted}; it loses a pixel to "
                "rounding at this size, choose another"
            )
        return picture


def make_scheduler(schedule: NoiseSchedule, sampler: str) -> Any:
    """Make a diffusers scheduler of the given noise levels and timestep spacing.

    Raises:
        UnsupportedError: an unknown sampler.
    """
    if sampler not in _SCHEDULERS:
        raise UnsupportedError(f"[pipeline] sampler {sampler!r} is not implemented, want one of {sorted(_SCHEDULERS)}")
    name, arguments = _SCHEDULERS[sampler]
    arguments = dict(arguments)
    if sampler == "ddim":
        arguments["set_alpha_to_one"] = schedule.set_alpha_to_one
    return getattr(diffusers, name)(
        num_train_timesteps=schedule.num_train_timesteps,
        beta_start=schedule.beta_start,
        beta_end=schedule.beta_end,
        beta_schedule=schedule.beta_schedule,
        prediction_type=schedule.prediction_type,
        timestep_spacing=schedule.timestep_spacing,
        steps_offset=schedule.steps_offset,
        **arguments,
    )


def read_schedule(scheduler: Any) -> NoiseSchedule:
    """Read the noise levels and prediction type of a diffusers scheduler.

    Raises:
        UnsupportedError: a scheduler that is not implemented.
    """
    return NoiseSchedule.from_diffusers({"_class_name": type(scheduler).__name__, **scheduler.config}, "scheduler")


class _Adapter(nn.Module):
    """Give a RoutedPixArt the face of a PixArtTransformer2DModel, as far as the pipelines look at it."""

    def __init__(self, model: RoutedPixArt) -> None:
        super().__init__()
        self.model = model
        self.start(None)

    @property
    def config(self) -> Any:
        return self.model.transformer.config

    @property
    def dtype(self) -> torch.dtype:
        return next(self.model.parameters()).dtype

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def start(self, record: Record | None) -> None:
        """Begin a new run at step 0."""
        self.record = record
        self.step = 0

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        timestep: Tensor,
        added_cond_kwargs: Mapping[str, Tensor | None],
        encoder_attention_mask: Tensor,
        return_dict: bool,
    ) -> tuple[Tensor]:
        assert not return_dict, "the pipelines ask for a tuple"
        given = {name: value for name, value in added_cond_kwargs.items() if value is not None}
        record, step = self.record, self.step
        self.step += 1
        output = self.model(
            hidden_states,
            timestep,
            encoder_hidden_states,
            encoder_attention_mask,
            given or None,
            record=None if record is None else lambda trace: record(step, trace),
        )
        return (output,)


def _load_part(folder: Path, variant: str | None, dtype: torch.dtype) -> Any:
    """Load one component with the class that the index of its pipeline names, or else the usual one."""
    index, name = folder.parent / INDEX, folder.name
    entry = (read_optional_json(index) or {}).get(name)
    library_name, class_name = entry or _USUAL.get(name) or ("diffusers", _scheduler_class(folder))
    library = {"diffusers": diffusers, "transformers": transformers}.get(library_name)
    if library is None or not hasattr(library, class_name):
        raise UnsupportedError(
            f"[pipeline] {index}: component {name!r} is a {library_name}.{class_name}, want diffusers or transformers"
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


def _scheduler_class(folder: Path) -> str:
    path = folder / "scheduler_config.json"
    found = read_json(path).get("_class_name")
    if not isinstance(found, str):
        raise MissingError(f"[pipeline] {path}: field '_class_name' is missing; save the scheduler again")
    return found
