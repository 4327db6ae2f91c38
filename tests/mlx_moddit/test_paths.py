"""A leading ~ is the user's home folder wherever the command line takes a path; shells leave it behind `--option=`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from mlx_moddit import cli
from mlx_moddit.embedded import cache_folder
from mlx_moddit.images import read_metadata


def test_every_path_of_generate_and_info(home: Path, routed_bundle: Path) -> None:
    shutil.copytree(routed_bundle, home / "bundle")
    (home / "prompts.txt").write_text("a red circle\n")
    first = ("--prompt-file=~/prompts.txt", "--steps=1", "--save-routes=~/routes.png", "--output=~/new/{prompt}.png")
    for arguments in (
        ("generate", "--model=~/bundle", *first),
        ("generate", "--config-from=~/new/a-red-circle.png", "--output=~/again.png"),
        ("info", "--model=~/bundle"),
    ):
        result = CliRunner().invoke(cli.main, arguments)
        assert result.exit_code == 0, result.output
    assert (home / "routes.png").is_file()
    assert (home / "again.png").read_bytes() == (home / "new" / "a-red-circle.png").read_bytes()
    assert read_metadata(home / "again.png").model.path == "~/bundle"
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("option", ["--model", "--output", "--save-routes", "--prompt-file", "--config-from"])
def test_the_home_of_an_unknown_user_is_one_line(home: Path, routed_bundle: Path, option: str) -> None:
    given = {"--model": str(routed_bundle), "--prompt": "a", option: "~no-such-user/x.png"}
    if option in ("--prompt-file", "--config-from"):
        del given["--prompt"]
    result = CliRunner().invoke(cli.main, ["generate", *(f"{name}={value}" for name, value in given.items())])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: [path] ~no-such-user/x.png: cannot find the home folder of ~no-such-user")
    assert len(result.stderr.splitlines()) == 1


def test_the_cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODDIT_CACHE", "~/cache")
    assert cache_folder() == home / "cache"
