"""The README tells the truth: its commands and its program run, its two make targets and its pictures exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
LINES = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
MODULES = {"python": [], "mlx_moddit": ["-m", "mlx_moddit"]}  # commands that run in this environment


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


def run(folder: Path, arguments: list[str]) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"}
    result = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_commands_then_the_program_run_in_order(folder: Path) -> None:
    commands = [shlex.split(line) for line in LINES if line.split(" ", 1)[0] in MODULES]
    assert [command[:3] for command in commands][:2] == [
        ["python", "-m", "convert"],
        ["mlx_moddit", "generate", "--model"],
    ]
    for program, *arguments in commands:
        run(folder, [*MODULES[program], *arguments])
    assert (folder / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "routes.png").read_bytes().startswith(b"\x89PNG")
    (program,) = (text for kind, text in BLOCKS if kind == "python")
    assert run(folder, ["-c", program]) == "(64, 64, 3)\n"


def test_make_targets_exist() -> None:
    targets = [line.split()[1] for line in LINES if line.startswith("make ")]
    assert targets == ["generate", "test"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_pictures_and_links_exist() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
