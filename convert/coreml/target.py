"""What the packages are built for."""

from __future__ import annotations

from typing import Final

import coremltools as ct

OPSET: Final = ct.target.iOS18  # macOS 15: several functions in a package, fused attention, weights in four bits
MINIMUM_OS: Final = {"iOS": "18.0", "macOS": "15.0"}
COMPUTE_UNITS: Final = "cpuAndGPU"  # top-k, gather and scatter have no place on the Neural Engine
