"""How good the model of a run is: its loss on samples that are never trained on, and pictures of fixed prompts.

Timesteps and noise are the same each time, so that rows of a run, and of runs with one seed, compare models and nothing
else; they come from generators of their own, so that training is the same with and without.

    OUT/validation/00000500/00.png, 01.png, ...   pictures at step 500, in the order of the prompts
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from moddit.checkpoint.sources import TRANSFORMER, Sources
from moddit.conditioning import Label
from moddit.contract import TEXT_ENCODER
from moddit.files import discard, new_folder
from moddit.request import Request
from moddit.spec import ModelSpec
from torch_moddit.conditioning import Components, encode_rows
from torch_moddit.data import Part, collate
from torch_moddit.model import Context, RoutedTransformer
from torch_moddit.noising import Noising, make_generator
from torch_moddit.pipeline import ReferencePipeline, load_component

VALIDATION: Final = "validation"
MOST_SAMPLES: Final = 256  # that are measured, evenly spaced among those that are held out
_STREAM: Final = 2  # of random numbers, which training has not
DrawPictures = Callable[[RoutedTransformer], Sequence[NDArray[np.float32]]]  # (H, W, 3) each, 0..1


class HeldOut:
    """Samples that are held out, each measured once in every region of timesteps.

    Args:
        samples: see `torch_moddit.data.hold_out`.
        batch_size: samples of a batch.
        noising: as in training.
        seed: of timesteps and noise.
    """

    def __init__(self, samples: Part, batch_size: int, noising: Noising, seed: int) -> None:
        self.samples, self.batch_size = samples, batch_size
        self.noising, self.seed = noising, seed
        count = min(MOST_SAMPLES, len(samples))
        self.places = [index * len(samples) // count for index in range(count)]

    @torch.no_grad()
    def measure(self, model: RoutedTransformer, accelerator: Accelerator) -> list[float]:
        """Measure the mean squared error in each region; every process takes its share, and all get the answer."""
        totals = torch.zeros(self.noising.regions, 2, device=accelerator.device)
        for number, (region, numbers) in enumerate(self._batches()):
            if number % accelerator.num_processes == accelerator.process_index:
                losses, regions = self._losses(model, accelerator, region, numbers)
                totals.index_add_(0, regions, torch.stack([losses, torch.ones_like(losses)], dim=1))
        model.generator = None
        sums = accelerator.reduce(totals).cpu()
        return (sums[:, 0] / sums[:, 1].clamp_min(1)).tolist()

    def _batches(self) -> Iterator[tuple[int, list[int]]]:
        """List region and numbers of the samples of each batch, which are of one picture size."""
        by_bucket: dict[int, list[int]] = {}
        for number, place in enumerate(self.places):
            by_bucket.setdefault(self.samples.bucket(place), []).append(number)
        for numbers in by_bucket.values():
            for start in range(0, len(numbers), self.batch_size):
                for region in range(self.noising.regions):
                    yield region, numbers[start : start + self.batch_size]

    def _losses(
        self, model: RoutedTransformer, accelerator: Accelerator, region: int, numbers: list[int]
    ) -> tuple[Tensor, Tensor]:
        """Measure some samples; give losses and regions, (B,) each."""
        batch = collate([self.samples[self.places[number]] for number in numbers])
        generators = [make_generator(self.seed, region, number, _STREAM) for number in numbers]
        shares = [torch.rand((), generator=generator) for generator in generators]
        # evenly over the region
        within = (torch.tensor(numbers) + torch.stack(shares)) / len(self.places)
        most = self.noising.schedule.num_train_timesteps
        timesteps = ((region + within) / self.noising.regions * most).long().clamp_max(most - 1)
        noised = self.noising(batch, timesteps, generators)
        model.generator = generators[0]
        with accelerator.autocast():
            return noised.losses(noised.predict(model)), noised.regions


class Validation:
    """What a run looks at, now and then: samples that are held out, pictures, both, or nothing.

    Args:
        samples: that are held out.
        batch_size: samples of a batch.
        noising: as in training.
        seed: of timesteps and noise.
        draw_pictures: such as a `Painter`.
    """

    def __init__(
        self,
        samples: Part | None,
        batch_size: int,
        noising: Noising,
        seed: int,
        draw_pictures: DrawPictures | None,
    ) -> None:
        self.held_out = None if samples is None else HeldOut(samples, batch_size, noising, seed)
        self.draw_pictures = draw_pictures

    @property
    def is_empty(self) -> bool:
        return self.held_out is None and self.draw_pictures is None

    def loss(self, model: RoutedTransformer, accelerator: Accelerator) -> float | None:
        """Measure the mean over regions, where samples are held out."""
        losses = self._losses(model, accelerator)
        return sum(losses) / len(losses) if losses else None

    def run(self, model: RoutedTransformer, accelerator: Accelerator, output: Path, step: int) -> dict[str, Any]:
        """Measure and draw; tell what the log says of it. Raises StorageError if the pictures cannot be written."""
        row: dict[str, Any] = {}
        if losses := self._losses(model, accelerator):
            row = {"validation_loss": sum(losses) / len(losses), "validation_loss_by_region": losses}
        if self.draw_pictures is not None and accelerator.is_main_process:
            with accelerator.autocast():
                pictures = self.draw_pictures(model)
            row["pictures"] = f"{VALIDATION}/{step:08d}"
            with new_folder(output / row["pictures"], kind="folder of pictures", may_replace=lambda _: True) as part:
                for index, picture in enumerate(pictures):
                    Image.fromarray(np.rint(255 * picture).astype(np.uint8)).save(part / f"{index:02d}.png")
        return row

    def _losses(self, model: RoutedTransformer, accelerator: Accelerator) -> list[float]:
        return [] if self.held_out is None else self.held_out.measure(model, accelerator)


def drop_pictures(output: Path, step: int) -> None:
    """Remove the pictures of later steps, which a resumed run draws again; raises StorageError."""
    for folder in (output / VALIDATION).glob("*"):
        if folder.name.isdigit() and int(folder.name) > step:
            discard(folder)


class Painter:
    """Draws pictures of fixed prompts with one seed: what they say is encoded once, and the VAE loaded each time.

    Args:
        sources: of the model.
        spec: its specification.
        prompts: texts; for a model of classes their names or numbers.
        components: that are loaded already, all or none; the others are loaded, used and dropped.
        device: where it computes.
        height: of the pictures, pixels; None for the model's own.
        width: likewise.

    Raises InputError for a prompt or a size that the model cannot draw, or a component that cannot be loaded.
    """

    def __init__(
        self,
        sources: Sources,
        spec: ModelSpec,
        prompts: Sequence[str],
        components: Components,
        *,
        device: torch.device,
        height: int | None = None,
        width: int | None = None,
    ) -> None:
        self.sources, self.spec = sources, spec
        is_label = spec.conditioning.KIND == Label.KIND
        self.requests = [
            Request.complete(
                spec,
                "" if is_label else prompt,
                label=spec.number(prompt) if is_label else None,
                height=height,
                width=width,
            )
            for prompt in prompts
        ]
        self.vae = components.get("vae")
        others = [name for name in spec.components if name not in (TRANSFORMER, "vae")]
        components = components or {name: load_component(sources, name, "auto") for name in others}
        if TEXT_ENCODER in components:
            components[TEXT_ENCODER].to(device)
        rows = [request.rows(spec) for request in self.requests]
        contexts = {row: encode_rows(spec, components, row, device) for row in rows}
        # a text in float32, as in training, whatever its encoder is stored in; numbers of classes as they are
        self.contexts: dict[tuple[Any, ...], Context] = {
            row: {name: value.float() if value.is_floating_point() else value for name, value in context.items()}
            for row, context in contexts.items()
        }

    def __call__(self, model: RoutedTransformer) -> list[NDArray[np.float32]]:
        """Draw them all. Shapes: -> (H, W, 3) each, 0..1."""
        vae = self.vae or load_component(self.sources, "vae")
        pipeline = _Told(self.spec, model, {"vae": vae.to(next(model.parameters()).device)})
        pipeline.contexts = self.contexts
        return [pipeline.draw(request) for request in self.requests]


class _Told(ReferencePipeline):
    """A pipeline for conditions that were encoded before; its latents are float32, as training's."""

    contexts: dict[tuple[Any, ...], Context]

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def encode(self, rows: tuple[Any, ...]) -> Context:
        return self.contexts[rows]

    def decode(self, request: Request, latents: Tensor) -> NDArray[np.float32]:
        with torch.autocast(latents.device.type, enabled=False):
            return super().decode(request, latents)
