"""The manifest is read strictly, and the files it lists are checked."""

import json

import pytest

from moddit.errors import FormatError, MissingError, ShapeError
from moddit.manifest import (
    COMPONENTS,
    Component,
    Manifest,
    Provenance,
    Quantization,
    describe_file,
    read_manifest,
    verify_files,
    write_manifest,
)
from moddit.routing import RoutingPlan
from moddit.samplers import NoiseSchedule
from moddit.spec import ModelSpec, PixArtSpec, T5Spec, VAESpec

SCHEDULER = {"_class_name": "DPMSolverMultistepScheduler", "num_train_timesteps": 1000, "beta_schedule": "linear",
             "beta_start": 0.0001, "beta_end": 0.02, "prediction_type": "v_prediction"}  # fmt: skip


@pytest.fixture
def bundle(tmp_path):
    spec = ModelSpec(
        transformer=PixArtSpec(2, 2, 4, 4, 4, 2, 8, 8, 6, 1.0, True, 1e-6, False),
        text_encoder=T5Spec(10, 6, 3, 8, 1, 2, 32, 128, True, "gelu_new", 1e-6),
        vae=VAESpec(3, 3, 4, (8, 8), 1, 4, 0.5, 0.0, True, True, False),
        scheduler=NoiseSchedule.from_diffusers(SCHEDULER, "scheduler_config.json"),
        max_sequence_length=12,
    )
    components = {}
    for name in COMPONENTS:
        (tmp_path / f"{name}.bin").write_bytes(name.encode())
        components[name] = Component((describe_file(tmp_path, f"{name}.bin"),), "float16", 7)
    quantized = Quantization(4, 64, "affine", ("proj_out.weight",))
    components["transformer"] = Component(components["transformer"].files, "float16", 7, quantized)
    provenance = Provenance("somewhere", "0" * 64, {"moddit": "0"}, "2026-01-01T00:00:00Z")
    manifest = Manifest("mlx", spec, RoutingPlan.uniform(2, 4, 5), components, None, provenance)
    write_manifest(tmp_path, manifest)
    return tmp_path, manifest


def edit(folder, change):
    path = folder / "manifest.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_round_trip(bundle):
    folder, manifest = bundle
    assert read_manifest(folder) == manifest
    verify_files(folder, manifest, hashes=True)


def test_no_manifest(tmp_path):
    with pytest.raises(MissingError, match=r"manifest.json: no such file; make a bundle"):
        read_manifest(tmp_path)


def test_not_json(bundle):
    (bundle[0] / "manifest.json").write_text('{"format": ')
    with pytest.raises(FormatError, match="not JSON"):
        read_manifest(bundle[0])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda value: value.update(format="other"), FormatError, "not a moddit bundle"),
        (lambda value: value.update(format_version=99), FormatError, "format_version is unknown, got 99, want 3"),
        (lambda value: value.update(format_version=2), FormatError, "got 2, want 3; convert the checkpoint again"),
        (lambda value: value.update(more=1), FormatError, "'more'"),
        (lambda value: value.update(graphs={}), FormatError, r"manifest.json.graphs: got \[\]"),
        (lambda value: value["components"].pop("vae"), FormatError, "components"),
        (lambda value: value["components"]["vae"]["files"][0].update(path="../x"), FormatError, "leaves the bundle"),
        (lambda value: value["components"]["vae"]["files"][0].update(path="/x"), FormatError, "leaves the bundle"),
        (lambda value: value["plan"]["keep_tenths"].pop(), ShapeError, "plan has 1 layers"),
        (lambda value: value["spec"]["vae"].pop("scaling_factor"), FormatError, "spec: vae lacks 'scaling_factor'"),
    ],
)
def test_what_does_not_fit_is_refused(bundle, change, error, message):
    edit(bundle[0], change)
    with pytest.raises(error, match=message):
        read_manifest(bundle[0])


def test_missing_truncated_and_changed_files(bundle):
    folder, manifest = bundle
    file = folder / "vae.bin"
    file.write_bytes(b"eav")
    verify_files(folder, manifest)
    with pytest.raises(FormatError, match="sha256"):
        verify_files(folder, manifest, hashes=True)
    file.write_bytes(b"v")
    with pytest.raises(FormatError, match="got 1 bytes, want 3"):
        verify_files(folder, manifest)
    file.unlink()
    with pytest.raises(MissingError, match=r"vae.bin: no such file"):
        verify_files(folder, manifest)
