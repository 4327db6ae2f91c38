"""Give MLX on Linux a fast BLAS: OpenBLAS instead of the reference BLAS in MLX's wheel (20 to 60 times slower).

    python scripts/fast_blas.py build                make the stub where gcc and OpenBLAS are there
    python scripts/fast_blas.py run MODULE ARGS...   run a module with the stub loaded, and what it starts

The wheel asks the loader for its BLAS by a name that nothing else uses. The stub is an empty library of that name which
needs OpenBLAS. Loaded first, it takes the name, so that MLX finds OpenBLAS's functions; torch and numpy keep their own
libraries, and no installed file is changed. (Preloading OpenBLAS itself would slow torch down four times.)
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import os
import platform
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

OPENBLAS: Final = "libopenblas.so.0"
STUB: Final = Path(sys.prefix, "lib", "moddit-fast-blas.so")


def bundled_blas() -> Path | None:
    """Find the BLAS in MLX's wheel; None where MLX is absent or brings none, as on macOS."""
    spec = importlib.util.find_spec("mlx")
    folders = spec.submodule_search_locations if spec else None
    found = [library for folder in folders or () for library in Path(folder).parent.glob("mlx_cpu.libs/libblas-*.so*")]
    return found[0] if found else None


def build() -> str:
    """Make the stub; return a sentence about the outcome, which may be that something needed is missing."""
    STUB.unlink(missing_ok=True)
    bundled = bundled_blas()
    if bundled is None:
        return "MLX needs no other BLAS here."
    compiler = shutil.which("gcc")
    if compiler is None:
        return "MLX keeps its slow reference BLAS: there is no gcc."
    if not _can_load(OPENBLAS):
        return f"MLX keeps its slow reference BLAS: there is no {OPENBLAS} (Debian and Ubuntu: libopenblas0-pthread)."
    link = ["-Wl,--no-as-needed", f"-Wl,-soname,{bundled.name}", f"-l:{OPENBLAS}"]
    subprocess.run([compiler, "-shared", "-fPIC", "-x", "c", "/dev/null", "-o", str(STUB), *link], check=True)
    return f"MLX will use OpenBLAS through {STUB}."


def load() -> str:
    """Load the stub if it was built; return the name of the BLAS that MLX will use. Call it before MLX is imported."""
    if platform.system() == "Darwin":
        return "Accelerate"
    bundled = bundled_blas()
    if bundled is None:
        return "none (MLX is not installed)"
    if not STUB.exists():
        return "the reference BLAS of its wheel (slow; `make setup` builds the fast one where it can)"
    if not _is_loaded(STUB):
        if "mlx.core" in sys.modules:
            raise RuntimeError("MLX was imported before the fast BLAS was loaded")
        ctypes.CDLL(str(STUB))
    return "OpenBLAS"


def _is_loaded(library: Path) -> bool:
    return str(library.resolve()) in Path("/proc/self/maps").read_text()


def _can_load(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description="Give MLX on Linux a fast BLAS.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("build", help="make the stub")
    run = commands.add_parser("run", help="run a module with the stub loaded")
    run.add_argument("module", help="module to run, as after `python -m`")
    run.add_argument("arguments", nargs=argparse.REMAINDER, help="its arguments")
    options = parser.parse_args()
    if options.command == "build":
        print(build())
        return
    load()
    paths = [str(Path(__file__).parent / "startup"), os.environ.get("PYTHONPATH", "")]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))  # for programs that the module starts
    sys.path[0] = str(Path.cwd())  # as `python -m` does; it was this folder
    sys.argv = [options.module, *options.arguments]
    runpy.run_module(options.module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
