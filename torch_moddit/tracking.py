"""Trackers of Accelerate, such as TensorBoard: each is told the rows of a run's log, which stays what counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from PIL import Image

from moddit.errors import MissingError
from moddit.record import escape
from torch_moddit.settings import FinetuneConfig, describe

PROJECT: Final = "moddit"
LOGS: Final = "tensorboard"  # folder in that of the run


def check_trackers(names: tuple[str, ...]) -> None:
    """Raise MissingError if the package of a tracker is not installed."""
    known = set(map(str, get_available_trackers()))
    if missing := [name for name in names if name not in known]:
        packages = " ".join(missing)
        raise MissingError(
            f"[finetune] tracker {', '.join(missing)}: not installed; `pip install {packages}`, or leave it out"
        )


@contextmanager
def tracking(accelerator: Accelerator, config: FinetuneConfig, step: int) -> Iterator[None]:
    """Start the trackers of a run that goes on after a step, and end them with the block; raises MissingError."""
    started = {"purge_step": step + 1}  # TensorBoard hides what was told of later steps
    options = {"tensorboard": started, "wandb": {"dir": str(config.output), "name": config.output.name}}
    facts = {name: value if isinstance(value, (int, float)) else str(value) for name, value in describe(config).items()}
    try:
        accelerator.init_trackers(PROJECT, facts, {name: options.get(name, {}) for name in config.trackers})
    except Exception as error:  # noqa: BLE001 # whatever stops a service, such as that nobody is logged in
        raise MissingError(
            f"[finetune] tracker {', '.join(config.trackers)}: does not start ({type(error).__name__}: "
            f"{escape(' '.join(str(error).split()))}); see to that, or leave it out"
        ) from None
    try:
        yield
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
        accelerator.trackers = []


def track(accelerator: Accelerator, output: Path, row: Mapping[str, Any]) -> None:
    """Tell a row of the log: its numbers, those of lists by their place, and the pictures that it names."""
    if not accelerator.trackers:
        return
    numbers = {name: value for name, value in row.items() if isinstance(value, (int, float)) and name != "step"}
    for name, values in row.items():
        if isinstance(values, list):
            numbers |= {f"{name}/{index}": value for index, value in enumerate(values)}
    accelerator.log(numbers, step=row["step"])
    if "pictures" not in row:
        return
    pictures = np.stack([np.asarray(Image.open(path)) for path in sorted((output / row["pictures"]).iterdir())])
    for tracker in accelerator.trackers:
        layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        tracker.log_images({"validation": pictures}, step=row["step"], **layout)
