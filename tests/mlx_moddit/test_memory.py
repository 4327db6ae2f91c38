from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import moddit
from mlx_moddit.memory import usable_bytes
from moddit import memory
from moddit.memory import peak_rss_bytes

PROGRAM = "from moddit.memory import peak_rss_bytes; print(peak_rss_bytes())"
BALLAST = 512 * 2**20  # bytes, more than Python and MLX take


def test_the_peak_does_not_count_the_program_that_started_this_one() -> None:
    ballast = np.ones(BALLAST, dtype=np.uint8)
    environment = {**os.environ, "PYTHONPATH": str(Path(moddit.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True)
    assert 2**20 < int(done.stdout) < BALLAST
    assert peak_rss_bytes() > ballast.nbytes


def test_systems_without_proc_ask_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "absent")
    assert peak_rss_bytes() > 2**20


def test_models_may_fill_what_metal_recommends_and_elsewhere_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    assert usable_bytes() > peak_rss_bytes()
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 123})
    assert usable_bytes() == 123
