"""A leading ~ is the user's home folder wherever a conversion takes a path; shells leave it behind `--option=`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from convert.cli import main
from moddit.manifest import read_manifest
from tests import tiny
from tests.parity.published.adapters import save_adapter
from tests.parity.published.base import save


def test_every_path(home: Path) -> None:
    save(home)  # home/model
    tiny.make_transformer(seed=8).save_pretrained(home / "fine-tune")
    for name, rank in (("style", 2), ("person", 3)):
        shutil.copy(save_adapter(home, name, rank), home / f"{name}.safetensors")
    places = (
        "--hf-path=~/fine-tune",
        "--base=~/model",
        "--lora=~/style.safetensors",
        "--lora=~/person.safetensors:0.5",
    )
    assert main(["--from=hf-checkpoint", *places, "--out=~/new/bundle"]) == 0
    assert read_manifest(home / "new" / "bundle").tokens.is_dense
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("option", ["--hf-path", "--base", "--lora", "--out"])
def test_the_home_of_an_unknown_user_is_one_line(home: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--from=hf-checkpoint", f"{option}=~no-such-user/x.safetensors"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: [path] ~no-such-user/x.safetensors: cannot find the home folder of ~no-such-user")
    assert len(error.splitlines()) == 1
    assert list(Path().iterdir()) == []
