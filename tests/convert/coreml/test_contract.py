"""Whatever is looked for in a bundle has the name that the contract gives it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest
from coremltools.proto import Model_pb2

from convert.coreml.package import MODEL_FILE
from convert.verify.interpreter import Arithmetic, Interpreter
from moddit import contract
from moddit.graphs import Graphs
from moddit.manifest import read_manifest
from tests.convert.coreml.bundles import PLAN, Sources, make_bundle
from tests.convert.verify.packages import block

SIZES: Final = ((32, 48), (16, 24))
SWIFT: Final = Path(__file__).parents[3] / "swift_bridge/Sources/ModditCore"


@pytest.fixture(scope="module")
def bundle(sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two chunks of a routed model with micro-conditions, which has every feature of a model of texts."""
    sizes = [word for height, width in SIZES for word in ("--size", f"{height}x{width}")]
    folder = tmp_path_factory.mktemp("contract") / "bundle"
    return make_bundle(sources("alpha-micro"), folder, "--chunks", "2", *sizes)


@pytest.fixture(scope="module")
def graphs(bundle: Path) -> Graphs:
    graphs = read_manifest(bundle).graphs
    assert graphs is not None
    return graphs


def test_files(bundle: Path, graphs: Graphs) -> None:
    for role, packages in graphs.packages.items():
        assert tuple(package.path for package in packages) == contract.package_names(role, len(packages))
    assert contract.package_names("transformer") == ("Transformer.mlpackage",)
    assert (bundle / contract.TOKENIZER).is_file()


def test_functions(graphs: Graphs) -> None:
    names = {role: {item.name for item in packages[0].functions} for role, packages in graphs.packages.items()}
    assert names["text_encoder"] == {contract.TEXT_FUNCTION}
    assert names["prepare"] == {contract.batch_name(batch) for batch in graphs.batches}
    assert names["vae_decoder"] == names["vae_encoder"] == {contract.size_name(*size) for size in SIZES}
    assert names["transformer"] == {
        contract.step_name(item.height, item.width, item.batch, item.regions) for item in graphs.step_functions
    }


def test_features(graphs: Graphs, sources: Sources, tmp_path: Path) -> None:
    of_classes = read_manifest(make_bundle(sources("dit", routed=False), tmp_path / "bundle")).graphs
    assert of_classes is not None
    chains = [*graphs.packages.values(), *of_classes.packages.values()]
    functions = [item for packages in chains for package in packages for item in package.functions]
    inputs, outputs = ({name for item in functions for name in getattr(item, side)} for side in ("inputs", "outputs"))
    assert {contract.taken_name(name) for name in inputs | outputs} == contract.FEATURES.keys()
    handed = {contract.TOKENS, contract.MODULATION, contract.EMBEDDED}
    assert {name for name in outputs if contract.taken_name(name) != name} == set(map(contract.handed_name, handed))


def test_operations_that_tell_which_tokens_are_kept(bundle: Path, graphs: Graphs) -> None:
    (region,) = graphs.step_functions[-1].regions
    found = []
    for path in contract.package_names("transformer", 2):
        model = Model_pb2.Model()
        model.ParseFromString((bundle / path / MODEL_FILE).read_bytes())
        for operation in block(model, graphs.step_functions[-1].function).operations:
            (name,) = operation.attributes["name"].immediateValue.tensor.strings.values
            layer = contract.kept_layer(name)
            if layer is not None:
                assert (name, operation.type) == (contract.block_name(layer) + contract.KEPT, "topk")
                found.append(layer)
    assert found == [layer for layer, row in enumerate(PLAN) if row[region] < 10]
    assert contract.kept_layer("block03_kept_scores") is None


def test_constants(bundle: Path) -> None:
    spec = read_manifest(bundle).spec
    bias = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    wanted = {
        *(
            contract.constant_name(name)
            for part in spec.tensors(has_routers=True).values()
            for name in part
            if name != bias
        ),
        contract.constant_name(bias) + contract.BY_DISTANCE,
    }
    found: set[str] = set()
    for path in bundle.glob("*.mlpackage"):
        interpreter = Interpreter(path, Arithmetic.EXACT)
        found.update(interpreter.constants(interpreter.default_function))
    assert wanted <= found


def test_swift_has_the_same_features() -> None:
    files = ("ModelSpec+Functions", "ConditioningSpec")
    text = "".join((SWIFT / f"Manifest/{name}.swift").read_text(encoding="utf-8") for name in files)
    assert set(re.findall(r'"([a-z_]+)": (?:Feature|latents|image)\b', text)) == contract.FEATURES.keys()
    assert '"' + contract.handed_name(r"\(name)") + '"' in text
