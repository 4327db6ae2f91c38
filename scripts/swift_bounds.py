"""Writes the bounds of moddit/bounds.py for Swift, with the words of docs/format.md; `make golden` runs it.

python -m scripts.swift_bounds
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from moddit import bounds

ROOT: Final = Path(__file__).parents[1]
PATH: Final = ROOT / "swift_bridge/Sources/ModditCore/Bounds.swift"
HEAD: Final = """\
// Made of moddit/bounds.py and docs/format.md by scripts/swift_bounds.py; `make golden` makes it anew.

/// How large what is read may be, each at most this: the same bounds as in Python.
///
/// They are checked before anything is allocated for a value, so that a damaged or hostile file costs no memory.
package enum Bounds {
"""


def make_bounds() -> str:
    """Write the Swift file; the test of docs/format.md's table holds that to all bounds."""
    table = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([A-Z_]+)` \| [\d,]+ \| (.+) \|$", table, re.MULTILINE)
    return HEAD + "".join(_declare(name, words) for name, words in rows) + "}\n"


def _declare(name: str, words: str) -> str:
    first, *rest = name.lower().split("_")
    constant = first + "".join(part.title() for part in rest)
    return f"    /// {words[0].upper()}{words[1:]}.\n    package static let {constant} = {getattr(bounds, name):_}\n"


if __name__ == "__main__":
    PATH.write_text(make_bounds(), encoding="utf-8")
