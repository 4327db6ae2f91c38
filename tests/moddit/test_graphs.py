"""The description of a bundle's functions is read strictly, and has to fit the model and its plan."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import pytest

from moddit.conditioning import Text
from moddit.errors import FormatError, InputError, MissingError, ShapeError
from moddit.graphs import (
    Feature,
    GraphFunction,
    Graphs,
    GraphsRecord,
    Package,
    StepFunction,
    encoder_function,
    prepare_function,
    step_features,
    vae_function,
)
from moddit.record import Origin, decode
from moddit.routing import RoutingPlan
from moddit.spec import ModelSpec
from tests.moddit.specs import LABEL
from tests.moddit.specs import TEXT as SPEC

PLAN: Final = RoutingPlan(((10, 5, 5), (7, 3, 3)))  # two rows, three regions
DENSE: Final = RoutingPlan.uniform(2, 1, 10)
SIDES: Final = ("inputs", "outputs")
STEPS: Final = (
    StepFunction("wide_0", 16, 32, 2, (0,), (32, 23)),
    StepFunction("wide_1_2", 16, 32, 2, (1, 2), (16, 10)),
    StepFunction("square_0", 16, 16, 2, (0,), (16, 12)),
    StepFunction("square_1_2", 16, 16, 2, (1, 2), (8, 5)),
)


def make_graphs(step_functions: tuple[StepFunction, ...] = STEPS, *, spec: ModelSpec = SPEC, **changes: Any) -> Graphs:
    sizes = dict.fromkeys((item.height, item.width) for item in step_functions)
    packages: dict[str, tuple[Package, ...]] = {
        role: (Package(f"{role}.mlpackage", tuple(vae_function(spec, role, *size) for size in sizes)),)
        for role in ("vae_decoder", "vae_encoder")
    }
    if isinstance(spec.conditioning, Text):
        packages["text_encoder"] = (
            Package("text_encoder.mlpackage", (encoder_function(spec, "text_encoder", "run"),)),
        )
        batches = dict.fromkeys(item.batch for item in step_functions)
        packages["prepare"] = (Package("prepare.mlpackage", tuple(prepare_function(spec, batch) for batch in batches)),)
    packages["transformer"] = tuple(
        Package(
            f"part{number}.mlpackage",
            tuple(step_features(spec, item, is_first=number == 1, is_last=number == 2) for item in step_functions),
        )
        for number in (1, 2)
    )
    graphs = Graphs({"iOS": "18.0", "macOS": "15.0"}, "cpuAndGPU", "rows", packages, step_functions, PLAN)
    return replace(graphs, **changes)


def read(value: Any, where: str) -> Graphs:
    return Graphs.of(decode(value, GraphsRecord, Origin("graphs", where)), where)


@pytest.mark.parametrize("trained", [PLAN, RoutingPlan.uniform(2, 3, 4)])
def test_round_trip(trained: RoutingPlan) -> None:
    graphs = make_graphs(trained_plan=trained)
    assert read(json.loads(json.dumps(graphs.to_json())), "test") == graphs


class TestReading:
    @pytest.mark.parametrize(
        "path",
        [
            (),
            ("packages", "vae_decoder", 0),
            ("packages", "vae_decoder", 0, "functions", 0),
            ("packages", "vae_decoder", 0, "functions", 0, "inputs", "latents"),
            ("step_functions", 1),
            ("minimum_os",),
        ],
        ids=lambda path: ".".join(map(str, path)) or "graphs",
    )
    def test_objects_have_exactly_their_fields(self, path: tuple[str | int, ...]) -> None:
        def place(value: Any) -> Any:
            for step in path:
                value = value[step]
            return value

        whole = make_graphs().to_json()
        for name in place(whole):
            less = copy.deepcopy(json.loads(json.dumps(whole)))
            del place(less)[name]
            with pytest.raises(FormatError, match="want an object with exactly"):
                read(less, "test")
        more = json.loads(json.dumps(whole))
        place(more)["more"] = 1
        with pytest.raises(FormatError, match="'more'"):
            read(more, "test")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda value: value.update(packages=[]), r"test: packages is \[\], want an object"),
            (lambda value: value["packages"].update(transformer={}), r"packages.transformer is \{\}, want a list"),
            (
                lambda value: value["packages"]["vae_decoder"][0].update(functions=None),
                r"vae_decoder\[0\].functions is null, want a list",
            ),
            (
                lambda value: value["packages"]["vae_decoder"][0]["functions"][0].update(inputs=[]),
                r"functions\[0\].inputs is \[\], want an object",
            ),
            (
                lambda value: feature(value).update(dtype="float64"),
                "dtype is 'float64', want float32 or float16 or int32",
            ),
            (lambda value: feature(value).update(shape=8), "latents.shape is 8, want a list"),
            (lambda value: feature(value).update(shape=[2, 0]), r"latents.shape\[1\] is 0, want at least 1"),
            (lambda value: feature(value).update(shape=[2.0]), r"latents.shape\[0\] is 2.0, want an integer"),
            (lambda value: value.update(step_functions={}), r"step_functions is \{\}, want a list"),
            (lambda value: value.update(step_functions=[]), "step_functions is of length 0, want at least 1"),
            (lambda value: value.update(routing="columns"), "routing is 'columns', want rows or onehot"),
            (lambda value: value.update(compute_units=5), "compute_units is 5, want a text"),
            (lambda value: value["minimum_os"].update(iOS=18), "minimum_os.iOS is 18, want a text"),
            (
                lambda value: value["packages"]["vae_decoder"][0].update(path="../x"),
                r"path is '\.\./x', want a path inside",
            ),
            (
                lambda value: value["packages"]["vae_decoder"][0].update(path="/x"),
                "path is '/x', want a path inside the bundle",
            ),
            (
                lambda value: value["step_functions"][1].update(batch=True),
                r"step_functions\[1\].batch is True, want an integer",
            ),
            (
                lambda value: value["step_functions"][1].update(height="16"),
                r"step_functions\[1\].height is '16', want an integer",
            ),
            (lambda value: value["step_functions"][1].update(regions=[-1]), r"regions\[0\] is -1, want at least 0"),
            (lambda value: value["step_functions"][1].update(capacities=[0]), r"capacities\[0\] is 0, want at least 1"),
            (lambda value: value.update(trained_plan=[]), r"trained_plan is \[\], want an object"),
        ],
    )
    def test_values_of_another_type(self, change: Callable[[Any], object], message: str) -> None:
        value = json.loads(json.dumps(make_graphs().to_json()))
        change(value)
        with pytest.raises(InputError, match=rf"\[graphs\] test: .*{message.removeprefix('test: ')}"):
            read(value, "test")


def feature(value: Any) -> Any:
    return value["packages"]["vae_decoder"][0]["functions"][0]["inputs"]["latents"]


class TestLookup:
    def test_what_a_bundle_can_draw(self) -> None:
        graphs = make_graphs()
        assert graphs.sizes == ((16, 32), (16, 16))
        assert graphs.batches == (2,)

    def test_function_of_a_step(self) -> None:
        graphs = make_graphs()
        assert graphs.step_function(16, 32, 2, 0) == STEPS[0]
        assert graphs.step_function(16, 16, 2, 1) is graphs.step_function(16, 16, 2, 2) is STEPS[3]

    @pytest.mark.parametrize("asked", [(32, 16, 2, 0), (16, 16, 1, 0), (16, 16, 2, 3)])
    def test_none_for_what_is_asked(self, asked: tuple[int, int, int, int]) -> None:
        with pytest.raises(MissingError, match="the bundle has sizes 16x32, 16x16 and batches 2"):
            make_graphs().step_function(*asked)

    def test_a_step_is_prepared_and_needs_not_be_told_what_that_gives(self) -> None:
        graphs = make_graphs()
        assert [(package.path, function.name) for package, function in graphs.calls("transformer", "square_0")] == [
            ("prepare.mlpackage", "batch2"),
            ("part1.mlpackage", "square_0"),
            ("part2.mlpackage", "square_0"),
        ]
        assert graphs.told("transformer", "square_0").keys() == {"latents", "timestep", "text", "text_mask"}
        assert graphs.runs().keys() == {"text_encoder", "transformer", "vae_decoder", "vae_encoder"}
        labels = make_graphs(spec=LABEL)
        assert [package.path for package, _ in labels.calls("transformer", "square_0")] == [
            "part1.mlpackage",
            "part2.mlpackage",
        ]
        assert labels.told("transformer", "square_0").keys() == {"latents", "timestep", "labels"}

    def test_function_of_a_package(self) -> None:
        package = make_graphs().packages["transformer"][0]
        assert package.function("square_0").name == "square_0"
        with pytest.raises(MissingError, match=r"part1.mlpackage: has no function 'cube', got \['wide_0', "):
            package.function("cube")


class TestCheck:
    def test_a_whole_description(self) -> None:
        make_graphs().check(SPEC, PLAN, "test")

    def test_a_model_of_labels_has_no_text(self) -> None:
        graphs = make_graphs(spec=LABEL)
        graphs.check(LABEL, PLAN, "test")
        first, last = (package.functions[0] for package in graphs.packages["transformer"])
        hidden = LABEL.transformer.hidden_size
        assert first.inputs == {
            "latents": Feature((2, 4, 8, 16), "float32"),
            "timestep": Feature((1,), "float32"),
            "labels": Feature((2,), "int32"),
        }
        assert first.outputs == {"tokens_out": Feature((2, 32, hidden), "float16")}
        assert last.inputs == {
            "tokens": Feature((2, 32, hidden), "float16"),
            "timestep": Feature((1,), "float32"),
            "labels": Feature((2,), "int32"),
        }
        with pytest.raises(FormatError, match=r"packages are 'prepare', 'text_enc.*want exactly 'transformer', 'vae_d"):
            make_graphs().check(LABEL, PLAN, "test")

    @pytest.mark.parametrize("role", ["text_encoder", "prepare", "transformer", "vae_decoder", "vae_encoder"])
    def test_packages_are_those_of_the_model(self, role: str) -> None:
        graphs = make_graphs()
        less = {name: chain for name, chain in graphs.packages.items() if name != role}
        more = {**graphs.packages, "upscaler": graphs.packages[role]}
        for packages in (less, more):
            with pytest.raises(FormatError, match=r"test: packages are '.*, want exactly 'prepare', 'text_enc"):
                replace(graphs, packages=packages).check(SPEC, PLAN, "test")

    @pytest.mark.parametrize("role", ["text_encoder", "prepare", "vae_decoder", "vae_encoder"])
    def test_only_a_transformer_is_divided(self, role: str) -> None:
        graphs = make_graphs()
        twice = {**graphs.packages, role: graphs.packages[role] * 2}
        with pytest.raises(FormatError, match=f"test: packages.{role} is of length 2, want 1"):
            replace(graphs, packages=twice).check(SPEC, PLAN, "test")

    def test_a_dense_model(self) -> None:
        whole = StepFunction("all", 16, 16, 2, (0,), (16, 16))
        make_graphs((whole,)).check(SPEC, DENSE, "test")
        with pytest.raises(ShapeError, match=r"keeps \[16, 15\] tokens by layer, the plan says \[16, 16\] in region 0"):
            make_graphs((replace(whole, capacities=(16, 15)),)).check(SPEC, DENSE, "test")

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"capacities": (8, 4)}, ShapeError, r"function 'square_1_2' keeps \[8, 4\] .* says \[8, 5\] in region 1"),
            ({"capacities": (8,)}, ShapeError, r"keeps \[8\]"),
            ({"regions": (2,)}, MissingError, "no function for 16x16 pixels, batch 2, region 1"),
            ({"regions": (1, 2, 2, 0)}, ShapeError, "want one function for each of 3 regions"),
            ({"regions": (1, 2, 2)}, ShapeError, "want one function for each of 3 regions"),
            ({"regions": (1, 2, 3)}, ShapeError, "want one function for each of 3 regions"),
            ({"batch": 1}, MissingError, "no function for 16x32 pixels, batch 1"),
            ({"height": 17}, InputError, "17|16x16"),
        ],
    )
    def test_what_does_not_fit(self, change: dict[str, Any], error: type[InputError], message: str) -> None:
        *others, last = STEPS
        with pytest.raises(error, match=message):
            make_graphs((*others, replace(last, **change))).check(SPEC, PLAN, "test")

    @pytest.mark.parametrize(
        ("role", "number", "side", "name", "feature", "message"),
        [
            ("transformer", 0, "inputs", "latents", Feature((2, 4, 9, 9), "float32"), r"got 'latents' \[2, 4, 9, 9\]"),
            ("transformer", 0, "inputs", "latents", Feature((2, 4, 8, 16), "float16"), "float16, want 'latents'"),
            ("transformer", 0, "inputs", "resolution", Feature((2,), "float32"), "want no 'resolution'"),
            ("transformer", 1, "inputs", "text_mask", None, "got no 'text_mask'"),
            ("transformer", 1, "inputs", "text_keys", None, "got no 'text_keys'"),
            ("transformer", 0, "inputs", "text", Feature((2, 12, 8), "float32"), "want no 'text'"),
            ("prepare", 0, "inputs", "text", None, "got no 'text'"),
            ("prepare", 0, "outputs", "text_values", Feature((4, 2, 12, 4), "float32"), "float32, want 'text_values'"),
            (
                "transformer",
                0,
                "outputs",
                "tokens_out",
                Feature((2, 32, 9), "float16"),
                r"want 'tokens_out' \[2, 32, 8\]",
            ),
            ("transformer", 1, "outputs", "prediction", None, "got no 'prediction'"),
            (
                "text_encoder",
                0,
                "inputs",
                "input_ids",
                Feature((1, 12), "float32"),
                r"want 'input_ids' \[1, 12\] int32",
            ),
            ("text_encoder", 0, "outputs", "text", Feature((1, 12, 7), "float32"), "want 'text'"),
            ("vae_decoder", 0, "inputs", "latents", None, "got no 'latents'"),
            ("vae_decoder", 0, "outputs", "image", Feature((1, 3, 16, 33), "float32"), "want 'image'"),
            ("vae_encoder", 0, "outputs", "moments", Feature((1, 4, 8, 16), "float32"), "want 'moments'"),
        ],
    )
    def test_features_are_the_models(
        self, role: str, number: int, side: str, name: str, feature: Feature | None, message: str
    ) -> None:
        graphs = make_graphs()
        package = graphs.packages[role][number]
        first, *others = package.functions
        features = {key: value for key, value in getattr(first, side).items() if key != name}
        if feature is not None:
            features[name] = feature
        changed = GraphFunction(first.name, *(features if item == side else getattr(first, item) for item in SIDES))
        chain = list(graphs.packages[role])
        chain[number] = replace(package, functions=(changed, *others))
        wrong = replace(graphs, packages={**graphs.packages, role: tuple(chain)})
        with pytest.raises(ShapeError, match=f"{package.path} has other {side} in .*{message}"):
            wrong.check(SPEC, PLAN, "test")

    @pytest.mark.parametrize(
        ("role", "number"),
        [("transformer", 0), ("transformer", 1), ("prepare", 0), ("vae_decoder", 0), ("text_encoder", 0)],
    )
    def test_packages_have_the_functions_that_are_used_and_no_others(self, role: str, number: int) -> None:
        graphs = make_graphs()
        package = graphs.packages[role][number]
        functions = package.functions
        for wrong in (functions[:-1], (*functions, functions[0]), (*functions, replace(functions[0], name="more"))):
            chain = list(graphs.packages[role])
            chain[number] = replace(package, functions=wrong)
            changed = replace(graphs, packages={**graphs.packages, role: tuple(chain)})
            with pytest.raises(ShapeError, match=f"{package.path} has functions"):
                changed.check(SPEC, PLAN, "test")
