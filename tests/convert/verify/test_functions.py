"""Tokens that tie may be routed otherwise; tokens that do not tie may not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from convert.verify import functions
from convert.verify.bundle import Packages
from convert.verify.functions import EXACT_TOLERANCE, TIE_MARGIN, Case, check_case, list_cases
from convert.verify.interpreter import Arithmetic
from convert.verify.reference import Reference
from convert.verify.weights import read_values
from moddit.manifest import read_manifest
from tests.convert.coreml.bundles import make_bundle

Opened = tuple[Packages, Reference, Case]


@pytest.fixture(scope="module")
def opened(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """A bundle, its reference, and a case in which tokens are left out."""
    folder = make_bundle(source, tmp_path_factory.mktemp("ties") / "bundle")
    manifest = read_manifest(folder)
    exact = Packages.open(folder, manifest.spec, manifest.tokens, manifest.graphs, Arithmetic.EXACT)
    reference = Reference.build(manifest.spec, manifest.tokens, read_values(exact))
    return (
        exact,
        reference,
        [case for case in list_cases(exact, reference, quick=True) if case.timestep is not None][-1],
    )


@pytest.fixture
def exchange(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Make the reference keep, in the last layer, the best token left out for the worst one kept.

    Gives the distance of their scores, which a test may change: the reference is told that it is that large.
    """
    distance = [0.0]
    real = functions._run_reference

    def run(reference: Reference, case: Case, forced: Any = None) -> Any:
        if forced is not None:
            return real(reference, case, forced)
        _, routes = real(reference, case)
        layer = max(routes)
        route, tokens = routes[layer], routes[layer].scores.shape[1]
        kept, scores = set(route.kept[0]), route.scores.copy()
        worst = min(kept, key=lambda token: scores[0, token])
        best = max(set(range(tokens)) - kept, key=lambda token: scores[0, token])
        scores[0, best] = scores[0, worst] - distance[0] * np.ptp(scores[0])
        routes[layer] = functions.Route((frozenset(kept - {worst} | {best}), *route.kept[1:]), scores)
        indices = [torch.tensor([sorted(sample) for sample in routes[item].kept]) for item in sorted(routes)]
        return real(reference, case, indices)[0], routes

    monkeypatch.setattr(functions, "_run_reference", run)
    return distance


def test_a_tie_is_no_failure(opened: Opened, exchange: list[float]) -> None:
    exact, reference, case = opened
    outcome, _ = check_case(case, reference, exact)
    assert outcome.flipped_exact == 1
    assert outcome.tie_margin <= TIE_MARGIN
    assert outcome.exact_error <= EXACT_TOLERANCE
    assert outcome.passed


def test_another_token_is_a_failure(opened: Opened, exchange: list[float]) -> None:
    exchange[0] = 0.1
    exact, reference, case = opened
    outcome, _ = check_case(case, reference, exact)
    assert outcome.flipped_exact == 1
    assert math.isclose(outcome.tie_margin, 0.1, rel_tol=0.2)
    assert not outcome.passed
