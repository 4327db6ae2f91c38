"""What a comparison found, from the files of one folder: results.json, tables in Markdown, and figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from moddit.benchmark.table import markdown
from moddit.routing import DENOMINATOR
from recipes.comparison.evaluation import Evaluation, Group, Key, Row, equal_steps, mean_cost
from recipes.comparison.figures import draw_by_products, draw_quality, draw_router_map, draw_trajectories
from recipes.comparison.methods import CONTROL, DENSE, DIFFCR, METHODS, Entry
from recipes.comparison.significance import Comparison, are_separated, compare, weakest
from recipes.comparison.timing import read_gains
from recipes.figures import draw_ratios
from torch_moddit.loading import load_checkpoint

RESULTS: Final = "results.json"
FIGURES: Final = ("quality.png", "ratios.png", "trajectories.png", "by-products.png", "routes.png")
_SCALE: Final = ("seeds", "trainings", "reference_prompts", "reference_steps")


@dataclass(frozen=True)
class Claim:
    """That a method is better, or worse, than another; only if the test separates them."""

    other: str  # what it is compared with
    other_score: float
    comparison: Comparison
    verdict: str  # "better", "worse", or "" where chance is enough


class Findings:
    """The rows of an evaluation, put together by method, keep ratio and number of steps."""

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation = evaluation
        self.outcome = evaluation.world.OUTCOME
        self.groups = evaluation.groups()

    def to_json(self) -> dict[str, Any]:
        """Write everything that was found."""
        scale = self.evaluation.scale
        equal, same = self.against_fewer_steps(), self.between_methods()
        trained = {**self.evaluation.world.SETTINGS, **scale.training}
        return {
            "world": self.evaluation.world.NAME,
            "outcome": self.outcome,
            "trained": {name: trained[name] for name in ("steps", "batch_size")},
            "prompts": len(self.evaluation.prompts),
            "base_steps": scale.steps[0],
            **{name: getattr(scale, name) for name in _SCALE},
            "rows": [self._row(key, group, equal.get(key)) for key, group in self.groups.items()],
            "pairs": [{"method": _title(key), "steps": key.steps, **asdict(claim)} for key, claim in same.items()],
            "gains": [{**asdict(gain), "efficiency": gain.efficiency} for gain in read_gains(self.evaluation.work)],
        }

    def score(self, group: Group) -> float:
        """Share of pictures that satisfy the outcome, over all trainings and seeds."""
        return float(np.mean([row.outcomes[self.outcome].mean() for rows in group.values() for row in rows]))

    def against_fewer_steps(self) -> dict[Key, Claim]:
        """Compare each method with its partner, in the best of all numbers of steps that cost as much or less.

        Better is what beats it even if it costs a little more, worse what loses to it at no higher cost.
        """
        candidates = {}
        for key, group in self.groups.items():
            partner = Entry(key.method, key.tenths, None).partner
            drawn = [other for other in self.groups if other[:2] == (partner.method, partner.tenths)]
            if partner.method != key.method and drawn:
                below, above = equal_steps(key, self.groups)
                others = [[other for other in drawn if other.steps <= most] for most in (above, below)]
                candidates[key] = self._claims(group, *others)
        return _separate(candidates)

    def between_methods(self) -> dict[Key, Claim]:
        """Compare what was trained with DiffCR-LT at the same keep ratio and number of steps."""
        candidates = {}
        for key, group in self.groups.items():
            other = key._replace(method=DIFFCR)
            if key.method not in (DIFFCR, CONTROL) and METHODS[key.method].family is not None and other in self.groups:
                candidates[key] = self._claims(group, [other], [other])
        return _separate(candidates)

    def _claims(self, group: Group, to_beat: Sequence[Key], to_lose_to: Sequence[Key]) -> Claim:
        """Claim that a group is better than the best of some others, or else worse than the best of those that are
        cheaper, which was chosen among so many.
        """
        better = self._claim(group, self._best(to_beat), "better")
        if better.verdict or not to_lose_to:
            return better
        worse = self._claim(group, self._best(to_lose_to), "worse")
        p = min(1.0, worse.comparison.p * len(to_lose_to))
        return replace(worse, comparison=replace(worse.comparison, p=p)) if worse.verdict else better

    def _best(self, keys: Sequence[Key]) -> Key:
        return max(keys, key=lambda key: self.score(self.groups[key]))

    def _claim(self, group: Group, other: Key, verdict: str) -> Claim:
        """Compare a group with another; there is a verdict if that is where the difference points, however small."""
        theirs = self.groups[other]
        pairs = [(rows, theirs.get(training, theirs.get(None))) for training, rows in group.items()]
        found = [compare(self._stack(rows), self._stack(their)) for rows, their in pairs if their is not None]
        least = weakest(found)
        points = "better" if least.better > least.worse else "worse"
        name = f"{_title(other)}, {other.steps} steps"
        return Claim(name, self.score(theirs), least, verdict if verdict == points else "")

    def _stack(self, rows: Sequence[Row]) -> NDArray[np.bool_]:
        return np.stack([row.outcomes[self.outcome] for row in rows])

    def _row(self, key: Key, group: Group, claim: Claim | None) -> dict[str, Any]:
        every = [row for rows in group.values() for row in rows]
        losses = [self.evaluation.losses(Entry(key.method, key.tenths, training)) for training in group]
        references = [row.psnr for row in every if row.psnr is not None]
        return {
            "method": key.method,
            "title": METHODS[key.method].title,
            "keep": key.tenths / DENOMINATOR,
            "steps": key.steps,
            "flops": mean_cost(group) / self.evaluation.scale.steps[0],
            "scores": {
                name: float(np.mean([row.outcomes[name].mean() for row in every])) for name in every[0].outcomes
            },
            "by_training": [self.score({training: rows}) for training, rows in group.items()],
            "psnr": float(np.mean(references)) if references else None,
            "frechet": float(np.mean([row.frechet for row in every])),
            "losses": np.mean(losses, axis=0).tolist(),
            "against_fewer_steps": None if claim is None else asdict(claim),
        }


def write_report(evaluation: Evaluation) -> None:
    """Write report/: results.json, tables.md, and a figure of each thing whose files are there."""
    folder, findings = evaluation.work / "report", Findings(evaluation)
    folder.mkdir(parents=True, exist_ok=True)
    results = findings.to_json()
    (folder / RESULTS).write_text(json.dumps(results, indent=1) + "\n")
    (folder / "tables.md").write_text(write_tables(results))
    draw_quality(results["rows"], results["outcome"], folder / "quality.png")
    draw_by_products(results["rows"], results["outcome"], folder / "by-products.png")
    draw_trajectories(evaluation.work / "runs", folder / "trajectories.png")
    routed = [entry for entry in evaluation.entries() if entry.method == DIFFCR]
    if routed:
        checkpoint = evaluation.folder(routed[-1])
        draw_ratios(load_checkpoint(checkpoint).policy.plan.keep_tenths, folder / "ratios.png")
        draw_router_map(checkpoint, evaluation.prompts[0], evaluation.scale.steps[0], folder / "routes.png")


def write_tables(results: Mapping[str, Any]) -> str:
    """Write the tables of a report."""
    rows = results["rows"]
    shared = dict.fromkeys(row["steps"] for row in rows if row["method"] not in (DENSE, CONTROL))
    tables = {f"{steps} steps": _results(results, [row for row in rows if row["steps"] == steps]) for steps in shared}
    tables["Fewer steps"] = _results(results, [row for row in rows if row["steps"] not in shared])
    tables["At the same keep ratio"] = _pairs(results["pairs"])
    tables["Time"] = _gains(results["gains"])
    parts = [["### " + title, "", *markdown(lines), ""] for title, lines in tables.items() if len(lines) > 1]
    return "\n".join(line for part in parts for line in part)


def _results(results: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[Sequence[str]]:
    head = ("method", "keep", "steps", "FLOPs", results["outcome"], "dB", "Fréchet", "loss, clean to noisy")
    lines: list[Sequence[str]] = [(*head, "no dearer", "prompts better : worse", "p", "claim")]
    for row in rows:
        claim = row["against_fewer_steps"]
        tested = ("-",) * 4 if claim is None else (_name(claim), *_test(claim))
        numbers = (
            f"{100 * row['flops']:.1f} %",
            " / ".join(f"{100 * score:.1f} %" for score in row["by_training"]),
            "-" if row["psnr"] is None else f"{row['psnr']:.1f}",
            f"{row['frechet']:.3g}",
            " ".join(f"{loss:.4f}" for loss in row["losses"]) or "-",
        )
        lines.append((row["title"], f"{row['keep']:.1f}", str(row["steps"]), *numbers, *tested))
    return lines


def _pairs(pairs: Sequence[Mapping[str, Any]]) -> list[Sequence[str]]:
    head = ("method", "steps", "against", "prompts better : worse", "p", "claim")
    return [head, *((pair["method"], str(pair["steps"]), _name(pair), *_test(pair)) for pair in pairs)]


def _gains(gains: Sequence[Mapping[str, Any]]) -> list[Sequence[str]]:
    lines: list[Sequence[str]] = [("entry", "runtime", "dense / its step, time", "FLOPs", "efficiency")]
    for gain in gains:
        shares = (f"{gain['flops']:.2f}", f"{gain['efficiency']:.2f}")
        lines.append((gain["entry"], gain["runtime"], _ratio(gain["seconds"]), *shares))
    return lines


def _name(claim: Mapping[str, Any]) -> str:
    return f"{claim['other']}: {100 * claim['other_score']:.1f} %"


def _test(claim: Mapping[str, Any]) -> tuple[str, str, str]:
    found = claim["comparison"]
    return f"{found['better']} : {found['worse']}", f"{found['p']:.2g}", claim["verdict"]


def _ratio(value: Mapping[str, float]) -> str:
    return f"{value['value']:.2f} ({value['low']:.2f} to {value['high']:.2f})"


def _title(key: Key) -> str:
    method = METHODS[key.method]
    return method.title if method.keeps else f"{method.title} {key.tenths / DENOMINATOR}"


def _separate(candidates: Mapping[Key, Claim | None]) -> dict[Key, Claim]:
    """Keep the verdicts that hold together."""
    claims = {key: claim for key, claim in candidates.items() if claim is not None}
    held = are_separated([claim.comparison.p for claim in claims.values()])
    return {
        key: claim if is_held else replace(claim, verdict="")
        for (key, claim), is_held in zip(claims.items(), held, strict=True)
    }
