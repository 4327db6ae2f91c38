"""`python -m convert TARGET`, and the form in which options come first and --to names the target."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from convert.cli import TARGETS, command, main
from tests.tiny import MAX_TOKENS, save_pipeline

Print = Callable[..., tuple[int, str, str]]
OLDER = ("--from", "hf-checkpoint")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("routed"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Print:
    """Run the command; give its exit status and what it printed."""

    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(arguments)
        return status, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("target", "older"),
    [
        ("mlx", OLDER),
        ("mlx", (*OLDER, "--to", "mlx")),
        ("coreml", (*OLDER, "--to", "coreml")),
        ("coreml", ("--to=coreml", "--from=hf-checkpoint")),
    ],
)
def test_both_forms_print_the_same(
    source: Path, tmp_path: Path, run: Print, target: str, older: tuple[str, ...]
) -> None:
    options = ["--hf-path", str(source), "--max-sequence-length", str(MAX_TOKENS), "--out", str(tmp_path / "bundle")]
    options += ["-q", "--q-bits=4"] if target == "mlx" else ["--no-verify", "--compress=int8", "--batch", "1"]
    found = run(target, *options)
    assert found[0] == 0
    assert found[1].startswith(f"{tmp_path / 'bundle'}: bundle for {target}\n")
    shutil.rmtree(tmp_path / "bundle")
    assert run(*older, *options) == found
    shutil.rmtree(tmp_path / "bundle")
    assert run(*options, *older) == found


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("options", "status"), [(("-h",), 0), (("--help",), 0), (("--out",), 2), (("word",), 2), (("--picture",), 2)]
)
def test_both_forms_end_alike(run: Print, target: str, options: tuple[str, ...], status: int) -> None:
    found = run(target, *options)
    assert found[0] == status
    assert "Usage: python -m convert" in found[1] + found[2] or "requires an argument" in found[2]
    assert run(*OLDER, "--to", target, *options) == found


def test_the_layout_of_the_checkpoint_need_not_be_said_to_a_target(run: Print, tmp_path: Path) -> None:
    options = ("--hf-path", str(tmp_path / "nothing"), "--out", str(tmp_path / "bundle"))
    found = run("mlx", *options)
    assert found[0] == 1
    assert run("mlx", *OLDER, *options) == found
    status, _, errors = run("mlx", "--from", "gguf", *options)
    assert status == 2
    assert "Invalid value for '--from': 'gguf' is not 'hf-checkpoint'" in errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--to", "mlx"), "Missing option '--from'"),
        (("--from", "gguf"), "Invalid value for '--from': 'gguf' is not 'hf-checkpoint'"),
        ((*OLDER, "--to", "verify"), "Invalid value for '--to': 'verify' is not one of 'mlx', 'coreml'"),
        (("onnx",), "No such command 'onnx'"),
    ],
)
def test_a_target_that_is_not_named_rightly(run: Print, options: tuple[str, ...], message: str) -> None:
    status, output, errors = run(*options)
    assert (status, output) == (2, "")
    assert errors.startswith("Usage: python -m convert [OPTIONS]")
    assert message in errors


def test_help_names_the_commands_and_the_older_form(run: Print) -> None:
    status, text, _ = run("--help")
    assert status == 0
    assert all(f"\n  {name} " in text for name in command.commands)
    assert set(command.commands) == {*TARGETS, "verify"}
    assert "`python -m convert --from hf-checkpoint --to TARGET [OPTIONS]`" in " ".join(text.split())


def test_a_target_has_no_options_of_another() -> None:
    names = [{item.name for item in command.commands[target].params} for target in TARGETS]
    shared = {"hf_path", "base", "revision", "variant", "loras", "image_size", "max_sequence_length"}
    assert names[0] & names[1] == {"from", "out", "overwrite", "as_json"} | shared
