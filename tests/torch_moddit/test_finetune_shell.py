"""Fine-tuning from the shell."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from moddit.checkpoint.lora import DIFFUSERS_FILE
from moddit.checkpoint.safetensors import read_tensors
from moddit.errors import (
    FormatError,
    OutputExistsError,
)
from moddit.routing import RoutingPlan
from tests import tiny
from tests.shards import save_shards
from torch_moddit import cli
from torch_moddit.loading import load_checkpoint
from torch_moddit.pipeline import ReferencePipeline
from torch_moddit.settings import PRESETS, FinetuneConfig, Train

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_pipeline(tmp_path_factory.mktemp("dense") / "m", kind="alpha", routed=False)


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(cli.command, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


def test_shell_trains_on_pictures(tmp_path: Path, dense: Path) -> None:
    for index in range(3):
        Image.new("RGB", (20, 24), (80 * index, 0, 99)).save(tmp_path / f"{index}.png")
        (tmp_path / f"{index}.txt").write_text("a small blue square")
    out = tmp_path / "out"
    code, output = run(
        *("--model", dense, "--images", tmp_path, "--out", out, "--steps", 3, "--batch-size", 2, "--warmup", 1),
        *("--distill-weight", 1, "--height", 16, "--width", 24, "--dtype", "float16"),
    )
    assert code == 0, output
    assert output.splitlines()[-1] == str(out / "model")
    model = load_checkpoint(out / "model")
    assert model.policy.has_routers
    assert model.policy.plan.mean_keep_ratio == pytest.approx(0.5)
    names = read_tensors(out / "model/transformer/diffusion_pytorch_model.safetensors").keys()
    assert {f"transformer_blocks.{layer}.keep_ratio" for layer in range(model.policy.plan.layers)} <= names
    assert ReferencePipeline.load(out / "model").generate("a red circle", steps=2).shape == (32, 32, 3)


def test_shift_of_the_vae_is_not_used_as_in_the_pipelines(tmp_path: Path, dense: Path) -> None:
    """diffusers' pipelines of PixArt decode without it: what is trained on must not have it either."""
    shutil.copytree(dense, tmp_path / "shifted")
    path = tmp_path / "shifted/vae/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shift_factor": 0.4}))
    Image.new("RGB", (16, 16), (80, 0, 99)).save(tmp_path / "0.png")
    (tmp_path / "0.txt").write_text("a small blue square")
    routers = []
    for model in (dense, tmp_path / "shifted"):
        files = ("--model", model, "--images", tmp_path, "--out", tmp_path / f"out-{model.name}")
        code, output = run(*files, "--steps", 1, "--batch-size", 1, "--height", 16, "--width", 16)
        assert code == 0, output
        routers.append(load_checkpoint(tmp_path / f"out-{model.name}" / "model").transformer.state_dict())
    assert all(torch.equal(routers[1][name], value) for name, value in routers[0].items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data",), "a dataset of --data has no pixels; give pictures with --images"),
        (("--validation-prompt", "a circle", "--images"), "--validation-prompt says alone; leave it out"),
    ],
)
def test_what_has_nothing_to_mask_is_refused(tmp_path: Path, options: tuple[str, ...], message: str) -> None:
    arguments = ("--model", tmp_path, "--out", tmp_path / "out", "--steps", 1, "--task", "inpaint", *options, tmp_path)
    result = CliRunner().invoke(cli.command, list(map(str, arguments)))
    assert result.exit_code == 2
    assert message in result.output.splitlines()[-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_picture_is_one_line(tmp_path: Path, dense: Path, workers: int) -> None:
    """Also where another process has read it, whose traceback PyTorch puts into the message."""
    (tmp_path / "0.png").write_bytes(b"no picture")
    (tmp_path / "0.txt").write_text("a small blue square")
    files = ("--model", dense, "--images", tmp_path, "--out", tmp_path / "out", "--height", 16, "--width", 16)
    with pytest.raises(FormatError) as raised:
        run(*files, "--steps", 1, "--batch-size", 1, "--workers", workers)
    assert str(raised.value).startswith(f"[data] {tmp_path}/0.png: cannot read the picture")
    assert "\n" not in str(raised.value)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]  # nothing tells of a run


def test_shell_trains_on_shards(tmp_path: Path, dense: Path) -> None:
    data = save_shards(tmp_path / "data", dense)
    code, output = run(
        *("--model", dense, "--data", data, "--out", tmp_path / "out", "--steps", 2, "--batch-size", 2),
        *("--mode", "uniform", "--target", 0.3, "--caption-dropout", 0),
    )
    assert code == 0, output
    assert load_checkpoint(tmp_path / "out" / "model").policy.plan == RoutingPlan.uniform(3, 4, 3)


def test_nothing_of_another_run_stays_in_a_run_that_replaces_it(tmp_path: Path, dense: Path) -> None:
    data, out = save_shards(tmp_path / "data", dense), tmp_path / "out"
    files = (
        "--model",
        dense,
        "--data",
        data,
        "--out",
        out,
        "--batch-size",
        2,
        "--caption-dropout",
        0,
        "--no-by-products",
    )
    drawing = ("--validation-prompt", "a red circle", "--validate-every", 1)
    assert run(*files, *drawing, "--steps", 2, "--train", "lora")[0] == 0
    assert sorted(path.name for path in (out / "validation").iterdir()) == ["00000001", "00000002"]
    adapter = (out / "adapter" / DIFFUSERS_FILE).read_bytes()
    shutil.rmtree(out / "checkpoints")  # or the run would go on
    with pytest.raises(OutputExistsError, match="model: exists"):
        run(*files, "--steps", 1)
    assert (out / "adapter" / DIFFUSERS_FILE).read_bytes() == adapter
    assert run(*files, "--steps", 1, "--overwrite")[0] == 0
    left = {path.relative_to(out).parts[0] for path in out.rglob("*") if path.is_file()}
    assert left == {"checkpoints", "log.jsonl", "model", "source.json"}


def test_shell_starts_from_a_transformer_and_a_base(tmp_path: Path, dense: Path) -> None:
    """As the paper's own model is published, Sigma 512: a transformer, and a pipeline for the rest."""
    tiny.make_transformer("alpha", seed=8).save_pretrained(tmp_path / "one" / "transformer")
    data = save_shards(tmp_path / "data", dense)
    files = ("--model", tmp_path / "one", "--base", dense, "--data", data, "--out", tmp_path / "out")
    code, output = run(*files, "--steps", 1, "--batch-size", 2, "--caption-dropout", 0)
    assert code == 0, output
    found = ReferencePipeline.load(tmp_path / "out" / "model")
    assert found.model.policy.has_routers
    assert found.generate("a red circle", steps=2).shape == (32, 32, 3)
    index = json.loads((tmp_path / "out" / "model" / "model_index.json").read_text())
    assert index["transformer"] == ["torch_moddit", "RoutedPixArtTransformer2DModel"]
    assert index["text_encoder"] == ["transformers", "T5EncoderModel"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--target", "0.5,x"), "is not a number, nor several such as 0.9,0.8,0.7,0.6"),
        (("--target", "0.5,1.5"), r"got 1\.5, want 0\.1\.\.1\.0"),
        (("--layerwise", "--regions", 4), "--layerwise is one region; leave out --regions"),
    ],
)
def test_wrong_usage_is_told(tmp_path: Path, options: tuple[object, ...], message: str) -> None:
    files = ("--model", tmp_path, "--images", tmp_path, "--out", tmp_path / "out")
    result = CliRunner().invoke(cli.command, [str(argument) for argument in (*files, "--steps", 2, *options)])
    assert result.exit_code == 2
    assert re.search(message, " ".join(result.output.split()))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., FinetuneConfig]:
    """Give the configuration that some options ask for."""

    class SeenError(Exception):
        pass

    def stop(config: FinetuneConfig, *_: object, **__: object) -> None:
        raise SeenError(config)

    def ask(*options: object) -> FinetuneConfig:
        with pytest.raises(SeenError) as seen:
            run("--model", tmp_path, "--data", tmp_path, "--out", tmp_path / "out", "--steps", 9, *options)
        config: FinetuneConfig = seen.value.args[0]
        return config

    monkeypatch.setattr(cli, "FinetuneConfig", lambda **fields: stop(FinetuneConfig(**fields)))
    return ask


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_what_python_has(asked: Callable[..., FinetuneConfig], tmp_path: Path, name: str) -> None:
    assert asked("--preset", name) == FinetuneConfig(tmp_path / "out", 9, **PRESETS[name])


def test_options_win_over_presets(asked: Callable[..., FinetuneConfig]) -> None:
    options = ("--target", 0.6, "--preset", "paper", "--layerwise", "--preset", "mac", "--no-gradient-checkpointing")
    config = asked(*options, "--batch-size", 2)
    assert (config.target, config.regions, config.ratio_loss, config.train) == (0.6, 1, 0.3, Train.LORA)
    assert (config.batch_size, config.accumulation, config.gradient_checkpointing) == (2, 16, False)
    assert config.mixed_precision == "bf16"


@pytest.mark.parametrize("name", PRESETS)
def test_help_and_documentation_tell_presets(name: str) -> None:
    options = cli.tell_preset(name)
    text = re.sub(r"(?<=-)\n\s*", "", run("--help")[1])  # lines break within options, too
    assert f"{name} is {options}" in " ".join(text.split())
    assert f"`{options}`" in (ROOT / "docs" / "finetuning.md").read_text()


def test_every_path_of_the_shell_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("data", "out/model"):
        (tmp_path / name).mkdir(parents=True)
    for data in ("--images=~/data", "--data=~/data"):  # --model and --base are find_checkpoint's
        with pytest.raises(OutputExistsError, match=re.escape(f"{tmp_path / 'out' / 'model'}: exists")):
            run("--model=~/model", data, "--out=~/out", "--steps=1")


def test_shell_tells_what_is_wrong(
    tmp_path: Path, dense: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--model", dense, "--out", tmp_path / "o", "--steps", 1)[0] == 2
    arguments = ["--model", dense, "--images", tmp_path, "--out", tmp_path / "o", "--steps", 1]
    monkeypatch.setattr("sys.argv", ["finetune", *map(str, arguments)])
    assert cli.main() == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: [data]")
