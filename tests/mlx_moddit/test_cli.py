from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import mlx.core as mx
import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

import moddit
from mlx_moddit import __main__ as program
from mlx_moddit import cli
from mlx_moddit.images import read_metadata
from mlx_moddit.stages import Step
from moddit.manifest import MANIFEST_NAME
from tests.mlx_moddit.conftest import make_bundle

PROMPT: Final = "a large red circle"
FAST: Final = ("--prompt", PROMPT, "--steps", "2")


@pytest.fixture(autouse=True)
def work_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Run every test in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, **options: Any) -> Result:
    return CliRunner().invoke(cli.main, arguments, **options)


def generate(bundle: Path, *arguments: str, **options: Any) -> Result:
    return run("generate", "--model", str(bundle), *arguments, **options)


def succeed(bundle: Path, *arguments: str, **options: Any) -> Result:
    result = generate(bundle, *arguments, **options)
    assert result.exit_code == 0, result.output
    return result


def test_paths_go_to_stdout_and_the_table_to_stderr(routed_bundle: Path) -> None:
    result = succeed(routed_bundle, *FAST, "--seed", "3", "--seed", "9")
    names = ["a-large-red-circle-3.png", "a-large-red-circle-9.png"]
    assert result.stdout.splitlines() == names
    for name in names:
        with Image.open(name) as image:
            assert image.size == (32, 32)
    stages = [line.split()[0] for line in result.stderr.splitlines()[:-1]]
    assert stages == ["stage", "load", "encode", "prepare", "denoise", "decode", "total"]
    assert result.stderr.splitlines()[-1].startswith("4 steps, median")


def test_steps_that_are_reused_are_told_from_those_that_were_measured(routed_bundle: Path) -> None:
    result = succeed(routed_bundle, "--prompt", PROMPT, "--steps", "5", "--reuse", "2", "--num-images", "2")
    assert result.stderr.splitlines()[-1].startswith("6 of 10 steps in full, median")


def test_json_is_one_object_of_a_fixed_shape(routed_bundle: Path) -> None:
    arguments = ("--num-images", "2", "--save-routes", "{seed}-routes.png", "-o", "{seed}.png", "--dtype", "float32")
    report = json.loads(succeed(routed_bundle, *FAST, *arguments, "--json").stdout)
    keys = ["version", "pictures", "stages", "peak_rss_bytes", "model", "dtype", "device", "versions"]
    assert list(report) == keys
    assert report["version"] == 1
    assert [picture["path"] for picture in report["pictures"]] == ["0.png", "1.png"]
    for seed, picture in enumerate(report["pictures"]):
        assert sorted(picture) == ["edit", "path", "routes", "settings", "step_seconds"]
        assert picture["routes"] == f"{seed}-routes.png"
        assert len(picture["step_seconds"]) == 2
        assert picture["settings"] == {
            "prompt": PROMPT,
            "negative_prompt": "",
            "seed": seed,
            "steps": 2,
            "guidance_scale": 4.5,
            "height": 32,
            "width": 32,
            "sampler": "dpmpp-2m",
        }
    assert [stage["name"] for stage in report["stages"]] == ["load", "encode", "prepare", "denoise", "decode"]
    assert all(sorted(stage) == ["name", "peak_bytes", "seconds"] for stage in report["stages"])
    assert sorted(report["model"]) == ["fingerprint", "path", "source"]
    assert report["model"]["path"] == str(routed_bundle)
    assert report["dtype"] == "float32"
    assert report["versions"]["moddit"] == moddit.__version__


@pytest.mark.parametrize(("device", "dtype"), [(mx.cpu, "float32"), (mx.gpu, "stored")], ids=["cpu", "gpu"])
def test_dtype_and_device_are_reported(
    routed_bundle: Path, monkeypatch: pytest.MonkeyPatch, device: mx.DeviceType, dtype: str
) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(device, 0))
    result = succeed(routed_bundle, *FAST, "-o", "a.png")
    assert result.stderr.endswith(f"{mx.Device(device, 0)}, dtype {dtype}\n")
    assert read_metadata(Path("a.png")).dtype == dtype
    facts = json.loads(run("info", "--model", str(routed_bundle), "--json").stdout)
    assert facts["device"] == ("gpu" if device == mx.gpu else "cpu")
    text = run("info", "--model", str(routed_bundle)).stdout
    assert f"guided, on a {facts['device'].upper()}" in text


def test_a_picture_of_a_gpu_is_repeated_in_its_precision_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle(tmp_path, "float16")
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu, 0))
    succeed(bundle, *FAST, "-o", "first.png")
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu, 0))
    result = run("generate", "--config-from", "first.png", "-o", "again.png")
    assert result.exit_code == 0, result.output
    assert Path("again.png").read_bytes() == Path("first.png").read_bytes()


def test_config_from_repeats_the_file_byte_for_byte(routed_bundle: Path) -> None:
    arguments = ("--negative-prompt", "klein", "--seed", "11", "--steps", "3", "--guidance", "2.5", "--width", "40")
    succeed(routed_bundle, "--prompt", "ein großer Kreis", *arguments, "--sampler", "ddim", "-o", "first.png")
    result = run("generate", "--config-from", "first.png", "-o", "again.png")
    assert result.exit_code == 0, result.output
    assert Path("again.png").read_bytes() == Path("first.png").read_bytes()
    frugal = run("generate", "--config-from", "first.png", "-o", "frugal.png", "--low-ram")
    assert frugal.exit_code == 0, frugal.output
    assert Path("frugal.png").read_bytes() == Path("first.png").read_bytes()


@pytest.mark.parametrize("saving", [("--reuse", "2"), ("--cache", "0.4"), ("--keep", "0.8")], ids=lambda item: item[0])
def test_config_from_repeats_what_saved_work(routed_bundle: Path, saving: tuple[str, str]) -> None:
    name, value = saving
    wanted = ("--prompt", PROMPT, "--steps", "9")
    succeed(routed_bundle, *wanted, *saving, "--save-routes", "r.png", "-o", "first.png")
    assert getattr(read_metadata(Path("first.png")).settings, name.removeprefix("--")) == float(value)
    assert run("generate", "--config-from", "first.png", "-o", "again.png").exit_code == 0
    assert Path("again.png").read_bytes() == Path("first.png").read_bytes()
    succeed(routed_bundle, *wanted, "-o", "plain.png")
    plain, first = (np.array(Image.open(path)) for path in ("plain.png", "first.png"))
    assert not np.array_equal(plain, first)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--reuse", "4"), "reuse 4 of 4 steps leaves a single one"),
        (("--reuse", "2", "--cache", "0.1"), "reuse 2 and cache 0.1 at once"),
        (("--keep", "0.1"), "keep 0.1 of the tokens, want 0."),
    ],
    ids=str,
)
def test_what_would_save_nothing_or_too_much_is_refused_in_a_line(
    routed_bundle: Path, arguments: tuple[str, ...], message: str
) -> None:
    result = run("generate", "--model", str(routed_bundle), "--prompt", PROMPT, "--steps", "4", *arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not list(Path().glob("*.png"))


def test_a_dense_model_keeps_all_tokens_already(dense_bundle: Path) -> None:
    result = run("generate", "--model", str(dense_bundle), "--prompt", PROMPT, "--keep", "1")
    assert result.exit_code == 1
    assert "keep 1.0 of the tokens of a dense model" in result.stderr


def test_options_override_the_repeated_picture(routed_bundle: Path) -> None:
    succeed(routed_bundle, *FAST, "--seed", "11", "--height", "24", "-o", "first.png")
    result = run("generate", "--config-from", "first.png", "-o", "{index}.png", "--seed", "12", "--guidance-scale", "0")
    assert result.exit_code == 0, result.output
    settings = read_metadata(Path("0.png")).settings
    assert (settings.seed, settings.guidance_scale, settings.height, settings.steps) == (12, 0.0, 24, 2)
    assert settings.prompt == PROMPT


def test_a_cache_of_the_repeated_picture_can_be_left_out(routed_bundle: Path) -> None:
    told = succeed(routed_bundle, *FAST, "--steps", "12", "--cache", "0.4", "-o", "first.png").stderr
    full = re.match(r"(\d+) of 12 steps in full, median", told.splitlines()[-1])
    assert full, told
    assert 1 <= int(full[1]) < 12
    refused = run("generate", "--config-from", "first.png", "--reuse", "2", "-o", "second.png")
    assert "reuse 2 and cache 0.4 at once" in refused.stderr
    result = run("generate", "--config-from", "first.png", "--reuse", "2", "--cache", "0", "-o", "second.png")
    assert result.exit_code == 0, result.output
    settings = read_metadata(Path("second.png")).settings
    assert (settings.reuse, settings.cache) == (2, None)


def test_config_from_repeats_resolution_binning(table_bundle: Path) -> None:
    size = ("--height", "100", "--width", "151", "--steps", "1")
    succeed(table_bundle, "--prompt", PROMPT, *size, "--resolution-binning", "-o", "first.png")
    with Image.open("first.png") as image:
        assert image.size == (151, 100)
    assert run("generate", "--config-from", "first.png", "-o", "again.png").exit_code == 0
    assert Path("again.png").read_bytes() == Path("first.png").read_bytes()
    plain = run("generate", "--config-from", "first.png", "-o", "plain.png", "--no-resolution-binning")
    assert plain.exit_code == 1
    assert "height is not a multiple of 16 pixels, got 100" in plain.stderr


def test_config_from_notices_another_model(routed_bundle: Path, dense_bundle: Path) -> None:
    shutil.copytree(routed_bundle, "model")
    succeed(Path("model"), *FAST, "-o", "first.png")
    shutil.rmtree("model")
    shutil.copytree(dense_bundle, "model")
    result = run("generate", "--config-from", "first.png", "-o", "again.png")
    assert result.exit_code == 1
    assert "was made with another model than model is now" in result.stderr
    assert run("generate", "--config-from", "first.png", "-o", "again.png", "--model", "model").exit_code == 0
    shutil.copytree(routed_bundle, "moved")
    assert run("generate", "--config-from", "first.png", "-o", "moved.png", "--model", "moved").exit_code == 0
    with Image.open("moved.png") as moved, Image.open("first.png") as first:
        assert np.array_equal(np.array(moved), np.array(first))


@pytest.mark.parametrize("source", ["prompts.txt", "-"])
def test_prompt_file_gives_a_picture_for_every_line_and_seed(routed_bundle: Path, source: str) -> None:
    text = "red circle\n\n  blue square \r\n"
    Path("prompts.txt").write_text(text)
    arguments = ("--prompt-file", source, "--steps", "1", "--seed", "1", "--num-images", "2")
    result = succeed(routed_bundle, *arguments, input=text)
    names = ["red-circle-1.png", "red-circle-2.png", "blue-square-1.png", "blue-square-2.png"]
    assert result.stdout.splitlines() == names
    assert read_metadata(Path(names[2])).settings.prompt == "blue square"


def test_prompts_without_latin_letters_do_not_stop_a_run(routed_bundle: Path) -> None:
    arguments = ("--prompt-file", "-", "--steps", "1")
    result = succeed(routed_bundle, *arguments, input="красный круг\n猫\n🐱\n🐶\n")
    assert result.stdout.splitlines() == ["красный-круг-0.png", "猫-0.png", "picture-0.png", "picture-0-2.png"]
    assert read_metadata(Path("picture-0-2.png")).settings.prompt == "🐶"


def test_a_text_that_may_be_cut_is_reported(routed_bundle: Path) -> None:
    result = succeed(routed_bundle, "--prompt", "red " * 300, "--steps", "1", "-o", "a.png")
    assert "warning: a text fills all 300 tokens" in result.stderr


def test_routes_are_drawn_beside_the_picture(routed_bundle: Path) -> None:
    succeed(routed_bundle, *FAST, "-o", "a.png", "--save-routes", "a-routes.png", "--height", "40")
    with Image.open("a-routes.png") as image:
        assert image.height > 256
        assert image.width > 3 * 256


def test_overwrite_replaces(routed_bundle: Path) -> None:
    Path("a.png").write_text("old")
    succeed(routed_bundle, *FAST, "-o", "a.png", "--overwrite")
    assert read_metadata(Path("a.png")).settings.prompt == PROMPT


FAILURES: Final[dict[str, tuple[tuple[str, ...], str]]] = {
    "size": (("--prompt", "a", "--height", "31"), "height is not a multiple of 4 pixels, got 31, want 28 or 32"),
    "binning": (("--prompt", "a", "--resolution-binning"), "not defined for a model of sample_size 16"),
    "steps": (("--prompt", "a", "--steps", "2000"), "steps out of range"),
    "pattern": (("--prompt", "a", "-o", "{step}.png"), "want only {prompt}, {seed}, {index}"),
    "kind": (("--prompt", "a", "-o", "a.jpg"), "ends in .png"),
    "collision": (("--prompt", "a", "-o", "a.png", "--num-images", "2"), "2 pictures would be called a.png"),
    "same file": (("--prompt", "a", "-o", "a.png", "--save-routes", "a.png"), "name the same file, a.png"),
    "same file on a Mac": (("--prompt", "a", "-o", "a.png", "--save-routes", "A.PNG"), "name the same file, A.PNG"),
    "long name": (("--prompt", "a", "-o", "a" * 300 + ".png"), "is too long, got 304 bytes"),
    "exists": (("--prompt", "a", "-o", "old.png"), "old.png exists"),
    "routes exist": (("--prompt", "a", "-o", "new.png", "--save-routes", "old.png"), "old.png exists"),
    "no prompts": (("--prompt-file", "absent.txt"), "absent.txt: no such file"),
    "empty prompts": (("--prompt-file", "empty.txt"), "no prompts in it"),
    "no text": (("--prompt-file", "bytes.txt"), "want UTF-8"),
    "no settings": (("--config-from", "old.png"), "cannot read the picture"),
    "seed": (("--prompt", "a", "--seed", str(2**64)), "seed out of range"),
    "guidance": (("--prompt", "a", "--guidance", "nan"), "guidance_scale out of range"),
}


@pytest.mark.parametrize(("arguments", "message"), FAILURES.values(), ids=FAILURES)
def test_failures_are_one_line_and_write_nothing(
    routed_bundle: Path, work_folder: Path, arguments: tuple[str, ...], message: str
) -> None:
    for name, content in (("old.png", b"old"), ("empty.txt", b"\n \n"), ("bytes.txt", b"\xff\xfe")):
        Path(name).write_bytes(content)
    result = generate(routed_bundle, *arguments)
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""
    assert sorted(path.name for path in work_folder.iterdir()) == ["bytes.txt", "empty.txt", "old.png"]
    assert Path("old.png").read_bytes() == b"old"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "Give one of --prompt"),
        (("--prompt", "a", "--prompt-file", "-"), "Give one of --prompt"),
        (("--prompt", "a", "--sampler", "plms"), "'plms' is not one of"),
        (("--prompt", "a", "--steps", "0"), "x>=1"),
        (("--prompt", "a", "--seed", "x"), "not a valid integer"),
        (("--prompt", "a", "--dtype", "int8"), "'int8' is not one of"),
        (("--prompt", "a", "--lora", "x"), "No such option"),
    ],
)
def test_wrong_usage_exits_with_2(routed_bundle: Path, arguments: tuple[str, ...], message: str) -> None:
    result = generate(routed_bundle, *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_model_that_is_not_there(work_folder: Path) -> None:
    for command in (("generate", *FAST), ("info",)):
        result = run(*command, "--model", "absent")
        assert result.exit_code == 1
        assert result.stderr.startswith("error: [manifest] absent/manifest.json: no such file")
    assert list(work_folder.iterdir()) == []


def test_a_bundle_of_another_version_or_with_a_cut_file(routed_bundle: Path) -> None:
    shutil.copytree(routed_bundle, "newer")
    manifest = json.loads(Path("newer", MANIFEST_NAME).read_text())
    Path("newer", MANIFEST_NAME).write_text(json.dumps(manifest | {"format_version": 99}))
    for command in (("generate", *FAST), ("info",)):
        result = run(*command, "--model", "newer")
        assert result.exit_code == 1
        assert "format_version is unknown, got 99" in result.stderr

    shutil.copytree(routed_bundle, "cut")
    file = next(Path("cut", "vae").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-8])
    result = generate(Path("cut"), *FAST)
    assert result.exit_code == 1
    assert "the file is truncated" in result.stderr
    assert list(Path().glob("*.png")) == []


def test_routes_of_a_dense_model_are_refused(dense_bundle: Path) -> None:
    result = generate(dense_bundle, *FAST, "--save-routes", "routes.png")
    assert result.exit_code == 1
    assert "the model is dense" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interruption_keeps_finished_pictures_and_nothing_else(
    routed_bundle: Path,
    work_folder: Path,
    number: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    progress = cli._Progress.__call__

    def interrupt(self: Any, stage: Any) -> None:
        progress(self, stage)
        if isinstance(stage, Step) and stage.picture == 1:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(cli._Progress, "__call__", interrupt)
    options = ("--model", str(routed_bundle), *FAST, "--num-images", "3", "-o", "{seed}.png")
    monkeypatch.setattr("sys.argv", ["mlx_moddit", "generate", *options])
    assert program.main() == 128 + number
    assert capsys.readouterr().err.splitlines() == ["interrupted"]
    assert [path.name for path in work_folder.iterdir()] == ["0.png"]


def test_info_describes_the_bundle(routed_bundle: Path) -> None:
    result = run("info", "--model", str(routed_bundle), "--width", "48")
    assert result.exit_code == 0, result.output
    assert "Tokens kept of 96 (48x32)" in result.stdout
    facts = json.loads(run("info", "--model", str(routed_bundle), "--json").stdout)
    assert facts["size"] == facts["default_size"] == [32, 32]
    assert facts["tokens"] == 64


def command(*arguments: str) -> tuple[list[str], dict[str, str]]:
    root = str(Path(moddit.__file__).parents[1])
    paths = os.pathsep.join([os.environ["PYTHONPATH"], root])
    return [sys.executable, "-m", "mlx_moddit", *arguments], {**os.environ, "PYTHONPATH": paths}


def test_as_a_program(routed_bundle: Path) -> None:
    arguments, environment = command("generate", "--model", str(routed_bundle), *FAST, "-o", "a.png")
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "a.png\n"), done.stderr
    assert read_metadata(Path("a.png")).settings.steps == 2


def test_ctrl_c_as_a_program(routed_bundle: Path, work_folder: Path) -> None:
    arguments = ("--prompt", PROMPT, "--steps", "20", "--num-images", "5000", "-o", "{seed}.png")
    command_line, environment = command("generate", "--model", str(routed_bundle), *arguments)
    # a shell's Ctrl-C reaches programs that handle it; pytest may itself run with it ignored
    with subprocess.Popen(
        command_line, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=_restore_ctrl_c
    ) as process:
        deadline = time.monotonic() + 60
        while not list(work_folder.glob("*.png")) and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors.splitlines() == ["interrupted"]
    assert list(work_folder.glob(".*")) == []
    assert all(read_metadata(path) for path in work_folder.glob("*.png"))


def _restore_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_prompt_that_is_too_long(routed_bundle: Path) -> None:
    result = generate(routed_bundle, "--prompt", "a" * 20_001, "--output", "picture.png")
    assert result.exit_code == 1
    assert result.stderr == "error: [tokenizer] the prompt has 20001 characters, want at most 20000; shorten it\n"
