"""Size, time, memory and errors of converting a checkpoint for Core ML, one row for each compression, as Markdown.

    python -m benchmarks.coreml_conversion [--hf-path FOLDER] [--size HxW] [--compress none ...] [--convert-only]

Each conversion is a fresh process; its memory is the largest resident set, the quick verification included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.conversion import run_metered
from convert.coreml.compress import Scheme

HEADER = (
    "| compression | transformer MB | text encoder MB | seconds | peak RSS MB | exact error | fp16 mean | fp16 p99.9 "
    "| rerouted | picture fp32 dB | picture fp16 dB |"
)


@dataclass(frozen=True)
class Row:
    """One conversion."""

    scheme: Scheme
    megabytes: dict[str, float]  # of each component's packages
    seconds: float
    peak_megabytes: float
    report: dict[str, Any]  # parity.json

    def to_markdown(self) -> str:
        """Write the row of the table; a dash where nothing was measured."""
        functions = [item for item in self.report["functions"] if item["case"].startswith("transformer/")]
        exact = max(item["exact_error"] for item in self.report["functions"])
        cells = [self.scheme.value, f"{self.megabytes['transformer']:.2f}", f"{self.megabytes['text_encoder']:.2f}"]
        cells += [f"{self.seconds:.0f}", f"{self.peak_megabytes:.0f}", f"{exact:.1e}"]
        if functions[0]["rounded_mean"] is None:
            cells += ["-"] * 3
        else:
            cells += [f"{max(item[key] for item in functions):.1e}" for key in ("rounded_mean", "rounded_p999")]
            cells.append(str(sum(sum(item["flipped_rounded"]) for item in functions)))
        picture = self.report["picture"]
        cells += ["-", "-"] if picture is None else [f"{picture['psnr'][key]:.1f}" for key in ("fp32", "fp16")]
        return "| " + " | ".join(cells) + " |"


def measure(scheme: Scheme, options: list[str], folder: Path, *, verify: bool) -> Row:
    """Convert in a fresh process, then verify the bundle whole in another if `verify`."""
    out = folder / scheme.value
    command = [sys.executable, "-m", "convert", "--from", "hf-checkpoint", "--to", "coreml", "--out", str(out)]
    command += ["--compress", scheme.value, *options]
    seconds, peak = run_metered(command)
    if verify:
        subprocess.run([sys.executable, "-m", "convert", "verify", str(out)], stdout=sys.stderr, check=True)
    manifest = json.loads((out / "manifest.json").read_text())
    megabytes = {
        name: sum(file["bytes"] for file in component["files"]) / 1e6
        for name, component in manifest["components"].items()
    }
    report = json.loads((out / "parity.json").read_text())
    return Row(scheme, megabytes, seconds, peak / 1e6, report)


def main() -> None:
    """Measure what the command line asks for and print the table."""
    names = [scheme.value for scheme in Scheme]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coreml_conversion", description=__doc__)
    parser.add_argument("--hf-path", help="checkpoint (default: the embedded one)")
    parser.add_argument("--size", help="picture size, HxW pixels (default: the size the model was trained at)")
    parser.add_argument("--compress", nargs="+", choices=names, default=names, help="compressions to measure")
    parser.add_argument("--convert-only", action="store_true", help="leave out fp16 errors and pictures")
    arguments = parser.parse_args()
    options = ["--hf-path", arguments.hf_path] if arguments.hf_path else []
    options += ["--size", arguments.size] if arguments.size else []
    print(HEADER)
    print("|---" * HEADER.count(" |") + "|")
    for name in arguments.compress:
        with tempfile.TemporaryDirectory() as folder:
            row = measure(Scheme(name), options, Path(folder), verify=not arguments.convert_only)
            print(row.to_markdown(), flush=True)


if __name__ == "__main__":
    main()
