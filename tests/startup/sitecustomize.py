"""The device that pytest's option `--device` names, in pytest and, through PYTHONPATH, in every Python it starts.

This runs before anything else does, and imports MLX: so the fast BLAS is loaded here, else it would be too late.
"""

from __future__ import annotations

import os
import platform
import runpy
from pathlib import Path
from typing import Final

VARIABLE: Final = "MODDIT_TEST_DEVICE"  # how the choice reaches the programs that tests start
DEVICES: Final = ("default", "cpu", "reported-gpu")


def choose_device(name: str) -> None:
    """Make MLX compute where it does by default, on a CPU, or where it does while it says that this is a GPU.

    The last changes nothing but the answer of `mx.default_device`: what the package does on a Mac, done elsewhere.
    """
    if name == "reported-gpu":
        # by its path: a program that a test starts may not find the repository
        runpy.run_path(str(Path(__file__).parents[2] / "scripts" / "fast_blas.py"))["load"]()
        import mlx.core as mx

        mx.default_device = lambda: mx.Device(mx.gpu, 0)
    elif name == "cpu" and platform.system() == "Darwin":  # elsewhere it is the default
        import mlx.core as mx

        mx.set_default_device(mx.cpu)


choose_device(os.environ.get(VARIABLE, "default"))
