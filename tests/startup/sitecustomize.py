"""The device that pytest's option `--device` names, in pytest and, through PYTHONPATH, in every Python it starts."""

from __future__ import annotations

import os
import platform
from typing import Final

VARIABLE: Final = "MODDIT_TEST_DEVICE"  # how the choice reaches the programs that tests start
DEVICES: Final = ("default", "cpu", "reported-gpu")


def choose_device(name: str) -> None:
    """Make MLX compute where it does by default, on a CPU, or where it does while it says that this is a GPU.

    The last changes nothing but the answer of `mx.default_device`: what the package does on a Mac, done elsewhere.
    """
    if name == "reported-gpu":
        import mlx.core as mx

        mx.default_device = lambda: mx.Device(mx.gpu, 0)
    elif name == "cpu" and platform.system() == "Darwin":  # elsewhere it is the default
        import mlx.core as mx

        mx.set_default_device(mx.cpu)


choose_device(os.environ.get(VARIABLE, "default"))
