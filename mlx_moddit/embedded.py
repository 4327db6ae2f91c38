"""The embedded checkpoint as a bundle: converted on first use, and kept in a cache.

`convert` is another program to this package, and runs as one.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Final

import moddit
from moddit.errors import FormatError, MissingError, StorageError
from moddit.manifest import FORMAT_VERSION, MANIFEST_NAME, hash_file
from moddit.paths import expand

CACHE_VARIABLE: Final = "MODDIT_CACHE"
CHECKPOINT: Final = Path(moddit.__file__).parent / "checkpoints" / "shapes64"
_KEY_LENGTH: Final = 16  # hexadecimal digits
_HINT: Final = (
    "name a bundle with --model, or make one with `python -m convert --from hf-checkpoint --to mlx --out DIR`"
)


def cache_folder() -> Path:
    """Find the folder for what can be made again: MODDIT_CACHE, or the user's cache folder of this system."""
    if chosen := os.environ.get(CACHE_VARIABLE):
        return expand(chosen)
    if platform.system() == "Darwin":
        return Path.home() / "Library" / "Caches" / "moddit"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moddit"


def bundle_path(checkpoint: Path = CHECKPOINT) -> Path:
    """Name the bundle of a checkpoint and version in the cache; raise MissingError if there is no checkpoint."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
    if not files:
        raise MissingError(f"[embedded] {checkpoint}: this installation has no embedded checkpoint; {_HINT}")
    digest = hashlib.sha256(f"{moddit.__version__} {FORMAT_VERSION}".encode())
    for path in files:
        digest.update(f"{path.relative_to(checkpoint).as_posix()} {hash_file(path)}\n".encode())
    return cache_folder() / f"{checkpoint.name}-mlx-{digest.hexdigest()[:_KEY_LENGTH]}"


def embedded_bundle(checkpoint: Path = CHECKPOINT) -> Path:
    """Give the bundle of the embedded checkpoint, converting it on the first call.

    Two processes may do so at once: `convert` renames a finished folder into place, and who comes second uses it.

    Raises:
        MissingError: there is no checkpoint, or no `convert` with the libraries it needs.
        StorageError: the cache cannot be written.
        FormatError: the conversion failed for another reason.
    """
    bundle = bundle_path(checkpoint)
    if (bundle / MANIFEST_NAME).is_file():
        return bundle
    if importlib.util.find_spec("convert") is None:
        raise MissingError(f"[embedded] `convert` is not installed (pip install 'moddit[convert]'); {_HINT}")
    try:
        bundle.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"[embedded] cannot make the cache {bundle.parent}: {error.strerror}; choose another with {CACHE_VARIABLE}"
        ) from None
    print(f"Converting the embedded checkpoint into {bundle} (once)", file=sys.stderr)
    done = _convert(checkpoint, bundle)
    if done.returncode and not (bundle / MANIFEST_NAME).is_file():
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        reason = lines[-1].removeprefix("error: ") if lines else f"exit status {done.returncode}"
        raise FormatError(f"[embedded] cannot convert the embedded checkpoint: {reason}; {_HINT}")
    return bundle


def _convert(checkpoint: Path, bundle: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-P", "-m", "convert", "--from", "hf-checkpoint", "--to", "mlx", "--out", str(bundle)]
    if checkpoint != CHECKPOINT:
        command += ["--hf-path", str(checkpoint)]
    # -P and this path: the `convert` of this installation, not of the folder the user is in
    paths = [str(Path(moddit.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
