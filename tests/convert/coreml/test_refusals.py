"""What cannot be written for Core ML is refused with one message, and nothing is left behind."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convert.coreml import writer
from moddit.manifest import read_manifest
from tests.convert.checkpoints import TEXT_ENCODER, TRANSFORMER, VAE, convert, edit_weights
from tests.convert.coreml.bundles import WIDE, make_bundle, to_coreml
from tests.tiny import INPAINTING, save_pipeline

Refuse = Callable[..., None]


@pytest.fixture
def refuse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Convert, and check the exit status, that there is one message with the texts, and that nothing is left."""

    def check(source: Path, options: tuple[str, ...], *texts: str, status: int = 1) -> None:
        before = sorted(path.name for path in tmp_path.iterdir())
        assert to_coreml(source, tmp_path / "bundle", *options) == status
        captured = capsys.readouterr()
        assert captured.out == ""
        *usage, message = captured.err.splitlines()
        assert message.startswith("Error: " if status == 2 else "error: [")
        assert bool(usage) == (status == 2)
        for text in texts:
            assert text in message, message
        assert sorted(path.name for path in tmp_path.iterdir()) == before

    return check


@pytest.fixture(scope="module")
def inpainting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("inpainting") / "model", transformer=INPAINTING)


def test_a_model_that_inpaints(inpainting: Path, refuse: Refuse) -> None:
    refuse(inpainting, (), "[coreml] in_channels 9 is of a model that inpaints", "want --to mlx")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--size", "512"), "'512' is not a size, want HEIGHTxWIDTH in pixels such as 512x768"),
        (("--size", "axb"), "'axb' is not a size"),
        (("--size", "32x-32"), "'32x-32' is not a size"),
        (("--size", "32x32x32"), "'32x32x32' is not a size"),
        (("--batch", "0"), "0 is not in the range x>=1"),
        (("--chunks", "0"), "0 is not in the range x>=1"),
        (("--max-functions", "0"), "0 is not in the range x>=1"),
        (("--routing", "columns"), "'columns' is not one of"),
        (("--compress", "int2"), "'int2' is not one of"),
        (("-q",), "No such option '-q'"),
        (("--dtype", "float16"), "No such option '--dtype'"),
    ],
)
def test_wrong_usage(source: Path, refuse: Refuse, options: tuple[str, ...], text: str) -> None:
    refuse(source, options, text, status=2)


@pytest.mark.parametrize(
    "options", [("--compress", "int8"), ("--size", "32x32"), ("--no-verify",), ("--chunks", "1"), ("--batch", "2")]
)
def test_options_that_mlx_has_not(source: Path, refuse: Refuse, options: tuple[str, ...]) -> None:
    refuse(source, ("--to", "mlx", *options), f"No such option {options[0]!r}", status=2)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--size", "30x32"), "size 30x32: sides must be multiples of 4 pixels"),
        (("--size", "32x32", "--size", "32x0"), "size 32x0: sides must be multiples of 4 pixels"),
        (("--chunks", "4"), "chunks out of range, got 4, want 1..3, the layers"),
        (("--keep", "0.2"), "keep 0.2 of the tokens, want 0."),
        (
            ("--routing", "onehot", "--size", "256x256"),
            "routing onehot is exact up to 2048 tokens, got 4096 at 256x256 pixels; use --routing rows",
        ),
    ],
)
def test_choices_that_this_model_has_not(source: Path, refuse: Refuse, options: tuple[str, ...], text: str) -> None:
    refuse(source, options, text)


class TestWeights:
    @pytest.fixture
    def damaged(self, source: Path, tmp_path: Path) -> Path:
        return Path(shutil.copytree(source, tmp_path / "source"))

    @pytest.mark.parametrize("scheme", ["none", "int8", "palette4"])
    @pytest.mark.parametrize(
        ("file", "name"),
        [
            (TRANSFORMER, "transformer_blocks.1.attn1.to_q.weight"),
            (TRANSFORMER, "transformer_blocks.2.router.weight"),
            (TEXT_ENCODER, "shared.weight"),
            (VAE, "decoder.conv_in.weight"),
        ],
    )
    def test_not_a_number(self, damaged: Path, refuse: Refuse, file: str, name: str, scheme: str) -> None:
        def spoil(tensors: dict[str, Any]) -> None:
            tensors[name].flat[1] = np.nan

        edit_weights(damaged / file, spoil)
        refuse(damaged, ("--compress", scheme), f"tensor {name!r} is not finite (NaN or infinity)")

    @pytest.mark.parametrize("scheme", ["none", "int4"])
    def test_too_large_for_float16(self, damaged: Path, refuse: Refuse, scheme: str) -> None:
        def spoil(tensors: dict[str, Any]) -> None:
            tensors.update({name: tensor.astype(np.float32) for name, tensor in tensors.items()})
            tensors["decoder.conv_in.weight"].flat[1] = 7e4

        edit_weights(damaged / VAE, spoil)
        refuse(damaged, ("--compress", scheme), "'decoder.conv_in.weight' reaches 70000, too large for float16 (65504)")


@pytest.mark.parametrize("scheme", ["none", "int8", "int4", "palette4", "palette6"])
def test_too_large_in_a_compressed_matrix(tmp_path: Path, capsys: pytest.CaptureFixture[str], scheme: str) -> None:
    source = save_pipeline(tmp_path / "source", transformer=WIDE)

    def spoil(tensors: dict[str, np.ndarray]) -> None:
        tensors["transformer_blocks.1.attn1.to_q.weight"].flat[1] = 7e4

    edit_weights(source / TRANSFORMER, spoil)
    assert to_coreml(source, tmp_path / "bundle", "--compress", scheme, "--no-verify") == 1
    assert "reaches 70000, too large for float16" in capsys.readouterr().err


class TestOutput:
    def test_an_existing_bundle(
        self, source: Path, tmp_path: Path, refuse: Refuse, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert convert(source, tmp_path / "bundle") == 0  # for MLX
        capsys.readouterr()
        before = read_manifest(tmp_path / "bundle")
        refuse(source, (), "bundle: exists already; choose another name, or replace it with --overwrite")
        assert read_manifest(tmp_path / "bundle") == before

    def test_overwrite(self, source: Path, tmp_path: Path) -> None:
        assert convert(source, tmp_path / "bundle") == 0
        make_bundle(source, tmp_path / "bundle", "--overwrite")
        assert read_manifest(tmp_path / "bundle").backend == "coreml"
        assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
        assert not list((tmp_path / "bundle").rglob("*.safetensors"))

    def test_a_failure_in_the_middle_keeps_the_old_bundle(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bundle = make_bundle(source, tmp_path / "bundle")
        before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}

        def fail(*_: object) -> None:
            raise RuntimeError("in the middle")

        monkeypatch.setattr(writer, "build_encoder", fail)
        with pytest.raises(RuntimeError, match="in the middle"):
            to_coreml(source, bundle, "--overwrite")
        assert {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()} == before
        assert [path.name for path in tmp_path.iterdir()] == ["bundle"]

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_interrupted_while_packages_are_written(self, source: Path, tmp_path: Path, number: signal.Signals) -> None:
        program = (
            "import sys, time\nfrom convert.coreml import writer\nfrom convert.cli import main\n"
            "def wait(*_):\n    print('there', flush=True)\n    while True:\n        time.sleep(0.1)\n"
            "writer.build_encoder = wait\n"
            "sys.exit(main(sys.argv[1:]))\n"
        )
        arguments = ["--from", "hf-checkpoint", "--hf-path", str(source), "--to", "coreml"]
        process = subprocess.Popen(
            [sys.executable, "-c", program, *arguments, "--out", str(tmp_path / "bundle")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        (partial,) = tmp_path.glob(".bundle.*.partial")
        assert (partial / "VAEDecoder.mlpackage").exists() or (partial / "TextEncoder.mlpackage").exists()
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 128 + number
        assert errors.splitlines()[-1] == "interrupted"
        assert list(tmp_path.iterdir()) == []
