"""The programs that tests kill."""

from __future__ import annotations

import pytest

from tests.kills.programs import Programs


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    return Programs(tmp_path_factory.mktemp("programs"))
