"""What a conversion writes, and what it may replace."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from moddit.graphs import Graphs
from moddit.manifest import FORMAT, MANIFEST_NAME, Component
from moddit.tokens import TokenPolicy

BUNDLE: Final = "bundle"


@dataclass(frozen=True)
class Written:
    """What a backend has put into a bundle's folder, for the manifest."""

    backend: str
    components: Mapping[str, Component]
    policy: TokenPolicy  # that the bundle runs
    graphs: Graphs | None = None
    tool_versions: Mapping[str, str] = field(default_factory=dict)  # beside those of moddit, numpy and Python
    notes: tuple[str, ...] = ()  # what a user should know, one sentence each

    def with_note(self, note: str) -> Written:
        """Add a note."""
        return replace(self, notes=(*self.notes, note))


def is_bundle(folder: Path) -> bool:
    """Say whether a folder is a bundle, of whatever version: only such a folder is ever replaced."""
    try:
        manifest = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(manifest, dict) and manifest.get("format") == FORMAT
