"""`python -m convert verify` as a program: what it prints, what it refuses, what it leaves alone."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convert.cli import main
from convert.verify.command import _request as make_request
from convert.verify.verification import verify_bundle
from moddit.errors import FormatError, InputError, MissingError
from moddit.graphs import ROLES
from moddit.manifest import read_manifest
from tests.convert.checkpoints import convert, edit_json
from tests.convert.coreml.bundles import (
    refresh_manifest,
    verify,
)
from tests.convert.verify.packages import MODEL, REGION, TRANSFORMER, edit, rewire
from tests.torch_moddit.test_edits import make_image


class TestCommand:
    def test_passes(self, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["verify", str(bundle), "--no-picture"]) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        assert captured.out.endswith("passed\n")
        assert "no reference.npz" not in captured.out
        assert f"transformer/{REGION}/t250" in captured.out

    def test_says_what_it_cannot_know(self, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (bundle / "reference.npz").unlink()
        assert main(["verify", str(bundle), "--no-picture"]) == 0
        assert (
            "no reference.npz: whether the weights are those of the checkpoint was not checked"
            in capsys.readouterr().out
        )

    def test_draws_a_picture(self, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["verify", str(bundle), "--prompt", "a red circle", "--steps", "3", "--seed", "5", "--json"]) == 0
        report = json.loads(capsys.readouterr().out)
        assert (report["picture"]["prompt"], report["picture"]["steps"], report["picture"]["seed"]) == (
            "a red circle", 3, 5,
        )  # fmt: skip
        assert report == json.loads((bundle / "parity.json").read_text())
        assert len(list(bundle.glob("verify-*.png"))) == 3
        assert main(["verify", str(bundle), "--no-picture"]) == 0  # whose report tells of none
        assert not list(bundle.glob("verify-*.png"))

    @pytest.mark.parametrize("more", [(), ("--mask", "box:3,5,20,11"), ("--strength", "0.5")], ids=str)
    def test_draws_an_edit(
        self, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
    ) -> None:
        path = tmp_path / "image.png"
        Image.fromarray(make_image()).save(path)
        arguments = ("verify", str(bundle), "--steps", "4", "--image", str(path), *more, "--json")
        assert main(list(arguments)) == 0
        picture = json.loads(capsys.readouterr().out)["picture"]
        assert picture["strength"] == {"--strength": 0.5, "--mask": 1.0}.get(more[0] if more else "", 0.8)
        assert picture["passed"]
        assert main(["verify", str(bundle), "--strength", "0.5"]) == 1
        assert "strength without an image" in capsys.readouterr().err
        for other in ("--no-picture", "--on-device"):
            assert main(["verify", str(bundle), "--image", str(path), other]) == 2
            assert "--image means something for the picture" in capsys.readouterr().err

    def test_draws_at_a_size_that_there_is(self, bundle: Path) -> None:
        """However many tokens that is: a model draws what the exporter has made a function for."""
        manifest = read_manifest(bundle)
        assert manifest.graphs is not None
        request, _ = make_request(manifest)
        assert (request.height, request.width) == (32, 32)
        functions = tuple(replace(item, height=320, width=640) for item in manifest.graphs.step_functions)
        large = replace(manifest, graphs=replace(manifest.graphs, step_functions=functions))
        request, _ = make_request(large)
        assert (request.height, request.width) == (320, 640)

    def test_fails(self, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
        edit(bundle / TRANSFORMER, rewire("block01_ff_residual", "y", "block01_ff_gated"))
        refresh_manifest(bundle)
        assert main(["verify", str(bundle), "--no-picture", "--json"]) == 1
        captured = capsys.readouterr()
        report = json.loads(captured.out)
        assert report["passed"] is False
        assert {item["case"].split("/")[1] for item in report["functions"] if not item["passed"]} == {REGION}
        assert captured.err.startswith(f"error: [verify] {bundle}: does not compute what the reference does")
        assert json.loads((bundle / "parity.json").read_text()) == report

    @staticmethod
    def refuse(bundle: Path, capsys: pytest.CaptureFixture[str], *texts: str) -> None:
        """Check that it ends with one message, and that the library's function raises an error of input."""
        assert main(["verify", str(bundle), "--no-picture"]) == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        for text in texts:
            assert text in captured.err
        with pytest.raises(InputError):
            verify(bundle)

    def test_a_changed_file(self, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (bundle / "tokenizer.json").write_bytes((bundle / "tokenizer.json").read_bytes().replace(b"red", b"rad"))
        self.refuse(bundle, capsys, "tokenizer.json: its sha256 is not the manifest's")

    def test_a_token_that_the_text_encoder_does_not_know(
        self, bundle: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        edit_json(
            bundle / "tokenizer.json",
            lambda value: value["post_processor"]["special_tokens"]["</s>"].update(ids=[10**6]),
        )
        refresh_manifest(bundle)
        self.refuse(bundle, capsys, "tokenizer.json: post_processor.special_tokens.</s>.ids is 1000000, the text")

    def test_a_tokenizer_without_padding(self, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
        def change(value: dict[str, Any]) -> None:
            value["model"]["vocab"][0][0] = "<nothing>"
            value["added_tokens"] = [token for token in value["added_tokens"] if token["content"] != "<pad>"]

        edit_json(bundle / "tokenizer.json", change)
        refresh_manifest(bundle)
        self.refuse(bundle, capsys, "tokenizer.json: has no <pad>")

    def test_a_missing_package(self, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
        shutil.rmtree(bundle / "VAEDecoder.mlpackage")
        self.refuse(bundle, capsys, "VAEDecoder.mlpackage", "no such file")

    def test_a_package_that_is_not_one(self, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (bundle / TRANSFORMER / MODEL).write_bytes(b"nothing")
        refresh_manifest(bundle)
        self.refuse(bundle, capsys, TRANSFORMER)

    @pytest.mark.parametrize("role", [role for roles in ROLES.values() for role in roles])
    def test_features_that_the_package_has_not(
        self, bundle: Path, capsys: pytest.CaptureFixture[str], role: str
    ) -> None:
        def change(manifest: dict[str, Any]) -> None:
            inputs = manifest["graphs"]["packages"][role][0]["functions"][0]["inputs"]
            next(iter(inputs.values()))["dtype"] = "float16"

        manifest = read_manifest(bundle)
        edit_json(bundle / "manifest.json", change)
        self.refuse(bundle, capsys, "has other inputs in ")
        # should the reader of manifests ever let it pass
        assert manifest.graphs is not None
        package, *others = manifest.graphs.packages[role]
        function, *more = package.functions
        (name, feature), *features = function.inputs.items()
        wrong = replace(function, inputs={name: replace(feature, dtype="float16"), **dict(features)})
        chain = (replace(package, functions=(wrong, *more)), *others)
        graphs = replace(manifest.graphs, packages={**manifest.graphs.packages, role: chain})
        with pytest.raises(FormatError, match="have other features than the manifest says"):
            verify_bundle(bundle, replace(manifest, graphs=graphs), None)

    def test_a_package_whose_files_are_not_listed(self, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
        def change(manifest: dict[str, Any]) -> None:
            manifest["components"]["text_encoder"]["files"] = manifest["components"]["tokenizer"]["files"]

        edit_json(bundle / "manifest.json", change)
        self.refuse(bundle, capsys, "no component lists files of TextEncoder.mlpackage")

    def test_a_damaged_reference(self, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = bundle / "reference.npz"
        path.write_bytes(path.read_bytes()[:1000])
        self.refuse(bundle, capsys, "reference.npz: cannot be read")

    def test_a_reference_of_nothing_but_its_digest(self, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = bundle / "reference.npz"
        with np.load(path) as arrays:
            digest = arrays["description_sha256"]
        np.savez_compressed(path, description_sha256=digest)
        self.refuse(bundle, capsys, "reference.npz: cannot be read (not whole: of the arrays wanted it lacks")

    def test_links_out_of_the_bundle(self, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        outside = tmp_path / "outside"
        outside.write_text("precious")
        names = ["parity.json", ".parity.json.part", *(f"verify-{name}.png" for name in ("reference", "fp32", "fp16"))]
        for name in names:
            (bundle / name).unlink(missing_ok=True)
            (bundle / name).symlink_to(outside)
        assert main(["verify", str(bundle), "--prompt", "a red circle", "--steps", "2"]) == 0
        capsys.readouterr()
        assert outside.read_text() == "precious"
        assert [name for name in names if (bundle / name).is_symlink()] == [".parity.json.part"]

    def test_a_bundle_for_mlx(self, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert convert(source, tmp_path / "bundle") == 0
        capsys.readouterr()
        self.refuse(tmp_path / "bundle", capsys, "the bundle has no packages to run; want one made with --to coreml")

    def test_no_bundle(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["verify", str(tmp_path)]) == 1
        assert "manifest.json: no such file" in capsys.readouterr().err
        with pytest.raises(MissingError):
            verify(tmp_path)


def test_a_picture_without_guidance_is_that_of_the_reference(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(bundle), "--guidance", "0", "--steps", "2"]) == 0
    assert main(["verify", str(bundle), "--guidance", "nan"]) == 1
    assert "guidance_scale out of range, got nan, want 0..1000" in capsys.readouterr().err


def test_a_picture_with_steps_that_are_reused_is_that_of_the_reference(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(bundle), "--reuse", "2", "--steps", "5"]) == 0
    assert "5 steps with reuse 2: " in capsys.readouterr().out
    assert json.loads((bundle / "parity.json").read_text())["picture"]["reuse"] == 2
    assert main(["verify", str(bundle), "--reuse", "5", "--steps", "5"]) == 1
    assert "reuse 5 of 5 steps leaves a single one" in capsys.readouterr().err
