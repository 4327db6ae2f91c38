"""The command line with a model that draws classes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from convert.cli import main as convert
from mlx_moddit import cli
from mlx_moddit.images import read_metadata
from tests.tiny import save_dit_pipeline


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, stored_dtype: str) -> Path:
    folder = tmp_path_factory.mktemp("dit")
    command = ["mlx", "--hf-path", str(save_dit_pipeline(folder / "source")), "--out", str(folder / "bundle")]
    assert convert([*command, "--dtype", stored_dtype]) == 0
    return folder / "bundle"


@pytest.fixture(autouse=True)
def work_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command: str, bundle: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli.main, [command, "--model", str(bundle), *arguments])


def test_several_labels_by_name_and_number(bundle: Path) -> None:
    result = run("generate", bundle, "--label", "golden retriever", "--label", "88", "--steps", "2", "--seed", "5")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == ["class-207-5.png", "class-88-5.png"]
    settings = read_metadata(Path("class-207-5.png")).settings
    assert (settings.label, settings.prompt, settings.guidance_scale) == (207, "", 4.0)
    assert read_metadata(Path("class-207-5.png")).describe().startswith("class 207\nSteps: 2,")
    stages = [line.split()[0] for line in result.stderr.splitlines()[:-1]]
    assert stages == ["stage", "load", "prepare", "denoise", "decode", "total"]  # nothing is encoded


def test_a_picture_repeats_itself(bundle: Path) -> None:
    assert run("generate", bundle, "--label", "tench", "--steps", "2", "-o", "one.png").exit_code == 0
    assert run("generate", bundle, "--config-from", "one.png", "-o", "two.png").exit_code == 0
    assert Path("one.png").read_bytes() == Path("two.png").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--label", "golden retriver"), 1, "no class is called 'golden retriver'; want a number in 0..999 or a name"),
        (("--label", "1000"), 1, "class '1000' out of range, want 0..999"),
        (("--prompt", "a circle"), 1, "prompt is 'a circle', but this model draws a class; want a label alone"),
        (("--label", "3", "--negative-prompt", "x"), 1, "negative_prompt is 'x', but this model draws a class"),
        (("--label", "3", "--prompt", "x"), 2, "Give one of --prompt, --prompt-file and --label"),
        ((), 2, "Give one of --prompt, --prompt-file and --label"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_what_a_label_cannot_be(bundle: Path, arguments: tuple[str, ...], status: int, message: str) -> None:
    result = run("generate", bundle, *arguments)
    assert result.exit_code == status
    assert message in result.stderr
    assert not list(Path().glob("*.png"))


def test_a_label_for_a_model_of_texts_is_refused(routed_bundle: Path) -> None:
    result = run("generate", routed_bundle, "--label", "3")
    assert result.exit_code == 1
    assert "label is '3', but this model draws a text; want a prompt" in result.stderr


def test_info_describes_it(bundle: Path) -> None:
    facts = json.loads(run("info", bundle, "--json").stdout)
    assert (facts["architecture"], facts["conditioning"], facts["text_tokens"]) == ("dit", "label", 0)
    assert facts["components"].keys() == {"transformer", "vae"}
    text = run("info", bundle).stdout
    assert "draws one of 1000 classes" in text
    assert "text tokens" not in text
