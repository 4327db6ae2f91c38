"""The manifest is read strictly, and the files it lists are checked."""

import json
import re
from dataclasses import replace

import pytest

from moddit.errors import FormatError, MissingError, ShapeError, UnsupportedError, ValueRangeError
from moddit.manifest import (
    Component,
    Manifest,
    Provenance,
    describe_file,
    fingerprint,
    read_manifest,
    verify_files,
    write_manifest,
)
from moddit.quantization import Quantization
from moddit.routing import RoutingPlan
from moddit.tokens import TokenPolicy
from tests.moddit.specs import LABEL, TEXT

POLICY = TokenPolicy.topk(RoutingPlan.uniform(2, 4, 5))


def make_bundle(folder, spec):
    components = {}
    for name in spec.components:
        (folder / f"{name}.bin").write_bytes(name.encode())
        components[name] = Component((describe_file(folder, f"{name}.bin"),), "float16", 7)
    quantized = (Quantization(8, 64, "affine", ("proj_out.weight",)), Quantization(4, 32, "mxfp4", ("x.weight",)))
    components["transformer"] = Component(components["transformer"].files, "float16", 7, quantized)
    provenance = Provenance("somewhere", "0" * 64, {"moddit": "0"}, "2026-01-01T00:00:00Z")
    manifest = Manifest(fingerprint(spec, POLICY, components), "mlx", spec, POLICY, components, None, provenance)
    write_manifest(folder, manifest)
    return folder, manifest


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path, TEXT)


def edit(folder, change):
    path = folder / "manifest.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def test_round_trip(bundle):
    folder, manifest = bundle
    assert read_manifest(folder) == manifest
    verify_files(folder, manifest, hashes=True)


def test_a_model_of_labels_has_neither_text_encoder_nor_tokenizer(tmp_path):
    folder, manifest = make_bundle(tmp_path, LABEL)
    assert set(manifest.components) == {"transformer", "vae"}
    assert read_manifest(folder) == manifest
    edit(folder, lambda value: value["components"].update(tokenizer=value["components"]["vae"]))
    with pytest.raises(FormatError, match=r"components are 'tokenizer', .*want exactly 'transformer', 'vae';"):
        read_manifest(folder)


def test_the_fingerprint_is_of_what_the_bundle_holds(bundle, tmp_path_factory):
    _, manifest = bundle
    _, same = make_bundle(tmp_path_factory.mktemp("other"), TEXT)
    assert re.fullmatch("[0-9a-f]{64}", manifest.fingerprint)
    components = dict(manifest.components)
    assert same.fingerprint == manifest.fingerprint
    assert fingerprint(TEXT, POLICY, dict(reversed(components.items()))) == manifest.fingerprint
    file = replace(components["vae"].files[0], sha256="0" * 64)
    others = {
        fingerprint(TEXT, POLICY, components | {"vae": replace(components["vae"], files=(file,))}),
        fingerprint(replace(TEXT, scheduler=replace(TEXT.scheduler, sampler="euler")), POLICY, components),
        fingerprint(TEXT, TokenPolicy.topk(RoutingPlan.uniform(2, 4, 6)), components),
        fingerprint(TEXT, TokenPolicy.dense(2, 1000), components),
        fingerprint(TEXT, TokenPolicy.topk(RoutingPlan.uniform(2, 1, 10)), components),  # keeps as many as the dense
    }
    assert len(others - {manifest.fingerprint}) == 5


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
        (lambda value: value.update(format_version=99), FormatError, "format_version is unknown, got 99, want 5"),
        (lambda value: value.update(format_version=4), FormatError, "got 4, want 5; convert the checkpoint again"),
        (lambda value: value.update(more=1), FormatError, "'more'"),
        (lambda value: value.update(graphs={}), FormatError, "manifest.json: graphs lacks 'compute_units'"),
        (lambda value: value["components"].pop("vae"), FormatError, "components"),
        (lambda value: value["components"].update(more=value["components"]["vae"]), FormatError, "components are"),
        (lambda value: value.update(fingerprint="0"), FormatError, "fingerprint is "),
        (lambda value: value["tokens"].update(policy="random"), UnsupportedError, "'random', want dense or topk"),
        (lambda value: value["tokens"].update(policy="dense"), ValueRangeError, r"want 10 tenths.*json\.tokens\)"),
        (lambda value: value["tokens"].pop("policy"), FormatError, "tokens lacks 'policy'"),
        (
            lambda value: value["spec"]["transformer"].update(dit=LABEL.transformer.to_json()),
            FormatError,
            "exactly one of",
        ),
        (lambda value: value["spec"].update(conditioning={"label": {"names": []}}), UnsupportedError, "on a text, got"),
        (
            lambda value: value["components"]["vae"]["files"][0].update(path="../x"),
            FormatError,
            r"vae\.files\[0\]\.path is '\.\./x', want a path inside",
        ),
        (
            lambda value: value["components"]["vae"]["files"][0].update(path="/x"),
            FormatError,
            "'/x', want a path inside the bundle",
        ),
        (lambda value: value["tokens"]["plan"]["keep_tenths"].pop(), ShapeError, "plan has 1 layers"),
        (
            lambda value: value["tokens"]["plan"].update(num_train_timesteps=999),
            ValueRangeError,
            "999 in the plan and 1000 in",
        ),
        (lambda value: value["components"]["vae"].update(dtype=None), FormatError, "components.vae.dtype is null"),
        (lambda value: value.update(backend="coreml"), FormatError, "backend is 'coreml' without graphs"),
        (lambda value: value["spec"]["vae"].pop("scaling_factor"), FormatError, "spec.vae lacks 'scaling_factor'"),
    ],
)
def test_what_does_not_fit_is_refused(bundle, change, error, message):
    edit(bundle[0], change)
    with pytest.raises(error, match=message):
        read_manifest(bundle[0])


def test_a_manifest_that_cannot_be_read(tmp_path):
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(FormatError, match=r"manifest\.json: cannot be read \(a folder\)"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").rmdir()
    (tmp_path / "manifest.json").write_text('{"format": "moddit", "format": "moddit"}')
    with pytest.raises(FormatError, match=r"key 'format' is there twice.*the bundle is damaged"):
        read_manifest(tmp_path)


def test_files_may_be_links_and_their_folders_not(bundle, tmp_path_factory):
    folder, manifest = bundle
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (folder / "vae.bin").rename(elsewhere / "blob")
    (folder / "vae.bin").symlink_to(elsewhere / "blob")
    verify_files(folder, manifest)
    (elsewhere / "vae.bin").write_bytes(b"vae")
    (folder / "inside").mkdir()
    (folder / "link").symlink_to(folder / "inside", target_is_directory=True)
    (folder / "inside" / "vae.bin").write_bytes(b"vae")
    edit(folder, lambda value: value["components"]["vae"]["files"][0].update(path="link/vae.bin"))
    verify_files(folder, read_manifest(folder))
    (folder / "link").unlink()
    (folder / "link").symlink_to(elsewhere, target_is_directory=True)
    with pytest.raises(FormatError, match=r"link/vae\.bin: its folder is a link that leaves the bundle"):
        verify_files(folder, read_manifest(folder))


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
