"""Size and pictures of a checkpoint for MLX in fewer bits, one row for each way to store it, as Markdown.

    python -m benchmarks.quantization [--hf-path FOLDER] [--output FILE]

Pictures of the checkpoint in float32 are drawn again with each bundle, and compared. Which bits the mixed ones give to
which product comes from pictures of other texts and seeds (`mlx_moddit sensitivity`). Speed is not measured: quantised
weights are made for GPUs.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
import numpy as np
from numpy.typing import NDArray

from convert.cli import main as convert
from mlx_moddit.cli import main as run
from mlx_moddit.pipeline import Pipeline
from moddit.benchmark.table import markdown
from moddit.contract import TEXT_ENCODER
from moddit.errors import ModditError
from moddit.files import new_file
from moddit.manifest import Component, read_manifest

OUTPUT: Final = Path(__file__).parents[1] / "docs" / "quantization.md"
CALIBRATION: Final = (
    "a large green ring at the top and a small purple cross on the left on a white background",
    "a small yellow triangle in the center on a navy background",
    "a large blue square on the right and a large orange circle at the bottom on a white background",
)
HELD_OUT: Final = (
    "a large red circle on the left and a small blue square on the right on a white background",
    "a small blue cross at the top and a large orange circle at the bottom on a navy background",
    "a large purple triangle in the center on a white background",
    "a small green square on the left on a navy background",
)
PARTS: Final = ("transformer", TEXT_ENCODER)
IMAGES: Final = 2  # of each text
SEED: Final = 100  # the sensitivity is measured with the first ones
STEPS: Final = 20
TARGETS: Final = (4.0, 4.25, 4.5, 5.0, 5.5, 6.5)
WAYS: Final[dict[str, tuple[str, ...]]] = {
    "float16": (),
    **{f"{bits} bits": ("-q", "--q-bits", bits) for bits in ("8", "6", "5", "4", "3")},
    "mxfp4": ("-q", "--q-mode", "mxfp4"),
}
HEADER: Final = ("stored as", "transformer MB", "text encoder MB", "bits a weight", "PSNR dB", "worst picture dB")


@dataclass(frozen=True)
class Bundle:
    """A way to store the checkpoint, and the pictures it draws."""

    name: str
    components: Mapping[str, Component]
    pictures: NDArray[np.float32]  # (pictures, height, width, 3), 0..1

    def row(self, exact: NDArray[np.float32]) -> tuple[str, ...]:
        """Write its row of the table."""
        errors = np.square(self.pictures - exact).mean(axis=(1, 2, 3))
        parts = [self.components[name] for name in PARTS]
        sizes = [sum(info.bytes for info in part.files) for part in parts]
        bits = 8 * sum(sizes) / sum(part.parameters for part in parts)
        megabytes = [f"{size / 1e6:.2f}" for size in sizes]
        return (self.name, *megabytes, f"{bits:.2f}", decibels(float(errors.mean())), decibels(float(errors.max())))


def decibels(error: float) -> str:
    """Write a mean squared error as PSNR."""
    return f"{-10 * math.log10(error):.1f}" if error else "equal"


def draw(folder: Path, dtype: str | None = None) -> NDArray[np.float32]:
    """Draw the pictures that are compared."""
    pipeline = Pipeline.load(folder, dtype)
    results = [pipeline.generate(prompt, seed=SEED, num_images=IMAGES, steps=STEPS) for prompt in HELD_OUT]
    images = [image for result in results for image in result.images]
    return np.stack(images).astype(np.float32) / np.float32(255)


def measure(source: list[str], folder: Path) -> Iterator[tuple[str, ...]]:
    """Convert in every way, and yield the rows."""
    exact, report = folder / "exact", folder / "report.json"
    _convert([*source, "--dtype", "float32"], exact)
    pictures = draw(exact)
    arguments = ["--model", str(exact), "--quant-report", str(report), "--num-images", str(IMAGES)]
    arguments += [word for prompt in CALIBRATION for word in ("--prompt", prompt)]
    run(["sensitivity", *arguments], standalone_mode=False)
    mixed = {
        f"mixed, {target:g}": ("-q", "--target-bpw", str(target), "--quant-report", str(report)) for target in TARGETS
    }
    for number, (name, options) in enumerate((WAYS | mixed).items()):
        out = folder / str(number)
        _convert([*source, *options], out)
        yield Bundle(name, read_manifest(out).components, draw(out)).row(pictures)


def _convert(options: list[str], out: Path) -> None:
    with redirect_stdout(sys.stderr):
        if convert(["mlx", *options, "--out", str(out)]):
            raise ModditError(f"[benchmark] could not convert with {' '.join(options)}")


@click.command(help=__doc__)
@click.option("--hf-path", help="Checkpoint.  [default: the embedded one]")
@click.option("--output", type=click.Path(path_type=Path), default=OUTPUT, help="File to write.")
def main(hf_path: str | None, output: Path) -> None:
    """Measure, and write the table."""
    with tempfile.TemporaryDirectory() as folder:
        rows: list[tuple[str, ...]] = [HEADER]
        for row in measure(["--hf-path", hf_path] if hf_path else [], Path(folder)):
            rows.append(row)
            click.echo(" | ".join(row), err=True)
    with new_file(output, overwrite=True) as file:
        file.write(("\n".join(markdown(rows)) + "\n").encode())


if __name__ == "__main__":
    main()
