"""coremltools that was installed without its native libraries is noticed, whether its files or its loading tell."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import coremltools
import pytest
from coremltools.converters.mil.backend.mil import load

from convert.installed import LIBRARIES
from tests.convert.coreml.bundles import to_coreml
from tests.tiny import save_pipeline

MESSAGE = "is installed without its native library {}, as where it has no wheel for this Python or system; make an "


@pytest.mark.parametrize("library", LIBRARIES)
def test_installed_without_a_native_library(tmp_path: Path, library: str) -> None:
    """The package as it is here, but for one file: as pip builds it for Python 3.14."""
    shutil.copytree(Path(coremltools.__file__).parent, tmp_path / "site/coremltools", copy_function=os.symlink)
    for file in (tmp_path / "site/coremltools").glob(f"{library}*"):
        file.unlink()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "site"), os.environ["PYTHONPATH"]])}
    for words in (["--from", "hf-checkpoint", "--to", "coreml", "--out", str(tmp_path / "out")], ["verify", "bundle"]):
        command = [sys.executable, "-m", "convert", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert done.stderr.startswith("error: [coreml] coremltools ")
        assert MESSAGE.format(library) in done.stderr
        assert "Python 3.11, 3.12 or 3.13" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_native_library_that_does_not_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = save_pipeline(tmp_path / "source")
    monkeypatch.setattr(load, "BlobWriter", None)
    assert to_coreml(source, tmp_path / "bundle", "--no-verify") == 1
    errors = capsys.readouterr().err
    assert MESSAGE.format(LIBRARIES[0]) in errors
    assert "disk" not in errors
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
