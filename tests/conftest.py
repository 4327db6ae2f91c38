"""What all tests share: offline, two threads, a fast BLAS under MLX, the device and the precisions they run in."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Final

import pytest
from hypothesis import settings

from scripts import fast_blas

# Before any test imports torch, MLX or a Hugging Face library.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MLX_ENABLE_TF32"] = "0"  # GPUs that have it would multiply float32 in 19 bits, which no tolerance allows
IS_MAC: Final = platform.system() == "Darwin"
# MLX compiles graphs as for a user: on a Mac for Metal, elsewhere with g++ where it is. On ARM that fails for float16.
if platform.system() == "Linux" and platform.machine() != "x86_64":
    os.environ["MLX_DISABLE_COMPILE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
BLAS: Final = fast_blas.load()
STARTUP: Final = Path(__file__).parent / "startup"

settings.register_profile("moddit", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("moddit")


def pytest_addoption(parser: pytest.Parser) -> None:
    from tests.startup.sitecustomize import DEVICES

    parser.addoption(
        "--device",
        choices=DEVICES,
        default="default",
        help="where MLX computes: its default, a CPU, or its default under the name of a GPU, as on a Mac",
    )


def pytest_configure(config: pytest.Config) -> None:
    from tests.startup import sitecustomize

    device = config.getoption("device")
    os.environ[sitecustomize.VARIABLE] = device
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(STARTUP), os.environ.get("PYTHONPATH")]))
    sitecustomize.choose_device(device)


def pytest_report_header(config: pytest.Config) -> str:
    return f"MLX runs on {'Metal and ' if IS_MAC else ''}{BLAS}; --device {config.getoption('device')}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("device") == "reported-gpu":
        same = [item for item in items if item.get_closest_marker("without_mlx")]
        config.hook.pytest_deselected(items=same)
        items[:] = [item for item in items if item not in same]
    reason = "needs the Mac's GPU, and --device is cpu" if IS_MAC else "needs a Mac"
    if IS_MAC and config.getoption("device") != "cpu":
        return
    for item in items:
        if item.get_closest_marker("mac"):
            item.add_marker(pytest.mark.skip(reason=reason))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Store bundles in every precision where the program computes in what is stored, on a CPU in float32 alone."""
    if "stored_dtype" not in metafunc.fixturenames:
        return
    device = metafunc.config.getoption("device")
    is_cpu = device == "cpu" or (device == "default" and not IS_MAC)
    names = ["float32"] if is_cpu else ["float32", "float16", "bfloat16"]
    metafunc.parametrize("stored_dtype", names, indirect=True, scope="session")


@pytest.fixture(scope="session")
def stored_dtype(request: pytest.FixtureRequest) -> str:
    """Name the dtype that bundles are stored in; without another wish the program computes in it too."""
    name: str = request.param
    return name


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder, with another as the user's home."""
    for name in ("home", "work"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"
