"""The workflows call what is there, and let nothing fail but what needs a GPU on a hosted Mac."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[1]
WORKFLOWS: Final = {path.name: path.read_text() for path in (ROOT / ".github/workflows").glob("*.yml")}
MAKEFILE: Final = (ROOT / "Makefile").read_text()
ON_CPU: Final = ("--device=cpu", "--compute-units cpuOnly")


def jobs(text: str) -> list[str]:
    return re.split(r"(?m)^  (?=\w+:$)", text.partition("\njobs:\n")[2])[1:]


def steps(job: str) -> list[str]:
    return re.split(r"(?m)^      - ", job)[1:]


def needs_gpu(step: str) -> bool:
    """Say whether a step computes on a Mac's GPU."""
    if any(choice in step for choice in ON_CPU):
        return False
    return bool(
        re.search(r"make (generate|test|nightly|verify-mac)|--on-device|moddit-cli generate|MODDIT_BUNDLE=", step)
    )


@pytest.mark.parametrize("name", WORKFLOWS)
def test_targets_exist(name: str) -> None:
    for target in re.findall(r"run: make ([\w-]+)", WORKFLOWS[name]):
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), target


@pytest.mark.parametrize("name", ["macos.yml", "swift.yml"])
def test_a_hosted_mac_must_pass_what_needs_no_gpu_and_nothing_else(name: str) -> None:
    required: list[str] = []
    allowed: list[str] = []
    for job in jobs(WORKFLOWS[name]):
        if "runs-on: macos" not in job:
            continue
        whole, *listed = re.split(r"(?m)^    steps:$", job)
        for step in steps(listed[0]):
            may_fail = "continue-on-error: true" in step or "continue-on-error: true" in whole
            (allowed if may_fail else required).append(step)
    assert [step for step in required if needs_gpu(step)] == []
    assert any(needs_gpu(step) for step in allowed)
    assert any(choice in step for step in required for choice in ON_CPU)


def test_nightly_uses_the_cpu_of_a_hosted_mac() -> None:
    text = WORKFLOWS["nightly.yml"]
    assert re.search(r"os: macos-15\n +device: cpu\n", text)
    assert "make nightly PYTEST_ARGS=--device=${{ matrix.device }}" in text
    (step,) = (step for job in jobs(text) for step in steps(job) if "make verify-mac" in step)
    assert "continue-on-error: true" in step


def test_linux_runs_every_python_that_the_project_names() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    named = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', project)
    (listed,) = re.findall(r"python: \[(.*)\]", WORKFLOWS["linux.yml"])
    assert re.findall(r"3\.\d+", listed) == named
