from __future__ import annotations

from pathlib import Path

import pytest

from moddit.errors import MissingError
from moddit.paths import expand


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("~", "/the/home"),
        ("~/a/b.png", "/the/home/a/b.png"),
        ("a/~/b.png", "a/~/b.png"),
        ("./~b.png", "~b.png"),
        ("b~.png", "b~.png"),
        ("/x/~", "/x/~"),
        ("", "."),
    ],
)
def test_only_a_leading_tilde_is_the_home_folder(path: str, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/the/home")
    assert expand(path) == Path(wanted)


def test_an_unknown_user_is_refused() -> None:
    with pytest.raises(MissingError, match=r"~no-such-user/x: cannot find the home folder of ~no-such-user.*\./~no"):
        expand("~no-such-user/x")
