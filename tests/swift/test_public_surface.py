"""What an app can use of the Swift package is the list that is checked in, so that it grows by decision only.

python -m tests.swift.test_public_surface writes the list anew.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

PACKAGE: Final = Path(__file__).parents[2] / "swift_bridge"
LIST: Final = PACKAGE / "PublicSurface.txt"
MODULES: Final = ("ModditCore", "ModditCoreML")
TYPE: Final = re.compile(r"( *)(public )?(?:[a-z]+ )*?(struct|enum|class|actor|protocol|extension) (\w+)")


def read_surface() -> str:
    """List the public declarations of every module's types, one a line, sorted."""
    lines = set[str]()
    for module in MODULES:
        for path in (PACKAGE / "Sources" / module).rglob("*.swift"):
            lines |= {f"{module}  {declaration}" for declaration in read_declarations(path.read_text(encoding="utf-8"))}
    return "".join(f"{line}\n" for line in sorted(lines))


def read_declarations(source: str) -> Iterator[str]:
    """Find what `public` marks, and cases of public enumerations. The layout is swift-format's: 4 spaces a level."""
    types: list[tuple[str, bool]] = []  # those around a line, and whether each is a public enumeration
    lines = iter(source.splitlines())
    for line in lines:
        if not line or line.lstrip().startswith("//"):
            continue
        while line.count("(") > line.count(")"):
            line += " " + next(lines).strip()
        depth, text = (len(line) - len(line.lstrip())) // 4, line.strip()
        del types[depth:]
        is_case = text.startswith("case ") and 0 < depth == len(types) and types[-1][1]
        if text.startswith("public ") or is_case:
            yield ".".join(name for name, _ in types) + (": " if types else "") + shorten(text)
        if opened := TYPE.match(line):
            types.append((opened[4], bool(opened[2]) and opened[3] == "enum"))


def shorten(declaration: str) -> str:
    """Leave out the body and the value of a declaration."""
    text = declaration.removeprefix("public ").replace("( ", "(").replace(" )", ")")
    end = text.rfind(")") if "(" in text else 0
    return text[:end] + re.split(r" \{| = ", text[end:])[0]


def test_the_public_surface_is_the_list() -> None:
    assert LIST.read_text(encoding="utf-8") == read_surface(), "decide, then: python -m tests.swift.test_public_surface"


def test_declarations_are_found() -> None:
    source = """
public enum Kind: String {
    /// One.
    case one = "1"
    enum Inner {
        case hidden
    }
    public static let first = 1
    var hidden: Int { 1 }
}

extension Kind {
    public func draw(
        _ size: Int = 3, report: (Int) -> Void = { _ in }
    ) async throws -> Int {
        let hidden = 2
    }
}
"""
    assert list(read_declarations(source)) == [
        "enum Kind: String",
        "Kind: case one",
        "Kind: static let first",
        "Kind: func draw(_ size: Int = 3, report: (Int) -> Void = { _ in }) async throws -> Int",
    ]


if __name__ == "__main__":
    LIST.write_text(read_surface(), encoding="utf-8")
