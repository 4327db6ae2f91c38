"""The description of a bundle's functions is read strictly, and has to fit the model and its plan."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import pytest

from moddit.errors import FormatError, InputError, MissingError, ShapeError
from moddit.graphs import ROLES, Denoiser, Feature, GraphFunction, Graphs, Package, size_name
from moddit.routing import RoutingPlan
from moddit.samplers import NoiseSchedule
from moddit.spec import ModelSpec, PixArtSpec, T5Spec, VAESpec

SCHEDULER: Final = {
    "_class_name": "DPMSolverMultistepScheduler", "num_train_timesteps": 1000, "beta_schedule": "linear",
    "beta_start": 0.0001, "beta_end": 0.02, "prediction_type": "epsilon",
}  # fmt: skip
SPEC: Final = ModelSpec(
    transformer=PixArtSpec(2, 2, 4, 4, 4, 2, 8, 8, 6, 1.0, True, 1e-6, False),
    text_encoder=T5Spec(10, 6, 3, 8, 1, 2, 32, 128, True, "gelu_new", 1e-6),
    vae=VAESpec(3, 3, 4, (8, 8), 1, 4, 0.5, 0.0, True, True, False),
    scheduler=NoiseSchedule.from_diffusers(SCHEDULER, "scheduler_config.json"),
    max_sequence_length=12,
)
PLAN: Final = RoutingPlan(((10, 5, 5), (7, 3, 3)))  # two rows, three regions
DENOISERS: Final = (
    Denoiser("wide_0", 16, 32, 2, (0,), (32, 23)),
    Denoiser("wide_1_2", 16, 32, 2, (1, 2), (16, 10)),
    Denoiser("square_0", 16, 16, 2, (0,), (16, 12)),
    Denoiser("square_1_2", 16, 16, 2, (1, 2), (8, 5)),
)


def make_package(path: str, names: tuple[str, ...]) -> Package:
    feature = {"latents": Feature((2, 4, 8, 8), "float32")}
    functions = tuple(GraphFunction(name, feature, {"out": Feature((1,), "float16")}) for name in names)
    return Package(path, functions)


def make_graphs(denoisers: tuple[Denoiser, ...] = DENOISERS, **changes: Any) -> Graphs:
    sizes = dict.fromkeys(size_name(item.height, item.width) for item in denoisers)
    packages: dict[str, tuple[Package, ...]] = {
        role: (make_package(f"{role}.mlpackage", ("run",) if role == "text_encoder" else tuple(sizes)),)
        for role in ROLES
    }
    names = tuple(item.function for item in denoisers)
    packages["transformer"] = tuple(make_package(f"part{number}.mlpackage", names) for number in (1, 2))
    graphs = Graphs({"iOS": "18.0", "macOS": "15.0"}, "cpuAndGPU", "rows", packages, denoisers, None)
    return replace(graphs, **changes)


@pytest.mark.parametrize("trained", [None, RoutingPlan.uniform(2, 3, 4)])
def test_round_trip(trained: RoutingPlan | None) -> None:
    graphs = make_graphs(trained_plan=trained)
    assert Graphs.from_json(json.loads(json.dumps(graphs.to_json())), "test") == graphs


class TestReading:
    @pytest.mark.parametrize(
        "path",
        [
            (),
            ("packages",),
            ("packages", "vae_decoder", 0),
            ("packages", "vae_decoder", 0, "functions", 0),
            ("packages", "vae_decoder", 0, "functions", 0, "inputs", "latents"),
            ("denoisers", 1),
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
                Graphs.from_json(less, "test")
        more = json.loads(json.dumps(whole))
        place(more)["more"] = 1
        with pytest.raises(FormatError, match="'more'"):
            Graphs.from_json(more, "test")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda value: value.update(packages=[]), r"test.packages: got list, want an object"),
            (lambda value: value["packages"].update(transformer={}), "got dict, want a list"),
            (lambda value: value["packages"]["vae_decoder"][0].update(functions=None), "got NoneType, want a list"),
            (lambda value: value["packages"]["vae_decoder"][0]["functions"][0].update(inputs=[]), "object of features"),
            (lambda value: feature(value).update(dtype="float64"), "dtype is 'float64', want float32, float16, int32"),
            (lambda value: feature(value).update(shape=8), "latents.shape: got int, want a list"),
            (lambda value: feature(value).update(shape=[2, 0]), "want integers of at least 1"),
            (lambda value: feature(value).update(shape=[2.0]), "want integers of at least 1"),
            (lambda value: value.update(denoisers={}), "denoisers: got dict, want a list"),
            (lambda value: value.update(denoisers=[]), "denoisers: got an empty list"),
            (lambda value: value.update(routing="columns"), "routing: got 'columns', want rows or onehot"),
            (lambda value: value.update(compute_units=5), "compute_units: got 5, want cpuAndGPU"),
            (lambda value: value["minimum_os"].update(iOS=18), "minimum_os.iOS: got 18, want a text"),
            (lambda value: value["packages"]["vae_decoder"][0].update(path="../x"), "'../x' leaves the bundle"),
            (lambda value: value["packages"]["vae_decoder"][0].update(path="/x"), "'/x' leaves the bundle"),
            (lambda value: value["denoisers"][1].update(batch=True), r"denoisers\[1\]: .*want integers of at least 1"),
            (lambda value: value["denoisers"][1].update(height="16"), r"denoisers\[1\]: .*want integers"),
            (lambda value: value["denoisers"][1].update(regions=[-1]), "regions: .*want integers of at least 0"),
            (lambda value: value["denoisers"][1].update(capacities=[0]), "capacities: .*want integers of at least 1"),
            (lambda value: value.update(trained_plan=[]), r"test.trained_plan: it is \[\], want an object"),
        ],
    )
    def test_values_of_another_type(self, change: Callable[[Any], object], message: str) -> None:
        value = json.loads(json.dumps(make_graphs().to_json()))
        change(value)
        with pytest.raises(FormatError, match=message):
            Graphs.from_json(value, "test")


def feature(value: Any) -> Any:
    return value["packages"]["vae_decoder"][0]["functions"][0]["inputs"]["latents"]


class TestLookup:
    def test_what_a_bundle_can_draw(self) -> None:
        graphs = make_graphs()
        assert graphs.sizes == ((16, 32), (16, 16))
        assert graphs.batches == (2,)

    def test_denoiser(self) -> None:
        graphs = make_graphs()
        assert graphs.denoiser(16, 32, 2, 0) == DENOISERS[0]
        assert graphs.denoiser(16, 16, 2, 1) is graphs.denoiser(16, 16, 2, 2) is DENOISERS[3]

    @pytest.mark.parametrize("asked", [(32, 16, 2, 0), (16, 16, 1, 0), (16, 16, 2, 3)])
    def test_none_for_what_is_asked(self, asked: tuple[int, int, int, int]) -> None:
        with pytest.raises(MissingError, match="the bundle has sizes 16x32, 16x16 and batches 2"):
            make_graphs().denoiser(*asked)

    def test_function_of_a_package(self) -> None:
        package = make_graphs().packages["transformer"][0]
        assert package.function("square_0").name == "square_0"
        with pytest.raises(MissingError, match=r"part1.mlpackage: has no function 'cube', got \['wide_0', "):
            package.function("cube")


class TestCheck:
    def test_a_whole_description(self) -> None:
        make_graphs().check(SPEC, PLAN, "test")

    def test_a_dense_model(self) -> None:
        whole = Denoiser("all", 16, 16, 2, (0,), (16, 16))
        make_graphs((whole,)).check(SPEC, None, "test")
        with pytest.raises(ShapeError, match=r"keeps \[16, 15\] tokens by layer, the plan says \[16, 16\] in region 0"):
            make_graphs((replace(whole, capacities=(16, 15)),)).check(SPEC, None, "test")

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"capacities": (8, 4)}, ShapeError, r"function 'square_1_2' keeps \[8, 4\] .* says \[8, 5\] in region 1"),
            ({"capacities": (8,)}, ShapeError, r"keeps \[8\]"),
            ({"regions": (2,)}, MissingError, "no function for 16x16 pixels, batch 2, region 1"),
            ({"regions": (0, 1, 2)}, ShapeError, "want one function for each of 3 regions"),
            ({"regions": (1, 2, 2)}, ShapeError, "want one function for each of 3 regions"),
            ({"regions": (1, 2, 3)}, ShapeError, "want one function for each of 3 regions"),
            ({"batch": 1}, MissingError, "no function for 16x32 pixels, batch 1"),
            ({"height": 17}, InputError, "17|16x16"),
        ],
    )
    def test_what_does_not_fit(self, change: dict[str, Any], error: type[InputError], message: str) -> None:
        *others, last = DENOISERS
        with pytest.raises(error, match=message):
            make_graphs((*others, replace(last, **change))).check(SPEC, PLAN, "test")

    @pytest.mark.parametrize(
        ("role", "number"), [("transformer", 0), ("transformer", 1), ("vae_decoder", 0), ("text_encoder", 0)]
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
