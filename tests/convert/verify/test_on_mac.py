"""Core ML computes what the embedded checkpoint does. Only a Mac can show it, and nobody has run this yet."""

from __future__ import annotations

from pathlib import Path

import pytest

from convert.cli import main
from convert.verify.device import check_on_device
from moddit.manifest import read_manifest

pytestmark = pytest.mark.mac


@pytest.mark.parametrize("units", ["cpuOnly", None], ids=["cpuOnly", "manifest"])
@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--routing", "onehot"],
        ["--chunks", "2"],
        *(["--compress", scheme] for scheme in ("int8", "int4", "palette4", "palette6")),
    ],
    ids=lambda options: " ".join(options) or "default",
)
def test_predictions_are_the_reference_s(options: list[str], units: str | None, tmp_path: Path) -> None:
    """`-k cpuOnly` is for machines whose GPU is not a real one, as those of hosted runners."""
    bundle = tmp_path / "bundle"
    assert main(["--from", "hf-checkpoint", "--to", "coreml", "--out", str(bundle), *options]) == 0
    report = check_on_device(bundle, read_manifest(bundle), units)
    print(report.to_text())  # the numbers, with pytest -s or when it fails
    assert report.passed
