"""Loads the fast BLAS in every Python that `scripts/fast_blas.py run` starts, and in those that they start."""

import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).parents[1] / "fast_blas.py"))["load"]()
