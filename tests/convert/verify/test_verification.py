"""Whatever is wrong with a bundle is found: faults planted in packages, manifest, weights and exporter."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from coremltools.converters.mil import Builder as mb

from convert.cli import main
from convert.coreml import pixart, routing, t5, transformer, vae, variants
from convert.coreml.pixart import PixArtGraph
from convert.coreml.routing import Keeper
from convert.verify.functions import EXACT_TOLERANCE
from convert.verify.report import Report
from moddit.errors import FormatError, ParityError, ShapeError, ValueRangeError
from moddit.manifest import read_manifest, write_manifest
from moddit.models.pixart import PixArtSpec
from tests.convert.checkpoints import edit_json
from tests.convert.coreml.bundles import (
    PLAN,
    WIDE,
    make_bundle,
    quick_garbage,
    refresh_manifest,
    to_coreml,
    verify,
)
from tests.convert.verify.packages import REGION, TRANSFORMER, WEIGHTS, block, edit, find, rewire
from tests.tiny import save_pipeline

METADATA: Final = struct.Struct("<IIQQ")  # of a blob: mark, dtype, bytes, place of the numbers


def failures(report: Report) -> list[str]:
    assert report.passed == all(item.passed for item in report.outcomes)
    return [item.case for item in report.outcomes if not item.passed]


def only_of(function: str, report: Report) -> bool:
    """Whether all cases of a function fail, and no others."""
    return failures(report) == [item.case for item in report.outcomes if f"/{function}/" in item.case]


def function_of(case: str) -> str:
    return case.split("/t")[0]


def test_a_whole_bundle_passes(bundle: Path) -> None:
    report = verify(bundle)
    assert report.passed
    assert {item.case.split("/")[0] for item in report.outcomes} == {
        "text_encoder", "transformer", "vae_decoder", "vae_encoder",
    }  # fmt: skip
    timesteps = [int(item.case.split("/t")[-1]) for item in report.outcomes if item.case.startswith("transformer/")]
    assert sorted(timesteps) == [0, 249, 250, 499, 500, 749, 750, 999]


def repeat(model: Any, name: str, copy: str, **inputs: str) -> None:
    """Add a copy of an operation behind it, with other inputs."""
    operations = block(model, REGION).operations
    index = next(place for place, item in enumerate(operations) if item.outputs[0].name == name)
    operations.insert(index + 1, operations[index])
    added = operations[index + 1]
    for number, output in enumerate(added.outputs):
        output.name = f"{copy}_{number}" if len(added.outputs) > 1 else copy
    added.attributes["name"].immediateValue.tensor.strings.values[0] = copy
    for parameter, value in inputs.items():
        added.inputs[parameter].arguments[0].name = value


def constant_of(model: Any, operation: str, parameter: str) -> Any:
    """The value of a constant argument."""
    name = find(model, operation).inputs[parameter].arguments[0].name
    return find(model, name).attributes["val"].immediateValue.tensor


def put_back_elsewhere(model: Any) -> None:
    """Scatter what was gathered from one half of the batch into the other."""
    starts = find(model, "block01_rows").inputs["y"].arguments[0].name
    repeat(model, "block01_flat_rows", "swapped_flat_rows", x="swapped_rows")
    repeat(model, "block01_rows", "swapped_rows", y="swapped_starts")
    repeat(model, starts, "swapped_starts")
    values = constant_of(model, "swapped_rows", "y").ints.values
    values[:] = list(reversed(values))
    rewire("block01_scatter", "indices", "swapped_flat_rows")(model)


def gather_elsewhere(model: Any) -> None:
    """Process the tokens of the other half of the batch."""
    values = constant_of(model, "block01_rows", "y").ints.values
    values[:] = list(reversed(values))


def gate_in_another_order(model: Any) -> None:
    """Gate the tokens by the right scores, but from the largest to the least."""
    repeat(model, find(model, "block01_kept_0").inputs["sort"].arguments[0].name, "is_sorted")
    repeat(model, "block01_kept_0", "sorted", sort="is_sorted")
    constant_of(model, "sorted_0", "sort").bools.values[0] = True
    rewire("block01_sigmoid", "x", "sorted_0")(model)


def keep_the_least(model: Any) -> None:
    constant_of(model, "block01_kept_0", "ascending").bools.values[0] = True


PLANTED: Final[dict[str, Callable[[Any], None]]] = {
    "scatter into other rows": put_back_elsewhere,
    "gather other rows": gather_elsewhere,
    "scores in another order than the tokens": gate_in_another_order,
    "dropped gate": rewire("block01_ff_residual", "y", "block01_ff_gated"),
    "dropped gate of the modulation": rewire("block01_attn1_residual", "y", "block01_attn1_to_out"),
    "the least scores": keep_the_least,
    "no position": rewire("placed", "x", "patches_fp32"),
    "no mask": rewire("text_bias_fp16", "x", "text_padding"),
    "keys for values": rewire("block01_text_values", "x", "text_keys"),
    "shift for scale": rewire("block01_norm2_scale", "x", "block01_modulation_parts_3"),
}


@pytest.mark.parametrize("change", PLANTED.values(), ids=PLANTED)
def test_a_fault_in_one_function(bundle: Path, change: Callable[[Any], None]) -> None:
    edit(bundle / TRANSFORMER, change)
    refresh_manifest(bundle)
    assert only_of(REGION, verify(bundle))


@pytest.mark.parametrize("package", [TRANSFORMER, "Prepare.mlpackage", "TextEncoder.mlpackage"])
def test_exact_gelu(package: str, tmp_path: Path) -> None:
    """A checkpoint of trained activations shows it: the two forms differ by 5e-4 at most."""
    bundle = tmp_path / "bundle"
    with quick_garbage():
        assert main(["--from", "hf-checkpoint", "--to", "coreml", "--no-verify", "--out", str(bundle)]) == 0

    def change(model: Any) -> None:
        for function in model.mlProgram.functions:
            operations = block(model, function).operations
            modes = {item.inputs["mode"].arguments[0].name for item in operations if item.type == "gelu"}
            assert modes
            for item in operations:
                if item.outputs[0].name in modes:
                    item.attributes["val"].immediateValue.tensor.strings.values[0] = "EXACT"

    edit(bundle / package, change)
    refresh_manifest(bundle)
    report = verify(bundle)
    wanted = {function_of(item.case) for item in report.outcomes if item.case.startswith(ROLE_OF[package])}
    assert {function_of(case) for case in failures(report)} == wanted, report.to_text()


def test_a_capacity_that_contradicts_the_shapes(bundle: Path) -> None:
    def change(model: Any) -> None:
        constant_of(model, "block01_kept_0", "k").ints.values[0] -= 1

    edit(bundle / TRANSFORMER, change)
    refresh_manifest(bundle)
    with pytest.raises(FormatError, match="block01_kept"):
        verify(bundle)


def test_another_capacity_throughout(bundle: Path, tmp_path: Path) -> None:
    """The package of a checkpoint that keeps one tenth less in one place, under the manifest of the other."""
    tenths = [list(row) for row in PLAN]
    tenths[1][3] -= 1
    source = save_pipeline(tmp_path / "source", keep_tenths=tenths, dtype="float16", transformer=WIDE)
    other = make_bundle(source, tmp_path / "other")
    shutil.rmtree(bundle / TRANSFORMER)
    shutil.copytree(other / TRANSFORMER, bundle / TRANSFORMER)
    refresh_manifest(bundle)
    report = verify(bundle)
    assert only_of("px32x32_batch2_region3", report)
    assert all(item.flipped_exact > 0 for item in report.outcomes if not item.passed)


class TestManifest:
    def test_swapped_regions(self, bundle: Path) -> None:
        def change(manifest: dict[str, Any]) -> None:
            first, *_, last = manifest["graphs"]["step_functions"]
            first["regions"], last["regions"] = last["regions"], first["regions"]

        edit_json(bundle / "manifest.json", change)
        with pytest.raises(ShapeError, match=r"keeps \[.*\] tokens by layer, the plan says"):
            read_manifest(bundle)

    def test_swapped_regions_and_plan(self, bundle: Path) -> None:
        """Nothing in the bundle contradicts it but what was stored when the bundle was written."""

        def change(manifest: dict[str, Any]) -> None:
            first, *_, last = manifest["graphs"]["step_functions"]
            first["regions"], last["regions"] = last["regions"], first["regions"]
            for plan in (manifest["tokens"]["plan"], manifest["graphs"]["trained_plan"]):
                for row in plan["keep_tenths"]:
                    row[0], row[3] = row[3], row[0]

        edit_json(bundle / "manifest.json", change)
        with pytest.raises(ParityError, match="plan or functions in the manifest are not those that were converted"):
            verify(bundle)

    def test_swapped_functions(self, bundle: Path) -> None:
        manifest = read_manifest(bundle)
        assert manifest.graphs is not None
        first, *middle, last = manifest.graphs.step_functions
        swapped = (replace(first, function=last.function), *middle, replace(last, function=first.function))
        write_manifest(bundle, replace(manifest, graphs=replace(manifest.graphs, step_functions=swapped)))
        with pytest.raises(ParityError):
            verify(bundle)
        (bundle / "reference.npz").unlink()  # seen without it too
        assert {case.split("/")[1] for case in failures(verify(bundle))} == {first.function, last.function}

    def test_another_edge_of_the_regions(self, bundle: Path) -> None:
        edit_json(
            bundle / "manifest.json", lambda manifest: manifest["tokens"]["plan"].update(num_train_timesteps=1004)
        )
        with pytest.raises(ValueRangeError, match="num_train_timesteps is 1004 in the plan and 1000 in the scheduler"):
            read_manifest(bundle)

        def change(manifest: dict[str, Any]) -> None:
            for item in (manifest["spec"]["scheduler"], manifest["graphs"]["trained_plan"]):
                item["num_train_timesteps"] = 1004

        edit_json(bundle / "manifest.json", change)
        with pytest.raises(ParityError, match="plan or functions in the manifest are not those that were converted"):
            verify(bundle)


def place_of(bundle: Path, package: str, constant: str, parameter: str = "source_val") -> tuple[Path, int]:
    """Find the numbers of a constant, or one parameter of a compressed one: file and offset."""
    places = set()

    def look(model: Any) -> None:
        for function in model.mlProgram.functions:
            (item,) = (item for item in block(model, function).operations if item.outputs[0].name == constant)
            value = item.attributes["val"] if item.type == "const" else item.inputs[parameter].arguments[0].value
            places.add(value.blobFileValue.offset)

    edit(bundle / package, look)
    (place,) = places
    path = bundle / package / WEIGHTS
    _, _, _, start = METADATA.unpack_from(path.read_bytes(), place)
    return path, start


WEIGHTS_OF: Final = {
    TRANSFORMER: "transformer_blocks_1_ff_net_2_weight",
    "Prepare.mlpackage": "transformer_blocks_1_attn2_to_k_weight",
    "TextEncoder.mlpackage": "encoder_block_1_layer_0_SelfAttention_o_weight",
    "VAEDecoder.mlpackage": "decoder_conv_out_weight",
    "VAEEncoder.mlpackage": "encoder_conv_in_weight",
}


ROLE_OF: Final = {
    TRANSFORMER: "transformer",
    "Prepare.mlpackage": "transformer",
    "TextEncoder.mlpackage": "text_encoder",
}  # of the cases that show a fault


class TestWeights:
    """One bit of one number."""

    @staticmethod
    def flip(bundle: Path, package: str) -> Path:
        path, start = place_of(bundle, package, WEIGHTS_OF[package])
        data = bytearray(path.read_bytes())
        data[start + 1] ^= 0x40  # the highest bit of a float16's exponent: a factor of 2^16
        path.write_bytes(data)
        return path

    @pytest.mark.parametrize("package", WEIGHTS_OF)
    def test_flipped_bit(self, bundle: Path, package: str) -> None:
        self.flip(bundle, package)
        with pytest.raises(FormatError, match=rf"{package}/.*: its sha256 is not the manifest's"):
            verify(bundle)

    @pytest.mark.parametrize("package", WEIGHTS_OF)
    def test_flipped_bit_under_a_new_hash(self, bundle: Path, package: str) -> None:
        """Only the outputs that were stored with the bundle can tell."""
        self.flip(bundle, package)
        refresh_manifest(bundle)
        failed = [item for item in verify(bundle).outcomes if not item.passed]
        assert failed
        role = ROLE_OF.get(package, "vae")
        assert any(item.case.startswith(role) for item in failed)
        assert all(item.exact_error <= EXACT_TOLERANCE for item in failed)
        assert all(item.stored_error is not None and item.stored_error > EXACT_TOLERANCE for item in failed)


def test_a_negative_scale(source: Path, tmp_path: Path) -> None:
    """As packages had them before; one bit of one scale."""
    bundle = make_bundle(source, tmp_path / "bundle", "--compress", "int8")
    path, start = place_of(bundle, TRANSFORMER, "transformer_blocks_1_ff_net_2_weight", "scale")
    data = bytearray(path.read_bytes())
    data[start + 1] ^= 0x80  # the sign of the first
    path.write_bytes(data)
    refresh_manifest(bundle)
    wanted = r"Transformer.mlpackage: .*'transformer_blocks_1_ff_net_2_weight' .* scale: 1 of 96 are not positive"
    with pytest.raises(ValueRangeError, match=wanted):
        verify(bundle)


def double_the_gate(scores: Any, dtype: str, name: str) -> Any:
    opened = mb.expand_dims(x=mb.sigmoid(x=mb.add(x=scores, y=scores)), axes=[2])
    return mb.cast(x=opened, dtype=dtype, name=name + "_gate")


EXPORTER: Final[dict[str, tuple[Any, str, Callable[[Any], Any]]]] = {
    "capacity": (
        Keeper,
        "keep",
        lambda right: lambda keeper, x, layer, count, name: right(keeper, x, layer, max(1, count - 1), name),
    ),
    "capacity in the manifest too": (
        variants,
        "capacity",
        lambda right: lambda tenths, tokens: max(1, right(tenths, tokens) - 1),
    ),
    "gate": (routing, "gate", lambda _: double_the_gate),
    "mask": (pixart, "MASKED", lambda _: -1.0),
    "epsilon": (transformer, "OUTPUT_NORM_EPS", lambda _: 1e-2),
    "keys and values": (
        PixArtGraph,
        "_project_blocks",
        lambda right: lambda graph, text, part, name: right(graph, text, {"k": "v", "v": "k"}[part], name),
    ),
    "sinusoid": (transformer, "sinusoid_frequencies", lambda right: lambda *numbers: right(*numbers) * 1.01),
    "position": (
        PixArtSpec,
        "position_embedding",
        lambda right: lambda spec, *sizes: np.roll(right(spec, *sizes), 1, axis=0),
    ),
    "buckets": (t5, "relative_buckets", lambda right: lambda *numbers: right(*numbers).T.copy()),
    "padding": (t5, "MASKED", lambda _: 0.0),
    "down-sampling": (vae, "_DOWN_PAD", lambda _: (1, 0, 1, 0)),
}


class TestConversion:
    @pytest.mark.parametrize("fault", EXPORTER)
    def test_a_fault_in_the_exporter_leaves_no_bundle(
        self,
        source: Path,
        tmp_path: Path,
        fault: str,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        module, name, change = EXPORTER[fault]
        monkeypatch.setattr(module, name, change(getattr(module, name)))
        assert to_coreml(source, tmp_path / "bundle") == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert captured.err.startswith("error: [verify] the packages do not compute what the checkpoint does:\n")
        assert "FAILED" in captured.err
        assert list(tmp_path.iterdir()) == []

    def test_what_it_leaves_for_a_later_verification(self, whole: Path) -> None:
        report = json.loads((whole / "parity.json").read_text())
        assert report["passed"] is True
        assert report["picture"] is None
        cases = [item["case"] for item in report["functions"]]
        with np.load(whole / "reference.npz") as arrays:
            assert {name.rsplit("/output", 1)[0] for name in arrays if name.endswith("/output")} == set(cases)
            latents = arrays[f"transformer/{REGION}/t749/input/latents"]
        assert latents.shape == (2, 4, 16, 16)
        assert latents.dtype == np.float32
