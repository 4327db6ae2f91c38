"""Saved packages: what the compiler, Xcode and a person with a profile see of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from coremltools.proto import MIL_pb2, Model_pb2

from convert.cli import main
from convert.coreml.package import AUTHOR, LICENSE, MODEL_FILE, WEIGHT_FILE
from moddit import __version__
from moddit.manifest import Manifest, read_manifest
from tests.convert.coreml.bundles import make_bundle, quick_garbage
from tests.tiny import save_pipeline

SHARING: Final = 1.02  # weights of all functions, over those of one: graphs differ, weights are stored once
IOS18: Final = 9  # version of the specification
MAX_RANK: Final = 5  # of Core ML's compiler
FLOATS: Final = {MIL_pb2.FLOAT32: "fp32", MIL_pb2.FLOAT16: "fp16", MIL_pb2.INT32: "int32"}
ARRAYS: Final = {65568: "float32", 65552: "float16", 131104: "int32"}  # of FeatureTypes.proto
PACKAGES: Final = (
    "TextEncoder", "Prepare", "Transformer1of2", "Transformer2of2", "VAEDecoder", "VAEEncoder",
)  # fmt: skip


@pytest.fixture(scope="module")
def bundle(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(source, tmp_path_factory.mktemp("package") / "bundle", "--chunks", "2", "--batch", "2")


@pytest.fixture(scope="module")
def onehot(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(source, tmp_path_factory.mktemp("onehot") / "bundle", "--routing", "onehot")


def read(bundle: Path, package: str) -> Any:
    model = Model_pb2.Model()
    model.ParseFromString((bundle / f"{package}.mlpackage" / MODEL_FILE).read_bytes())
    return model


def operations(model: Any) -> Iterator[tuple[str, Any]]:
    for name, function in model.mlProgram.functions.items():
        (block,) = function.block_specializations.values()
        for operation in block.operations:
            yield name, operation


def dtype_of(output: Any) -> str:
    return FLOATS[output.type.tensorType.dataType]


@pytest.mark.parametrize("package", PACKAGES)
class TestEveryPackage:
    def test_target(self, bundle: Path, package: str) -> None:
        model = read(bundle, package)
        assert model.specificationVersion == IOS18
        assert {function.opset for function in model.mlProgram.functions.values()} == {"CoreML8"}

    def test_names_are_identifiers_that_name_one_value(self, bundle: Path, package: str) -> None:
        seen: set[tuple[str, str]] = set()
        for function, operation in operations(read(bundle, package)):
            for output in operation.outputs:
                assert re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", output.name)
                assert (function, output.name) not in seen, output.name
                seen.add((function, output.name))
        assert not [name for _, name in seen if re.fullmatch(r"(op|var|tmp|mul|add|cast|linear|reshape)_?\d*", name)]

    def test_ranks(self, bundle: Path, package: str) -> None:
        for _, operation in operations(read(bundle, package)):
            for output in operation.outputs:
                assert output.type.tensorType.rank <= MAX_RANK, output.name

    def test_gelu_is_that_of_the_model(self, bundle: Path, package: str) -> None:
        """coremltools' converter from torch.export writes the exact form for the approximation by tanh."""
        strings = {
            (function, operation.outputs[0].name): operation.attributes["val"].immediateValue.tensor.strings.values
            for function, operation in operations(read(bundle, package))
            if operation.type == "const"
        }
        modes = [
            strings[function, operation.inputs["mode"].arguments[0].name][0]
            for function, operation in operations(read(bundle, package))
            if operation.type == "gelu"
        ]
        assert bool(modes) == (not package.startswith("VAE"))
        assert set(modes) <= {"TANH_APPROXIMATION"}

    def test_description(self, bundle: Path, package: str) -> None:
        description = read(bundle, package).description
        metadata = description.metadata
        assert (metadata.author, metadata.license, metadata.versionString) == (AUTHOR, LICENSE, __version__)
        assert metadata.shortDescription
        assert description.defaultFunctionName in {function.name for function in description.functions}
        for function in description.functions:
            assert function.input
            assert function.output
            for feature in (*function.input, *function.output):
                assert feature.shortDescription, feature.name

    def test_the_manifest_has_its_features(self, bundle: Path, package: str) -> None:
        manifest = read_manifest(bundle)
        listed = find_package(manifest, f"{package}.mlpackage")
        described = read(bundle, package).description.functions
        assert [function.name for function in listed.functions] == [function.name for function in described]
        for wanted, found in zip(listed.functions, described, strict=True):
            for features, items in ((wanted.inputs, found.input), (wanted.outputs, found.output)):
                assert {name: (feature.shape, feature.dtype) for name, feature in features.items()} == {
                    item.name: (tuple(item.type.multiArrayType.shape), ARRAYS[item.type.multiArrayType.dataType])
                    for item in items
                }


def find_package(manifest: Manifest, path: str) -> Any:
    assert manifest.graphs is not None
    return next(item for packages in manifest.graphs.packages.values() for item in packages if item.path == path)


class TestPrecision:
    @pytest.mark.parametrize("package", ["Transformer1of2", "Transformer2of2"])
    def test_what_is_float32(self, bundle: Path, package: str) -> None:
        wide = re.compile(r"block\d\d_(router|router_input|scores|kept_0|sigmoid)|.*_(angles|cos|sin|sinusoid)")
        names = set()
        for _, operation in operations(read(bundle, package)):
            for output in operation.outputs:
                if operation.type != "const" and wide.fullmatch(output.name):
                    assert dtype_of(output) == "fp32", output.name
                    names.add(re.sub(r"block\d\d_", "", output.name))
        assert names >= {"router", "scores", "kept_0", "sigmoid"}
        if package == "Transformer1of2":
            assert names >= {"timestep_angles", "timestep_cos", "timestep_sin", "timestep_sinusoid"}

    def test_onehot_ranks_in_float32(self, onehot: Path) -> None:
        compared = {
            output.name: operation
            for _, operation in operations(read(onehot, "Transformer"))
            for output in operation.outputs
            if re.fullmatch(r"block\d\d_(greater|equal)", output.name)
        }
        assert compared
        scores = {
            output.name: dtype_of(output)
            for _, operation in operations(read(onehot, "Transformer"))
            for output in operation.outputs
            if re.fullmatch(r"block\d\d_(row|column)", output.name)
        }
        for operation in compared.values():
            assert {scores[operation.inputs[side].arguments[0].name] for side in "xy"} == {"fp32"}

    def test_blocks_are_float16(self, bundle: Path) -> None:
        for _, operation in operations(read(bundle, "Transformer2of2")):
            if operation.type in ("linear", "gelu", "layer_norm", "scaled_dot_product_attention"):
                wanted = "fp32" if operation.outputs[0].name.endswith("_router") else "fp16"
                assert dtype_of(operation.outputs[0]) == wanted, operation.outputs[0].name


class TestPrepared:
    """Keys and values of the text are computed once a picture, where nothing else is."""

    TEXT: Final = re.compile(r"text_linear_\d|text_gelu|block\d\d_attn2_to_[kv]")

    def test_no_step_computes_what_is_prepared(self, bundle: Path) -> None:
        names = {
            package: {output.name for _, item in operations(read(bundle, package)) for output in item.outputs}
            for package in PACKAGES
        }
        wanted = {"text_linear_1", "text_gelu", "text_linear_2"}
        wanted |= {f"block{layer:02}_attn2_to_{part}" for layer in range(3) for part in "kv"}
        assert {name for name in names["Prepare"] if self.TEXT.fullmatch(name)} == wanted
        for package in ("Transformer1of2", "Transformer2of2"):
            assert not [name for name in names[package] if self.TEXT.fullmatch(name)]
            assert not [name for name in names[package] if re.search(r"attn2_to_[kv]_|caption_projection", name)]

    def test_a_block_takes_its_own(self, bundle: Path) -> None:
        for package, layers in (("Transformer1of2", {0, 1}), ("Transformer2of2", {2})):
            slices = {item.outputs[0].name for _, item in operations(read(bundle, package))
                      if item.type == "slice_by_index"}  # fmt: skip
            assert slices == {f"block{layer:02}_text_{part}" for layer in layers for part in ("keys", "values")}


@pytest.mark.parametrize(("head_width", "dtype"), [(8, "fp32"), (16, "fp16")])
def test_attention_of_t5_is_one_operation(tmp_path: Path, head_width: int, dtype: str) -> None:
    """Its queries are multiplied by what the operation divides them by, in a dtype that holds the factor."""
    source = save_pipeline(tmp_path / "source", text_encoder={"d_kv": head_width})
    found = [item for _, item in operations(read(make_bundle(source, tmp_path / "bundle"), "TextEncoder"))]
    attention = [item for item in found if item.type == "scaled_dot_product_attention"]
    assert [item.inputs["attn_mask"].arguments[0].name for item in attention] == ["attention_bias"] * 2  # layers
    assert not {item.type for item in found} & {"matmul", "softmax"}
    factors = [item.outputs[0] for item in found if item.outputs[0].name.endswith("_q_unscaled")]
    assert [dtype_of(item) for item in factors] == [dtype] * 2


class TestRouting:
    MOVING: Final = {"topk", "gather", "scatter", "gather_along_axis", "argsort", "one_hot", "gather_nd"}

    def test_rows(self, bundle: Path) -> None:
        found = [item for _, item in operations(read(bundle, "Transformer2of2"))]
        names = {output.name for item in found for output in item.outputs}
        assert {"block02_router", "block02_kept_0", "block02_gather", "block02_gate", "block02_scatter"} <= names
        assert {item.type for item in found} & self.MOVING == {"topk", "gather", "scatter"}

    def test_onehot_moves_tokens_by_products_alone(self, onehot: Path) -> None:
        """The Neural Engine may still not have all of it: `test_onehot_ranks_in_float32`."""
        types = {item.type for _, item in operations(read(onehot, "Transformer"))}
        assert not types & self.MOVING
        graphs = read_manifest(onehot).graphs
        assert graphs is not None
        assert (graphs.routing, graphs.compute_units) == ("onehot", "all")


@pytest.mark.parametrize("scheme", ["none", "int4"])
def test_functions_share_their_weights(tmp_path: Path, scheme: str) -> None:
    """The embedded checkpoint, with all of its rows and with one."""
    sizes = {}
    for name, options in {"all": (), "one": ("--max-functions", "1")}.items():
        out = tmp_path / name
        arguments = ["--from", "hf-checkpoint", "--to", "coreml", "--no-verify", "--compress", scheme, *options]
        with quick_garbage():
            assert main([*arguments, "--out", str(out)]) == 0
        graphs = read_manifest(out).graphs
        assert graphs is not None
        sizes[name] = len(graphs.step_functions), (out / "Transformer.mlpackage" / WEIGHT_FILE).stat().st_size
    assert sizes["all"][0] > sizes["one"][0] == 1
    assert sizes["all"][1] <= SHARING * sizes["one"][1]
