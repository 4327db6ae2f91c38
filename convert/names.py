"""Names of tensors in graphs."""

from __future__ import annotations

import re


def constant_name(name: str) -> str:
    """Name of a canonical tensor in a graph, where names are identifiers."""
    return re.sub(r"\W", "_", name)
