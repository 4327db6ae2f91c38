"""The README tells the truth: its commands and its program run, its two make targets and its pictures exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from convert.cli import main
from mlx_moddit import cli as mlx_moddit_cli
from tests import tiny
from tests.parity.published.adapters import save_adapter
from tests.parity.published.base import save
from tests.parity.published.original import original_names

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
LINES = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
MODULES = {"python": [], "mlx_moddit": ["-m", "mlx_moddit"]}  # commands that run in this environment


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readme")


def run(folder: Path, arguments: list[str]) -> str:
    paths = os.pathsep.join([os.environ["PYTHONPATH"], str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONWARNINGS": "default"}
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


def test_commands_for_checkpoints_of_one_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same commands, with tiny checkpoints of the same layout for the names in them."""
    monkeypatch.chdir(tmp_path)
    whole = save(tmp_path, transformer={"num_attention_heads": 2, "attention_head_dim": 32, "cross_attention_dim": 64})
    one = save(tmp_path / "one")
    tiny.make_transformer(seed=8).save_pretrained("512" / Path("transformer"))
    torch.save(original_names(tiny.make_transformer(seed=8).state_dict()), "fine-tune.pth")
    save_adapter(tmp_path, "style", 2).rename("style.safetensors")
    one.rename("sigma-folder")
    places = {
        "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS": str(whole),
        "PixArt-alpha/PixArt-Sigma-XL-2-512-MS": "512",
        "PixArt-alpha/pixart_sigma_sdxlvae_T5_diffusers": "sigma-folder",
    }
    own, mixed, _ = (text for kind, text in BLOCKS if kind == "bash")
    mixed = mixed.replace("sigma-folder", str(whole))  # whose rows are whole groups
    for line in [*own.splitlines(), *mixed.splitlines()]:
        words = [places.get(word, word) for word in shlex.split(line)]
        if words[:3] == ["python", "-m", "convert"]:
            assert main(words[3:]) == 0
        else:
            assert words[:2] == ["mlx_moddit", "sensitivity"]
            result = CliRunner().invoke(
                mlx_moddit_cli.main, [*words[1:], "--q-group-size", "32", "--num-images", "1", "--steps", "1"]
            )
            assert result.exit_code == 0, result.output
    made = {"sigma-mlx", "sigma512-mlx", "mine-mlx", "sigma-whole", "sigma.json", "sigma-mixed"}
    assert made <= {path.name for path in tmp_path.iterdir()}


def test_commands_for_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = tiny.save_dit_pipeline(tmp_path / "dit", routed=False)
    *_, classes = (text for kind, text in BLOCKS if kind == "bash")
    convert, generate = classes.replace("facebook/DiT-XL-2-256", str(source)).splitlines()
    assert main(shlex.split(convert)[3:]) == 0
    result = CliRunner().invoke(mlx_moddit_cli.main, [*shlex.split(generate)[1:], "--steps", "2"])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == ["class-207-1.png", "class-88-1.png"]


def test_make_targets_exist() -> None:
    targets = [line.split()[1] for line in LINES if line.startswith("make ")]
    assert targets == ["generate", "test"]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)


def test_pictures_and_links_exist() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
