"""Size, time, memory and errors of converting a checkpoint for Core ML, one row for each compression, as Markdown.

    python -m benchmarks.coreml_conversion [--hf-path FOLDER] [--size HxW] [--compress none ...] [--json FILE]

Conversion and verification are a fresh process each; their memory is the largest resident set. For the true size of
PixArt-Sigma-XL-2 with T5-XXL, `python -m benchmarks.random_pixart FOLDER` writes random weights.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.conversion import run_metered
from convert.coreml.compress import Scheme
from moddit.benchmark.machine import read_commit, read_machine
from moddit.contract import TEXT_ENCODER

HEADER: Final = (
    "| compression | transformer MB | text encoder MB | convert s | peak MB | verify s | peak MB | exact: text encoder "
    "| transformer | VAE | fp16 mean | fp16 p99.9 | rerouted | picture fp32 dB | picture fp16 dB |"
)


@dataclass(frozen=True)
class Cost:
    """What a process took."""

    seconds: float
    peak_bytes: int  # largest resident set


@dataclass(frozen=True)
class Row:
    """One conversion, and the verification of its bundle."""

    scheme: Scheme
    megabytes: dict[str, float]  # of each component's packages
    conversion: Cost
    verification: Cost
    report: dict[str, Any]  # parity.json

    def to_markdown(self) -> str:
        """Write the row of the table; a dash where nothing was measured."""
        cells = [self.scheme.value, *(f"{self.megabytes[name]:.2f}" for name in ("transformer", TEXT_ENCODER))]
        for cost in (self.conversion, self.verification):
            cells += [f"{cost.seconds:.0f}", f"{cost.peak_bytes / 1e6:.0f}"]
        cells += [f"{self._worst(role, 'exact_error'):.1e}" for role in (TEXT_ENCODER, "transformer", "vae")]
        cells += [f"{self._worst('transformer', key):.1e}" for key in ("rounded_mean", "rounded_p999")]
        cells.append(str(sum(sum(item["flipped_rounded"]) for item in self.report["functions"])))
        picture = self.report["picture"]
        cells += ["-", "-"] if picture is None else [f"{picture['psnr'][key]:.1f}" for key in ("fp32", "fp16")]
        return "| " + " | ".join(cells) + " |"

    def _worst(self, role: str, key: str) -> float:
        found = [item[key] for item in self.report["functions"] if item["case"].startswith(role)]
        return max(math.inf if value is None else value for value in found)  # JSON has no infinity


def measure(scheme: Scheme, conversion: Sequence[str], verification: Sequence[str], folder: Path) -> Row:
    """Convert without running the packages, then verify, with more options for each.

    Raises CalledProcessError if one of them fails, and has said why.
    """
    out, convert = folder / scheme.value, (sys.executable, "-m", "convert")
    options = ("--out", str(out), "--compress", scheme.value, "--no-verify", *conversion)
    converted = Cost(*run_metered([*convert, "coreml", *options]))
    verified = Cost(*run_metered([*convert, "verify", str(out), *verification]))
    manifest = json.loads((out / "manifest.json").read_text())
    megabytes = {
        name: sum(file["bytes"] for file in component["files"]) / 1e6
        for name, component in manifest["components"].items()
    }
    return Row(scheme, megabytes, converted, verified, json.loads((out / "parity.json").read_text()))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    names = [scheme.value for scheme in Scheme]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coreml_conversion", description=__doc__)
    parser.add_argument("--hf-path", help="checkpoint (default: the embedded one)")
    parser.add_argument("--size", help="picture size, HxW pixels (default: the size the model was trained at)")
    parser.add_argument("--compress", nargs="+", choices=names, default=names, help="compressions to measure")
    parser.add_argument("--no-picture", action="store_true", help="compare no picture")
    parser.add_argument("--json", type=Path, help="write everything that was measured to this file too")
    return parser.parse_args()


def main() -> None:
    """Measure what the command line asks for and print the table."""
    asked = parse_arguments()
    rows = []
    print(HEADER)
    print("|---" * HEADER.count(" |") + "|", flush=True)
    conversion = ["--hf-path", asked.hf_path] if asked.hf_path else []
    conversion += ["--size", asked.size] if asked.size else []
    verification = ["--no-picture"] if asked.no_picture else []
    for name in asked.compress:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(measure(Scheme(name), conversion, verification, Path(folder)))
        print(rows[-1].to_markdown(), flush=True)
    if asked.json:
        found = {
            "command": " ".join(["python -m benchmarks.coreml_conversion", *sys.argv[1:]]),
            "commit": read_commit(Path(__file__).parent),
            "machine": asdict(read_machine()),
            "rows": [asdict(row) | {"scheme": row.scheme.value} for row in rows],
        }
        asked.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
