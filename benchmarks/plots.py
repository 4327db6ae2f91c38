"""Plots of the records, as the text of SVG files that are the same whenever they are drawn."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from moddit.benchmark.record import BenchmarkRecord
from moddit.benchmark.summary import DENSE, ORACLE, ROUTED, RoutingGain, Spread, routing_gains, stage_spreads

STYLES: Final = {DENSE: ("o", "tab:gray"), ORACLE: ("s", "tab:orange"), ROUTED: ("x", "tab:blue")}
COLUMNS: Final = 3  # panels beside each other
PANEL: Final = (3.6, 3.0)  # inches


def draw(records: Iterable[BenchmarkRecord]) -> dict[str, str]:
    """Draw what some records show.

    Returns:
        SVG by what it is of: "steps", seconds over tokens, if a record has several sizes, and "gains", if one is of
        routing at all.
    """
    found = [(record, gains) for record in records if (gains := list(routing_gains(record)))]
    compared = [record for record, gains in found if sum(gain.arm.name == ROUTED for gain in gains) > 1]
    # ids are made of the drawing alone, and text stays text
    with mpl.rc_context({"svg.hashsalt": "moddit", "svg.fonttype": "none", "font.size": 8}):
        plots = {"steps": _steps(compared) if compared else None, "gains": _gains(found) if found else None}
        return {name: _write(figure) for name, figure in plots.items() if figure is not None}


def _steps(records: Sequence[BenchmarkRecord]) -> Figure:
    """Draw seconds of a step over tokens, a panel for each record."""
    columns = min(COLUMNS, len(records))
    rows = -(-len(records) // columns)
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flat
    for record, axes in zip(records, panels, strict=False):
        for name, (marker, colour) in STYLES.items():
            points = sorted(_points(record, name))
            if not points:
                continue
            tokens, spreads = zip(*points, strict=True)
            low, high = [item.median - item.low for item in spreads], [item.high - item.median for item in spreads]
            style: dict[str, Any] = {"marker": marker, "color": colour, "capsize": 2, "linewidth": 1, "label": name}
            axes.errorbar(tokens, [item.median for item in spreads], yerr=(low, high), **style)
        axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel="seconds a step", title=_title(record))
        sizes = sorted({tokens for name in STYLES for tokens, _ in _points(record, name)})
        axes.set_xticks(sizes, [str(tokens) for tokens in sizes])
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.legend()
    for axes in panels:  # those that are left
        axes.set_axis_off()
    return figure


def _points(record: BenchmarkRecord, name: str) -> Iterator[tuple[int, Spread]]:
    for number, arm in enumerate(record.arms):
        step = stage_spreads(record, number).get("step")
        if arm.name == name and arm.tokens is not None and step is not None:
            yield arm.tokens, step


def _gains(found: Sequence[tuple[BenchmarkRecord, Sequence[RoutingGain]]]) -> Figure:
    """Draw how many times faster routed steps are over how many times fewer FLOPs they take."""
    figure = Figure(figsize=(2 * PANEL[0], 1.6 * PANEL[1]), layout="constrained")
    axes = figure.subplots()
    most = max(gain.flops for _, gains in found for gain in gains)
    axes.plot([1, most], [1, most], color="tab:gray", linestyle="--", linewidth=1, label="all that FLOPs promise")
    for record, gains in found:
        ratios = [gain.seconds for gain in gains]
        spread = [item.value - item.low for item in ratios], [item.high - item.value for item in ratios]
        times = [item.value for item in ratios]
        style: dict[str, Any] = {"fmt": "o", "markersize": 4, "capsize": 2, "linewidth": 1, "label": _title(record)}
        axes.errorbar([gain.flops for gain in gains], times, yerr=spread, **style)
    axes.set(xlabel="dense / routed, FLOPs", ylabel="dense / routed, time")
    axes.legend()
    return figure


def _title(record: BenchmarkRecord) -> str:
    model = record.subject.name.rsplit("/", 1)[-1]
    return f"{model}, {record.subject.layers} layers, {record.machine.chip} {record.arms[0].device.upper()}"


def _write(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"
