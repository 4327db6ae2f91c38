"""Apple's chips: what they compute and move in a second, and the memory that they are sold with.

Sources: peaks by Apple and by the tables of huggingface, parallax (pull request 449) and llama.cpp (discussion 2182);
measured figures for the M4 and M5 from arXiv 2502.05317 and michaelstinkerings.org; memory from Apple's specifications.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Final

from moddit.errors import MissingError
from moddit.record import quote

_LARGE: Final = 32  # GB, up to which the GPU may have less of the memory
_SHARES: Final = (0.67, 0.75)  # of the memory that the GPU may have


@dataclass(frozen=True)
class Chip:
    """One chip."""

    name: str
    tflops: float  # 10^12 FLOPs a second in float32; half precision is no faster up to the M4
    matmul_tflops: float  # of matrix products in half precision, which the M5 has units of its own for
    bandwidth: float  # 10^9 bytes a second
    memory: tuple[int, ...]  # GB

    @property
    def has_bfloat16(self) -> bool:
        """Whether it computes in bfloat16; before the M3 that is emulated."""
        return int(self.name.split()[0][1:]) >= 3


def _chip(name: str, tflops: float, bandwidth: float, memory: tuple[int, ...], matmul: float | None = None) -> Chip:
    return Chip(name, tflops, tflops if matmul is None else matmul, bandwidth, memory)


CHIPS: Final = (
    _chip("M1", 2.6, 68, (8, 16)),
    _chip("M1 Pro", 5.2, 200, (16, 32)),
    _chip("M1 Max", 10.4, 400, (32, 64)),
    _chip("M1 Ultra", 21.0, 800, (64, 128)),
    _chip("M2", 3.6, 100, (8, 16, 24)),
    _chip("M2 Pro", 6.8, 200, (16, 32)),
    _chip("M2 Max", 13.5, 400, (32, 64, 96)),
    _chip("M2 Ultra", 27.2, 800, (64, 128, 192)),
    _chip("M3", 4.1, 100, (8, 16, 24)),
    _chip("M3 Pro", 7.4, 150, (18, 36)),
    _chip("M3 Max", 14.2, 400, (36, 48, 64, 96, 128)),
    _chip("M3 Ultra", 28.4, 800, (96, 256, 512)),
    _chip("M4", 4.6, 120, (16, 24, 32)),
    _chip("M4 Pro", 9.2, 273, (24, 48, 64)),
    _chip("M4 Max", 18.4, 546, (36, 48, 64, 128)),
    # Matrix products as measured with MLX (1280 rows, bfloat16) on the first two; the Max has twice the Pro's cores.
    _chip("M5", 4.04, 153.6, (16, 24, 32), matmul=6.5),
    _chip("M5 Pro", 8.08, 307, (24, 48, 64), matmul=13.5),
    _chip("M5 Max", 16.16, 614, (36, 48, 64, 128), matmul=27.0),
)


def find_chip(name: str) -> Chip:
    """Find a chip by its name, with or without "Apple".

    Raises:
        MissingError: no such chip; the message lists those with a name like it.
    """
    names = {chip.name.casefold(): chip for chip in CHIPS}
    asked = " ".join(name.casefold().split()).removeprefix("apple ")
    if asked not in names:
        near = difflib.get_close_matches(asked, names, n=4, cutoff=0.3) or list(names)
        raise MissingError(
            f"[plan] no chip {quote(name)}, want one such as {', '.join(names[key].name for key in near)}"
        )
    return names[asked]


def gpu_bytes(memory_gb: float) -> int:
    """Say how much of a machine's memory its GPU may have, bytes: about two thirds, three quarters above 32 GB."""
    return int(memory_gb * 2**30 * _SHARES[memory_gb > _LARGE])
