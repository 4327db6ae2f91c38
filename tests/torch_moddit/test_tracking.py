"""Trackers are told what the log has. Accelerate's need packages that tests have not; one of tests' stands for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from accelerate.utils import LoggerType
from click.testing import CliRunner

from moddit.errors import MissingError, ValueRangeError
from tests.torch_moddit.training import configure, read_log, train
from torch_moddit import cli


class Tracker(GeneralTracker):
    """Remembers what it was told."""

    name = "tensorboard"
    requires_logging_directory = True
    told: list[Any]

    def __init__(self, project: str, folder: str, **options: Any) -> None:
        super().__init__()
        Tracker.told = [(project, folder, options)]

    @property
    def tracker(self) -> None:
        return None

    def start(self) -> None:
        """Nothing is to be opened."""

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        assert all(
            isinstance(value, (int, float, str, bool)) for value in values.values()
        )  # all that TensorBoard takes
        self.told.append(values["target"])

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        assert all(isinstance(value, (int, float)) for value in values.values())
        self.told.append((step, values))

    def log_images(self, values: dict[str, Any], step: int | None = None, **layout: Any) -> None:
        self.told.append((step, values["validation"].shape, layout))

    def finish(self) -> None:
        self.told.append("finished")


def test_a_tracker_is_told_what_the_log_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "tensorboard", Tracker)
    for module in ("accelerate.tracking", "torch_moddit.tracking"):
        monkeypatch.setattr(f"{module}.get_available_trackers", lambda: [LoggerType.TENSORBOARD])
    config = configure(
        tmp_path, steps=4, trackers=("tensorboard",), validation_share=0.25, validate_every=4, save_every=2
    )
    train(config, stop_after=2)
    result = train(config, draw_pictures=lambda _: [np.zeros((8, 12, 3), np.float32)] * 2)
    start, target, row, validated, pictures, end = Tracker.told
    assert start == ("moddit", str(tmp_path / "tensorboard"), {"purge_step": 3})
    assert target == 0.5
    assert end == "finished"
    assert pictures == (4, (2, 8, 12, 3), {"dataformats": "NHWC"})
    logged = read_log(result)[1:]
    for (step, numbers), told in zip((row, validated), logged, strict=True):
        assert step == told.pop("step") == 4
        told.pop("pictures", None)
        for name, value in told.items():
            parts = (
                {f"{name}/{index}": part for index, part in enumerate(value)}
                if isinstance(value, list)
                else {name: value}
            )
            assert parts.items() <= numbers.items()


def test_one_that_is_not_installed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch_moddit.tracking.get_available_trackers", list)
    with pytest.raises(MissingError, match=r"tracker wandb: not installed; `pip install wandb`, or leave it out"):
        train(configure(tmp_path, trackers=("wandb",)))
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueRangeError, match=r"trackers has \{'aim'\}, want tensorboard and wandb, or one of them"):
        configure(tmp_path, trackers=("aim",))
    options = ["--out", str(tmp_path), "--model", "m", "--steps", "1", "--data", str(tmp_path), "--tracker", "aim"]
    assert CliRunner().invoke(cli.command, options).exit_code == 2


def test_one_that_does_not_start_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(Tracker):
        def start(self) -> None:
            raise RuntimeError("nobody is\nlogged in")

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "tensorboard", Closed)
    for module in ("accelerate.tracking", "torch_moddit.tracking"):
        monkeypatch.setattr(f"{module}.get_available_trackers", lambda: [LoggerType.TENSORBOARD])
    with pytest.raises(MissingError, match=r"does not start \(RuntimeError: nobody is logged in\); see to that"):
        train(configure(tmp_path, trackers=("tensorboard",)))
