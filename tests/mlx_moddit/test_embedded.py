from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mlx_moddit import cli, embedded
from mlx_moddit.embedded import bundle_path, cache_folder, embedded_bundle
from moddit.errors import FormatError, MissingError, StorageError
from moddit.manifest import MANIFEST_NAME, read_manifest
from tests.tiny import save_pipeline


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("embedded") / "tiny")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MODDIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_cache_folder_is_chosen_by_the_user_or_the_system(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    assert cache_folder() == cache
    monkeypatch.delenv("MODDIT_CACHE")
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/moddit")
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    assert cache_folder() == Path.home() / "Library" / "Caches" / "moddit"


def test_first_use_converts_and_the_next_does_not(
    checkpoint: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # a module of the same name where the user happens to be is not run
    (tmp_path / "convert.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    bundle = embedded_bundle(checkpoint)
    assert bundle.parent == cache
    assert read_manifest(bundle).tokens.has_routers

    monkeypatch.setattr(subprocess, "run", None)
    assert embedded_bundle(checkpoint) == bundle


def test_another_checkpoint_or_version_has_another_bundle(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = bundle_path(checkpoint)
    assert bundle_path(checkpoint) == first
    other = save_pipeline(tmp_path / "tiny", seed=1)
    assert bundle_path(other) != first
    monkeypatch.setattr("moddit.__version__", "99")
    assert bundle_path(checkpoint) != first


def test_two_first_uses_at_once_share_the_bundle(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert = embedded._convert

    def convert_after_another(*arguments: Any) -> subprocess.CompletedProcess[str]:
        convert(*arguments)
        second = convert(*arguments)
        assert second.returncode == 1
        return second

    monkeypatch.setattr(embedded, "_convert", convert_after_another)
    assert (embedded_bundle(checkpoint) / MANIFEST_NAME).is_file()


def test_failures_say_why_and_what_to_do(
    checkpoint: Path, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MissingError, match=r"no embedded checkpoint; name a bundle with --model"):
        embedded_bundle(tmp_path / "absent")

    broken = save_pipeline(tmp_path / "tiny")
    (broken / "vae" / "config.json").unlink()
    with pytest.raises(FormatError, match=r"cannot convert the embedded checkpoint: .*vae"):
        embedded_bundle(broken)
    assert list(cache.iterdir()) == []

    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MODDIT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(StorageError, match="choose another with MODDIT_CACHE"):
        embedded_bundle(checkpoint)

    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(MissingError, match="`convert` is not installed"):
        embedded_bundle(checkpoint)


def test_the_command_line_uses_it_without_a_model(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "embedded_bundle", lambda: embedded_bundle(checkpoint))
    runner = CliRunner()
    first = runner.invoke(cli.main, ["generate", "--prompt", "a circle", "--steps", "1", "-o", "a.png"])
    assert first.exit_code == 0, first.output
    assert "Converting the embedded checkpoint into" in first.stderr
    again = runner.invoke(cli.main, ["generate", "--config-from", "a.png", "-o", "b.png"])
    assert again.exit_code == 0, again.output
    assert "Converting" not in again.stderr
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
