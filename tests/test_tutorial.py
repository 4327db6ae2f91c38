"""The tutorial's commands run in their order, with fewer pictures and steps, and end in a routed model."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from convert.cli import main as convert
from mlx_moddit import cli as mlx_moddit_cli
from moddit.manifest import read_manifest
from recipes.shapes64.pictures import save_pictures
from torch_moddit import cli as finetune
from torch_moddit import prepare

ROOT = Path(__file__).parent.parent
COMMANDS = [
    shlex.split(line)
    for block in re.findall(r"```bash\n(.*?)```", (ROOT / "docs/tutorial.md").read_text(encoding="utf-8"), re.DOTALL)
    for line in block.splitlines()
]
SHORTER = {"200": "6", "400": "3", "16": "2"}  # pictures, steps, samples of a step


def run(words: list[str]) -> None:
    program, arguments = (words[2], words[3:]) if words[0] == "python" else (words[0], words[1:])
    PROGRAMS[program](arguments)


def invoke(command: object, arguments: list[str]) -> None:
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)  # type: ignore[arg-type]
    assert result.exit_code == 0, result.output


def run_convert(arguments: list[str]) -> None:
    assert convert(arguments) == 0


PROGRAMS: Mapping[str, Callable[[list[str]], None]] = {
    "recipes.shapes64.pictures": lambda words: save_pictures(int(words[0]), Path(words[1])),
    "torch_moddit.prepare": lambda words: invoke(prepare.command, words),
    "torch_moddit.finetune": lambda words: invoke(finetune.command, words),
    "convert": run_convert,
    "mlx_moddit": lambda words: invoke(mlx_moddit_cli.main, words),
}


def test_the_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("recipes/shapes64/teacher", "moddit/checkpoints/shapes64"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for words in COMMANDS:
        run([SHORTER.get(word, word) for word in words])
    pictures = [np.asarray(Image.open(name)) for name in ("picture.png", "routes.png")]
    assert pictures[0].shape == (64, 64, 3)
    trained, adapted = (read_manifest(tmp_path / name) for name in ("routed-mlx", "adapted-mlx"))
    assert trained.tokens == adapted.tokens
    assert trained.tokens.plan.mean_keep_ratio == pytest.approx(0.8, abs=0.1 / 32)
