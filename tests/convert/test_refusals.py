"""What cannot be converted: the message names file, tensor or field, found and wanted, and nothing is left behind."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import moddit
from convert.cli import main
from convert.mlx import writer
from moddit.checkpoint import hub
from moddit.errors import FormatError, StorageError
from moddit.files import storage_errors
from moddit.manifest import read_manifest
from tests.convert.checkpoints import TEXT_ENCODER, TRANSFORMER, VAE, convert, edit_json, edit_weights
from tests.tiny import save_pipeline


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("routed"))


@pytest.fixture
def damaged(source: Path, tmp_path: Path) -> Path:
    """A copy of the checkpoint to damage."""
    return Path(shutil.copytree(source, tmp_path / "damaged"))


@pytest.fixture
def refuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Convert, expect exit status 1, one error with all the parts, and nothing left behind."""

    def check(folder: Path, *parts: object, options: tuple[str, ...] = ()) -> None:
        before = sorted(tmp_path.rglob("*"))
        capsys.readouterr()  # what made the checkpoint has printed too
        assert convert(folder, tmp_path / "bundle", *options) == 1
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("error: ")
        for part in parts:
            assert str(part) in printed.err
        assert sorted(tmp_path.rglob("*")) == before

    return check


class TestCheckpoint:
    def test_no_folder(self, tmp_path: Path, refuse: Callable[..., None]) -> None:
        refuse(tmp_path / "nowhere", tmp_path / "nowhere", "no such folder")

    def test_a_bundle(self, source: Path, tmp_path: Path, refuse: Callable[..., None]) -> None:
        convert(source, tmp_path / "other")
        refuse(tmp_path / "other", "a bundle already; want a folder with model_index.json")

    def test_a_single_component(self, source: Path, refuse: Callable[..., None]) -> None:
        refuse(source / "transformer", "a transformer alone; name a pipeline that has the other components with --base")
        refuse(source / "vae", "a transformer alone")

    @pytest.mark.parametrize("component", ["transformer", "text_encoder", "vae", "tokenizer", "scheduler"])
    def test_a_missing_component(self, damaged: Path, component: str, refuse: Callable[..., None]) -> None:
        (damaged / component).rename(damaged / "away")
        refuse(damaged, damaged, f"component {component!r} is missing, got away", "save the whole pipeline")

    @pytest.mark.parametrize("entry", [None, [None, None], {}])
    def test_a_component_that_the_index_leaves_out(
        self, damaged: Path, entry: object, refuse: Callable[..., None]
    ) -> None:
        edit_json(damaged / "model_index.json", lambda index: index.__setitem__("vae", entry))
        refuse(damaged, "model_index.json: component 'vae' is missing in it, though the folder is there")

    @pytest.mark.parametrize(
        "file",
        ["transformer/config.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer.json", TRANSFORMER, VAE],
    )
    def test_a_missing_file(self, damaged: Path, file: str, refuse: Callable[..., None]) -> None:
        (damaged / file).unlink()
        refuse(damaged, damaged / file, "no such file")

    @pytest.mark.parametrize("text", ["{", "[]", "\udcff"])
    def test_damaged_json(self, damaged: Path, text: str, refuse: Callable[..., None]) -> None:
        path = damaged / "vae" / "config.json"
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        refuse(damaged, path, "want a JSON object" if text == "[]" else "not JSON")

    @pytest.mark.parametrize("file", [TRANSFORMER, TEXT_ENCODER, VAE])
    def test_truncated_weights(self, damaged: Path, file: str, refuse: Callable[..., None]) -> None:
        path = damaged / file
        path.write_bytes(path.read_bytes()[:-1000])
        refuse(damaged, path, "truncated, got", "bytes of tensors, want", "copy or download the file again")

    def test_a_wrong_shape(self, damaged: Path, refuse: Callable[..., None]) -> None:
        edit_weights(damaged / TRANSFORMER, lambda tensors: tensors.update({"proj_out.bias": np.zeros(3, np.float32)}))
        refuse(damaged, damaged / "transformer", "mis-shaped  proj_out.bias, got (3,), want (32,)")

    def test_missing_and_unexpected_tensors_in_one_report(self, damaged: Path, refuse: Callable[..., None]) -> None:
        def change(tensors: dict[str, np.ndarray]) -> None:
            tensors["stray"] = tensors.pop("proj_out.weight")

        edit_weights(damaged / TRANSFORMER, change)
        refuse(damaged, "2 tensors differ", "missing     proj_out.weight, want", "unexpected  stray, got")

    def test_missing_micro_conditions(self, tmp_path: Path, refuse: Callable[..., None]) -> None:
        source = save_pipeline(tmp_path / "source", kind="alpha-micro")
        name = "adaln_single.emb.resolution_embedder.linear_1.weight"
        edit_weights(source / TRANSFORMER, lambda tensors: tensors.pop(name))
        refuse(source, f"missing     {name}")

    def test_a_dtype_that_no_weights_have(self, damaged: Path, refuse: Callable[..., None]) -> None:
        edit_weights(damaged / VAE, lambda tensors: tensors.update({"quant_conv.bias": np.zeros(8, np.int64)}))
        refuse(damaged, damaged / VAE, "'quant_conv.bias' has dtype I64, want F16, BF16, F32, F64; save the model in")

    @pytest.mark.parametrize(
        ("file", "field", "value", "wanted"),
        [
            ("model_index.json", "_class_name", "FluxPipeline", "PixArtAlphaPipeline or PixArtSigmaPipeline"),
            ("model_index.json", "transformer", ["diffusers", "DiTTransformer2DModel"], "of PixArtTransformer2DModel"),
            ("model_index.json", "transformer", ["diffusers", "Transformer3DModel"], "of PixArtTransformer2DModel"),
            ("text_encoder/config.json", "model_type", "clip_text_model", "want 't5'"),
            ("model_index.json", "vae", ["diffusers", "AutoencoderDC"], "want one of AutoencoderKL"),
            ("model_index.json", "scheduler", ["diffusers", "LCMScheduler"], "want one of"),
        ],
    )
    def test_an_unknown_architecture(
        self, damaged: Path, file: str, field: str, value: Any, wanted: str, refuse: Callable[..., None]
    ) -> None:
        edit_json(damaged / file, lambda config: config.update({field: value}))
        found = value if isinstance(value, str) else value[1]
        refuse(damaged, damaged / file, found, "is not implemented", wanted)

    def test_more_tokens_than_the_text_encoder_knows(self, damaged: Path, refuse: Callable[..., None]) -> None:
        more = [{"id": 44 + index, "content": f"<{index}>"} for index in range(5)]
        edit_json(damaged / "tokenizer" / "tokenizer.json", lambda value: value["added_tokens"].extend(more))
        refuse(damaged, "(tokenizer.json, tokenizer_config.json): has 49 tokens, the text encoder's vocab_size is 48")

    def test_a_tokenizer_of_another_kind(self, damaged: Path, refuse: Callable[..., None]) -> None:
        (damaged / "tokenizer" / "tokenizer.json").write_text("{}")
        refuse(damaged, "tokenizer.json: not a tokenizer of T5, want model.vocab")


class TestPlan:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda plan: plan["keep_tenths"].pop(), "keep_tenths has 2 layers, want 3"),
            (lambda plan: plan["keep_tenths"][0].pop(), "keep_tenths has rows of [3, 4] regions, 'regions' says 4"),
            (lambda plan: plan["keep_tenths"][0].__setitem__(1, 11), "keep_tenths[0][1] is 11, want at most 10"),
            (lambda plan: plan["keep_tenths"][0].__setitem__(1, 0), "keep_tenths[0][1] is 0, want at least 1"),
            (lambda plan: plan["keep_tenths"][0].__setitem__(1, 0.5), "keep_tenths[0][1] is 0.5, want an integer"),
            (lambda plan: plan.update(keep_tenths=3), "keep_tenths is 3, want a list"),
            (lambda plan: plan.update(num_train_timesteps=500), "num_train_timesteps is 500, want 1000"),
            (lambda plan: plan.pop("regions"), "lacks 'regions'"),
        ],
    )
    def test_a_bad_table(
        self, damaged: Path, change: Callable[[Any], object], message: str, refuse: Callable[..., None]
    ) -> None:
        path = damaged / "transformer" / "config.json"
        edit_json(path, lambda config: change(config["diffcr"]))
        refuse(damaged, path, "diffcr", message)

    @pytest.mark.parametrize(
        ("values", "message"),
        [([0.5], "has shape [1], want [4]"), ([[1.0] * 4], "has shape [1, 4], want [4]"), ([np.nan] * 4, "is NaN")],
    )
    def test_bad_learned_ratios(self, damaged: Path, values: Any, message: str, refuse: Callable[..., None]) -> None:
        name = "transformer_blocks.0.keep_ratio"
        edit_weights(damaged / TRANSFORMER, lambda tensors: tensors.update({name: np.array(values, np.float32)}))
        refuse(damaged, damaged / TRANSFORMER, name, message)

    def test_learned_ratios_of_a_layer_that_is_not(self, damaged: Path, refuse: Callable[..., None]) -> None:
        name = "transformer_blocks.3.keep_ratio"
        edit_weights(damaged / TRANSFORMER, lambda tensors: tensors.update({name: np.ones(4, np.float32)}))
        refuse(damaged, name, "in layers 0..2")

    def test_a_router_is_missing(self, damaged: Path, refuse: Callable[..., None]) -> None:
        name = "transformer_blocks.2.router.weight"
        edit_weights(damaged / TRANSFORMER, lambda tensors: tensors.pop(name))
        refuse(damaged, f"missing     {name}, want (1, 48)")

    def test_routers_without_a_plan(self, damaged: Path, refuse: Callable[..., None]) -> None:
        edit_json(damaged / "transformer" / "config.json", lambda config: config.pop("diffcr"))
        refuse(damaged, damaged / "transformer", "has routers, but config.json has no 'diffcr' object")


class TestValues:
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    @pytest.mark.parametrize("file", [TRANSFORMER, TEXT_ENCODER, VAE])
    def test_weights_that_are_no_numbers(
        self, damaged: Path, file: str, value: float, refuse: Callable[..., None]
    ) -> None:
        names: list[str] = []

        def change(tensors: dict[str, np.ndarray]) -> None:
            names.append(sorted(tensors)[-1])
            tensors[names[0]].reshape(-1)[-1] = value

        edit_weights(damaged / file, change)
        refuse(damaged, damaged / file, names[0], "is not finite (NaN or infinity)", "the checkpoint is damaged")

    def test_weights_beyond_float16(self, damaged: Path, tmp_path: Path, refuse: Callable[..., None]) -> None:
        name = "transformer_blocks.0.ff.net.2.weight"
        edit_weights(damaged / TRANSFORMER, lambda tensors: tensors[name].__setitem__((0, 0), -1e6))
        refuse(damaged, damaged / TRANSFORMER, name, "reaches 1e+06", "with --dtype bfloat16 or float32")
        assert convert(damaged, tmp_path / "bundle", "--dtype", "bfloat16") == 0

    def test_one_tensor_under_old_and_new_name(self, damaged: Path, refuse: Callable[..., None]) -> None:
        new, old = (f"encoder.mid_block.attentions.0.{name}.bias" for name in ("to_q", "query"))
        edit_weights(damaged / VAE, lambda tensors: tensors.update({old: tensors[new].copy()}))
        refuse(damaged, repr(old), repr(new), "remove the wrong one")


class TestOutput:
    @pytest.mark.parametrize("options", [(), ("--overwrite",)])
    def test_a_folder_that_is_no_bundle_stays(
        self, source: Path, tmp_path: Path, options: tuple[str, ...], refuse: Callable[..., None]
    ) -> None:
        (tmp_path / "bundle").mkdir()
        (tmp_path / "bundle" / "mine").write_text("keep")
        refuse(
            source,
            tmp_path / "bundle",
            "is not a bundle" if options else "replace it with --overwrite",
            options=options,
        )
        assert (tmp_path / "bundle" / "mine").read_text() == "keep"

    def test_a_file_and_a_link_stay(self, source: Path, tmp_path: Path, refuse: Callable[..., None]) -> None:
        (tmp_path / "bundle").touch()
        refuse(source, "is not a bundle", options=("--overwrite",))
        (tmp_path / "bundle").unlink()
        (tmp_path / "bundle").symlink_to(tmp_path / "nowhere")
        refuse(source, "exists already")
        refuse(source, "is not a bundle", options=("--overwrite",))

    def test_a_bundle_is_replaced_when_asked(self, source: Path, tmp_path: Path, refuse: Callable[..., None]) -> None:
        convert(source, tmp_path / "bundle")
        (tmp_path / "bundle" / "old").touch()
        capacity = read_manifest(tmp_path / "bundle")
        assert convert(source, tmp_path / "bundle", "--overwrite", "--dtype", "float32") == 0
        assert read_manifest(tmp_path / "bundle").components != capacity.components
        assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
        assert not (tmp_path / "bundle" / "old").exists()

    def test_an_empty_folder_is_replaced_when_asked(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "bundle").mkdir()
        assert convert(source, tmp_path / "bundle", "--overwrite") == 0

    def test_a_bundle_of_an_unknown_version(self, source: Path, tmp_path: Path) -> None:
        convert(source, tmp_path / "bundle")
        edit_json(tmp_path / "bundle" / "manifest.json", lambda manifest: manifest.update(format_version=2))
        with pytest.raises(FormatError, match=r"manifest\.json: format_version is unknown, got 2, want 5; convert"):
            read_manifest(tmp_path / "bundle")
        assert convert(source, tmp_path / "bundle", "--overwrite") == 0
        read_manifest(tmp_path / "bundle")

    def test_a_failed_replacement_keeps_the_old_bundle(
        self, source: Path, damaged: Path, tmp_path: Path, refuse: Callable[..., None]
    ) -> None:
        convert(source, tmp_path / "bundle")
        before = read_manifest(tmp_path / "bundle")
        edit_weights(damaged / VAE, lambda tensors: tensors["quant_conv.bias"].__setitem__(0, np.nan))
        _ = refuse
        assert convert(damaged, tmp_path / "bundle", "--overwrite") == 1
        assert read_manifest(tmp_path / "bundle") == before

    def test_the_old_bundle_returns_if_the_new_one_cannot_be_moved(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuse: Callable[..., None]
    ) -> None:
        convert(source, tmp_path / "bundle")
        before = read_manifest(tmp_path / "bundle")
        rename = Path.rename

        def fail(path: Path, target: Path) -> Path:
            if path.name.endswith(".partial"):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", fail)
        assert convert(source, tmp_path / "bundle", "--overwrite") == 1
        assert read_manifest(tmp_path / "bundle") == before
        assert [path.name for path in tmp_path.iterdir()] == ["bundle"]

    def test_a_folder_that_cannot_be_made(
        self, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "file").touch()
        assert convert(source, tmp_path / "file" / "bundle") == 1
        assert "is a file, want a folder" in capsys.readouterr().err

    def test_too_little_space_is_known_beforehand(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuse: Callable[..., None]
    ) -> None:
        class Usage(NamedTuple):
            free: int

        monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1_234_567))
        refuse(source, tmp_path, "not enough space, got 1,234,567 bytes free, want")

    @pytest.mark.parametrize("after", [0, 1, 5])
    def test_a_disk_that_fills_up(
        self,
        source: Path,
        tmp_path: Path,
        after: int,
        monkeypatch: pytest.MonkeyPatch,
        refuse: Callable[..., None],
    ) -> None:
        write, calls = writer._write_all, []

        def fill(file: Any, piece: Any) -> None:
            calls.append(1)
            if len(calls) > after:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write(file, piece)

        monkeypatch.setattr(writer, "_write_all", fill)
        refuse(source, tmp_path, "bundle: disk is full; make room")

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
    def test_a_real_refusal_to_write(self) -> None:
        with (
            Path("/dev/full").open("wb", buffering=0) as file,
            pytest.raises(StorageError, match="disk is full"),
            storage_errors(Path("out")),
        ):
            writer._write_all(file, b"x")

    def test_a_source_that_changes_meanwhile(
        self, damaged: Path, monkeypatch: pytest.MonkeyPatch, refuse: Callable[..., None]
    ) -> None:
        write = writer.write_components

        def edit(*arguments: Any, **options: Any) -> Any:
            written = write(*arguments, **options)
            edit_weights(damaged / VAE, lambda tensors: tensors["quant_conv.bias"].__setitem__(0, 0.5))
            return written

        monkeypatch.setattr("convert.backends.write_components", edit)
        refuse(damaged, damaged / VAE, "has changed during the conversion; start again")

    def test_nothing_can_fail_once_the_bundle_is_there(
        self, source: Path, monkeypatch: pytest.MonkeyPatch, refuse: Callable[..., None]
    ) -> None:
        def fail(_: object) -> None:
            raise FormatError("no summary")

        monkeypatch.setattr("convert.summary.summarise", fail)
        refuse(source, "no summary")

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    @pytest.mark.parametrize("place", ["writer._write_all", "conversion.hash_source"])
    def test_interrupted_in_the_middle(self, source: Path, tmp_path: Path, number: signal.Signals, place: str) -> None:
        module, name = place.split(".")
        program = (
            "import sys, time\nfrom convert import conversion\nfrom convert.mlx import writer\n"
            "from convert.cli import main\n"
            f"def wait(*_):\n    print('there', flush=True)\n    time.sleep(60)\n{module}.{name} = wait\n"
            "sys.exit(main(sys.argv[1:]))\n"
        )
        arguments = ["--from", "hf-checkpoint", "--hf-path", str(source), "--out", str(tmp_path / "bundle")]
        process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        assert [re.sub("[0-9a-f]{8}", "TOKEN", path.name) for path in tmp_path.iterdir()] == [".bundle.TOKEN.partial"]
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
        assert process.returncode == 128 + number
        assert errors == "interrupted\n"
        assert list(tmp_path.iterdir()) == []


class TestCommand:
    @pytest.mark.parametrize(
        "arguments",
        [
            [],
            ["--from", "gguf"],
            ["--from", "hf-checkpoint", "--to", "onnx"],
            ["--from", "hf-checkpoint", "--q-bits", "5"],
        ],
    )
    def test_wrong_usage_is_status_two(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        assert main(arguments) == 2
        assert "Usage: python -m convert" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("--q-bits", "5"), "--q-bits says how to quantise, which is not asked for; add -q"),
            (("--q-group-size", "32"), "--q-group-size says how to quantise"),
            (("--q-mode", "mxfp4"), "--q-mode says how to quantise"),
            (("-q", "--q-bits", "7"), "'7' is not one of '3', '4', '5', '6', '8'"),
            (("-q", "--q-group-size", "16"), "'16' is not one of '32', '64', '128'"),
            (("-q", "--q-mode", "nvfp4"), "'nvfp4' is not one of 'affine', 'mxfp4'"),
            (("-q", "--q-mode", "mxfp4", "--q-bits", "8"), "--q-mode mxfp4 takes --q-bits 4, got 8"),
            (("-q", "--q-mode", "mxfp4", "--q-group-size", "64"), "--q-mode mxfp4 takes --q-group-size 32, got 64"),
        ],
    )
    def test_what_mlx_cannot_quantise_is_refused(
        self, source: Path, tmp_path: Path, options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["mlx", "--hf-path", str(source), "--out", str(tmp_path / "bundle"), *options]) == 2
        assert message in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []

    def test_without_a_path_it_converts_the_embedded_checkpoint(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(hub, "EMBEDDED", os.path.relpath(source, Path(moddit.__file__).parent))
        monkeypatch.chdir(tmp_path)
        assert main(["--from", "hf-checkpoint"]) == 0
        assert read_manifest(tmp_path / "mlx_model").tokens.has_routers

    def test_a_hub_id_is_downloaded(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        asked: list[str] = []

        def download(repository: str, **_: object) -> str:
            asked.append(repository)
            return str(source)

        monkeypatch.setattr("huggingface_hub.snapshot_download", download)
        arguments = ["--from", "hf-checkpoint", "--hf-path", "someone/some-model", "--out", str(tmp_path / "bundle")]
        assert main([*arguments, "--json"]) == 0
        assert asked == ["someone/some-model"]
        assert json.loads(capsys.readouterr().out)["source"] == f"someone/some-model@{source.name}"

    def test_a_hub_id_that_cannot_be_had(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = ["--from", "hf-checkpoint", "--hf-path", "someone/nothing", "--out", str(tmp_path / "bundle")]
        assert main(arguments) == 1  # the tests are offline
        assert "someone/nothing: neither a folder here nor a repository" in capsys.readouterr().err
