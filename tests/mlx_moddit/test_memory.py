from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

import moddit
from mlx_moddit.memory import LOW_RAM_CACHE_BYTES, WORKING_SET, memory_limits, usable_bytes
from moddit import memory
from moddit.memory import peak_rss_bytes

PROGRAM = "from moddit.memory import peak_rss_bytes; print(peak_rss_bytes())"
CACHED, WIRED = 7 * 2**20, 5 * 2**20  # bytes, limits of before
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
    monkeypatch.setattr(mx, "device_info", lambda: {WORKING_SET: 123})
    assert usable_bytes() == 123


@pytest.mark.parametrize(
    ("device", "low_ram", "cached", "wired"),
    [
        ({WORKING_SET: 12 * 2**30}, False, 3 * 2**30, 12 * 2**30),
        ({WORKING_SET: 12 * 2**30}, True, LOW_RAM_CACHE_BYTES, 12 * 2**30),
        ({"device_name": "a CPU"}, True, LOW_RAM_CACHE_BYTES, WIRED),
        ({"device_name": "a CPU"}, False, CACHED, WIRED),
    ],
)
def test_limits_are_set_and_restored(
    monkeypatch: pytest.MonkeyPatch, device: dict[str, int | str], low_ram: bool, cached: int, wired: int
) -> None:
    limits = {"cache": CACHED, "wired": WIRED}

    def set_limit(name: str, limit: int) -> int:
        before, limits[name] = limits[name], limit
        return before

    monkeypatch.setattr(mx, "device_info", lambda: device)
    monkeypatch.setattr(mx, "set_cache_limit", partial(set_limit, "cache"))
    monkeypatch.setattr(mx, "set_wired_limit", partial(set_limit, "wired"))
    monkeypatch.setattr(mx, "synchronize", lambda: order.append(dict(limits)))
    order: list[dict[str, int]] = []
    with suppress(KeyboardInterrupt), memory_limits(low_ram=low_ram):
        assert limits == {"cache": cached, "wired": wired}
        raise KeyboardInterrupt
    assert limits == {"cache": CACHED, "wired": WIRED}
    # what the GPU still does is done before its buffers may be paged out
    assert order == ([{"cache": cached, "wired": wired}] if wired != WIRED else [])
