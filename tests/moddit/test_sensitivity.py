"""Bits go to the layers that lose most without them."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from moddit.errors import FormatError, InputError, MissingError, ValueRangeError
from moddit.quantization import Packing
from moddit.sensitivity import FORMAT, REPORT_VERSION, Layer, Loss, QuantReport, allocate

SCALES = 2  # bytes of a scale


def make_layer(name: str, weights: int, scale: float, bits: tuple[int, ...] = (3, 4, 5, 6, 8)) -> Layer:
    """Make one whose error falls fourfold with each bit."""
    losses = tuple(Loss(count, 64, "affine", scale / 4**count) for count in bits)
    return Layer("transformer", (name,), weights, losses)


def mean_bits(layers: list[Layer], chosen: dict[str, Packing]) -> float:
    bits = [layer.weights * chosen[layer.tensors[0]].bits_per_weight(SCALES) for layer in layers]
    return sum(bits) / sum(layer.weights for layer in layers)


def error(layers: list[Layer], chosen: dict[str, Packing]) -> float:
    found = ({loss.packing: loss.error for loss in layer.losses}[chosen[layer.tensors[0]]] for layer in layers)
    return sum(found)


class TestAllocate:
    @pytest.mark.parametrize("target", [3.5, 4.0, 4.5, 5.25, 8.5])
    def test_the_target_is_met_and_never_exceeded(self, target: float) -> None:
        rng = np.random.default_rng(0)
        layers = [
            make_layer(f"{number}", int(rng.integers(1, 9)) * 1000, 10 ** rng.uniform(-3, 3)) for number in range(40)
        ]
        found = mean_bits(layers, allocate(layers, target, SCALES))
        assert target - 0.1 < found <= target

    def test_no_other_choice_is_better(self) -> None:
        layers = [make_layer("a", 100, 1.0), make_layer("b", 100, 900.0), make_layer("c", 100, 30.0)]
        chosen = allocate(layers, 5.5, SCALES)
        assert [chosen[name].bits for name in "abc"] == [3, 8, 4]
        options = [[loss.packing for loss in layer.losses] for layer in layers]
        for packings in product(*options):
            other = dict(zip("abc", packings, strict=True))
            assert mean_bits(layers, other) > 5.5 or error(layers, other) >= error(layers, chosen)

    def test_a_packing_that_takes_more_and_loses_more_is_not_taken(self) -> None:
        losses = (Loss(3, 64, "affine", 0.5), Loss(4, 32, "mxfp4", 0.9), Loss(4, 64, "affine", 0.4))
        layers = [Layer("transformer", ("a", "b"), 10, losses)]
        four = Packing(4, 64, "affine")
        assert allocate(layers, 4.5, SCALES) == {"a": four, "b": four}
        assert allocate(layers, 4.4, SCALES)["a"] == Packing(3, 64, "affine")

    @pytest.mark.parametrize("target", [3.4, 8.6])
    def test_a_target_out_of_reach_is_refused(self, target: float) -> None:
        with pytest.raises(ValueRangeError, match=rf"target of {target} bits .* want 3\.5 to 8\.5, scales included"):
            allocate([make_layer("a", 10, 1.0)], target, SCALES)


class TestReport:
    @pytest.fixture
    def report(self) -> QuantReport:
        layers = (make_layer("a", 10, 1.0), replace(make_layer("b", 20, 1.0), component="text_encoder"))
        return QuantReport(FORMAT, REPORT_VERSION, "somewhere", "0" * 64, ("a circle",), 4, layers)

    def test_round_trip(self, report: QuantReport, tmp_path: Path) -> None:
        (tmp_path / "report.json").write_text(report.write())
        found = QuantReport.read(tmp_path / "report.json")
        assert found == report
        assert [layer.tensors for layer in found.of("text_encoder")] == [("b",)]

    def test_an_absent_one_tells_who_writes_it(self, tmp_path: Path) -> None:
        with pytest.raises(MissingError, match=r"report\.json: no such file; write it with `mlx_moddit sensitivity`"):
            QuantReport.read(tmp_path / "report.json")

    @pytest.mark.parametrize(
        ("path", "value", "message"),
        [
            (("version",), 2, "version is 2"),
            (("format",), "moddit", "format is 'moddit'"),
            (("layers",), [], "layers is"),
            (("layers", 0, "losses", 0, "bits"), 7, "has 7 bits, want one of"),
            (("layers", 0, "losses", 0, "error"), -1.0, "error is -1.0"),
            (("layers", 0, "weights"), 0, "weights is 0"),
        ],
    )
    def test_a_damaged_one_is_refused(
        self, report: QuantReport, tmp_path: Path, path: tuple[str | int, ...], value: object, message: str
    ) -> None:
        whole = json.loads(report.write())
        place = whole
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
        (tmp_path / "report.json").write_text(json.dumps(whole))
        with pytest.raises(InputError, match=message):
            QuantReport.read(tmp_path / "report.json")

    def test_what_is_no_json_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "report.json").write_text("{")
        with pytest.raises(FormatError, match="not JSON"):
            QuantReport.read(tmp_path / "report.json")
