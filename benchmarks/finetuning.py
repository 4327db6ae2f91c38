"""What fine-tuning takes at the size of PixArt-Sigma-XL-2, with random weights: seconds of a step, and memory.

    python -m benchmarks.finetuning [--size 512] [--layers 28] [--steps 1] [--arms diffusers all ...] [--json FILE]

An arm is a fresh process: `diffusers` trains all weights of diffusers' own model, dense; the others are what
`finetune --train` does in mode learned, with the dense model as teacher. All have batch 1, a text of 300 tokens,
float32 and gradient checkpointing. The first step, which allocates, is left out of the time. `--estimate` runs no arm:
it writes what a card would hold, from shapes and from what PyTorch keeps for the backward pass of one and two layers.
"""

from __future__ import annotations

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.data import Dataset

from moddit.benchmark.machine import read_commit, read_machine
from moddit.configurations import find_configuration
from moddit.models.pixart import PixArtSpec
from torch_moddit.data import Item
from torch_moddit.finetune import FinetuneConfig, finetune
from torch_moddit.pixart import RoutedPixArt
from torch_moddit.settings import Train
from torch_moddit.trainee import Trainee, copy_teacher, make_trainee

CONFIG: Final = "pixart-sigma-xl"
DENSE: Final = "diffusers"
ARMS: Final = (DENSE, *(train.value for train in Train))
CARD: Final = 24e9  # bytes


@dataclass(frozen=True)
class Measurement:
    """One arm."""

    arm: str
    step_seconds: list[float]  # without the first
    peak_bytes: int  # largest resident set
    trained: int  # numbers
    parameters: int


@dataclass(frozen=True)
class Estimate:
    """Bytes that training takes on a GPU, computed; what its runtime and the allocator need besides is not in it."""

    arm: str
    weights: int  # as they are stored, and those that are trained in 16 bits besides
    states: int  # gradients, two moments, average, in float32
    teacher: int
    block: int  # what one block keeps for the backward pass, of one sample
    activations: int  # of one sample, with checkpoints

    @property
    def fixed(self) -> int:
        return self.weights + self.states + self.teacher

    @property
    def batch(self) -> int:
        """Samples that fit on a card."""
        return max(0, math.floor((CARD - self.fixed) / self.activations))


class OneSample(Dataset[Item]):
    """A picture of random latents, and a text of random states."""

    def __init__(self, spec: PixArtSpec, side: int, text_tokens: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.item = {
            "latents": torch.randn(spec.in_channels, side, side, generator=generator),
            "text": torch.randn(text_tokens, spec.caption_channels, generator=generator),
            "mask": torch.ones(text_tokens, dtype=torch.int64),
        }

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Item:
        return self.item


def configure(train: Train, output: Path, steps: int, mixed_precision: str = "no") -> FinetuneConfig:
    """Make the settings of an arm; no checkpoint is written before the last step."""
    return FinetuneConfig(
        output,
        steps=10_000,  # of which `stop_after` is taken: the ratios still learn
        batch_size=1,
        train=train,
        distill_weight=1.0,
        caption_dropout=0.0,
        mixed_precision=mixed_precision,
        gradient_checkpointing=True,
        log_every=1,
        save_every=steps + 1,
        by_products=False,
        progress=False,
    )


def measure(arm: str, layers: int, size: int, steps: int) -> Measurement:
    """Train for `steps` steps and one more before them, in this process."""
    spec = find_configuration(CONFIG, layers)
    transformer = spec.transformer
    assert isinstance(transformer, PixArtSpec)
    side = size // spec.vae.downscale
    torch.manual_seed(0)
    model = RoutedPixArt.make(transformer)
    parameters = _count(model.parameters())
    data = OneSample(transformer, side, spec.text_tokens)
    times: list[float] = []

    def note(_: object = None) -> None:
        times.append(time.perf_counter())

    if arm == DENSE:
        trained = _train_dense(model, data[0], steps + 1, note)
    else:
        with tempfile.TemporaryDirectory() as folder:
            config = configure(Train(arm), Path(folder), steps + 1)
            trained = _count(make_trained(config, transformer))
            finetune(config, model, data, spec.scheduler, stop_after=steps + 1, on_log=note)
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    seconds = [after - before for before, after in pairwise(times)]
    return Measurement(arm, seconds, peak, trained, parameters)


def make_trained(config: FinetuneConfig, spec: PixArtSpec) -> list[Tensor]:
    """List the weights that an arm trains, without values."""
    with torch.device("meta"):
        return list(make_trainee(config, RoutedPixArt.make(spec), 1000).trained())


def _train_dense(model: Any, item: Item, steps: int, note: Callable[[], None]) -> int:
    """Take the steps of a plain fine-tuning with diffusers' model."""
    model.enable_gradient_checkpointing()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    latents = item["latents"][None]
    for _ in range(steps):
        noise = torch.randn_like(latents)
        output = model(
            latents + noise,
            encoder_hidden_states=item["text"][None],
            encoder_attention_mask=item["mask"][None],
            timestep=torch.tensor([500]),
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        ).sample[:, : latents.shape[1]]
        (output - noise).square().mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        note()
    return _count(model.parameters())


def _count(parameters: Any) -> int:
    return sum(parameter.numel() for parameter in parameters)


def estimate(train: Train, size: int) -> Estimate:
    """Compute what a card holds under bf16: from the shapes, and from what layers keep for the backward pass here."""
    spec = find_configuration(CONFIG)
    transformer = spec.transformer
    assert isinstance(transformer, PixArtSpec)
    config = configure(train, Path("unused"), 1, mixed_precision="bf16")
    with torch.device("meta"):
        model = RoutedPixArt.make(transformer)
        teacher = copy_teacher(config, model, 1000)
        trainee = make_trainee(config, model, 1000)
    trained = _count(trainee.trained())
    one, two = (_kept_bytes(config, layers, size) for layers in (1, 2))
    block, rest = two - one, 2 * one - two
    tokens = transformer.tokens(size // spec.vae.downscale, size // spec.vae.downscale)
    inputs = transformer.num_layers * tokens * transformer.hidden_size * 4
    return Estimate(
        train.value,
        weights=sum(parameter.nbytes for parameter in trainee.model.parameters()) + 2 * trained,
        states=4 * 4 * trained,
        teacher=0 if teacher is None else sum(parameter.nbytes for parameter in teacher.parameters()),
        block=block,
        activations=inputs + block + rest,
    )


def _kept_bytes(config: FinetuneConfig, layers: int, size: int) -> int:
    """Run a model of few layers forward, without checkpoints, and count the bytes that wait for the backward pass."""
    spec = find_configuration(CONFIG, layers)
    transformer = spec.transformer
    assert isinstance(transformer, PixArtSpec)
    side = size // spec.vae.downscale
    trainee: Trainee = make_trainee(config, RoutedPixArt.make(transformer), 1000)
    trainee.model.gradient_checkpointing = False
    weights = {parameter.untyped_storage().data_ptr() for parameter in trainee.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    item = OneSample(transformer, side, spec.text_tokens)[0]
    context = {"text": item["text"][None], "text_mask": item["mask"][None]}
    hooks: AbstractContextManager[Any] = saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16):
        output = trainee(item["latents"][None], torch.tensor([500]), context)
    del output  # only now: what it holds must not be freed and counted under the same address twice
    return sum(kept.values())


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.finetuning", description=__doc__)
    parser.add_argument("--size", type=int, default=512, help="pixels of a side")
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--steps", type=int, default=1, help="steps that are timed")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--json", type=Path, help="write the numbers to this file, too")
    parser.add_argument("--estimate", action="store_true", help="compute what a card of 24 GB would hold")
    parser.add_argument("--trial", action="store_true", help=argparse.SUPPRESS)  # in the process of one arm
    return parser.parse_args()


def main() -> None:
    """Run the arms one after the other, and print a table."""
    arguments = parse_arguments()
    if arguments.trial:
        (arm,) = arguments.arms
        print(json.dumps(asdict(measure(arm, arguments.layers, arguments.size, arguments.steps))))
        return
    size = {"config": CONFIG, "layers": arguments.layers, "size": arguments.size}
    found: dict[str, Any] = {"commit": read_commit(Path(__file__).parent), "machine": asdict(read_machine()), **size}
    if arguments.estimate:
        rows = [estimate(train, arguments.size) for train in Train]
        found["estimates"] = [asdict(row) for row in rows]
        print(format_estimates(rows))
    else:
        measured = [_run_apart(arm, arguments) for arm in arguments.arms]
        found["measurements"] = [asdict(row) for row in measured]
        print(format_measurements(measured))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def _run_apart(arm: str, arguments: argparse.Namespace) -> Measurement:
    options = ["--layers", arguments.layers, "--size", arguments.size, "--steps", arguments.steps, "--arms", arm]
    command = [sys.executable, "-m", "benchmarks.finetuning", "--trial", *map(str, options)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Measurement(**json.loads(done.stdout.splitlines()[-1]))


def format_measurements(rows: list[Measurement]) -> str:
    """Write the table of what was measured; ratios to the first arm."""
    lines = ["| trained | M numbers | s a step | of the first | peak GB | of `all` |", "|---|---|---|---|---|---|"]
    whole = next((row.peak_bytes for row in rows if row.arm == Train.ALL.value), None)
    first = min(rows[0].step_seconds)
    for row in rows:
        share = "-" if whole is None else f"{row.peak_bytes / whole:.2f}"
        seconds = min(row.step_seconds)
        lines.append(
            f"| {row.arm} | {row.trained / 1e6:.1f} | {seconds:.1f} | {seconds / first:.2f} "
            f"| {row.peak_bytes / 1e9:.2f} | {share} |"
        )
    return "\n".join(lines)


def format_estimates(rows: list[Estimate]) -> str:
    """Write the table of what a card would hold."""
    lines = [
        "| trained | weights | gradients, moments, average | teacher | a sample | GB at batch 1 | batch on 24 GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        parts = (row.weights, row.states, row.teacher, row.activations, row.fixed + row.activations)
        lines.append(f"| {row.arm} | {' | '.join(f'{part / 1e9:.2f}' for part in parts)} | {row.batch} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
