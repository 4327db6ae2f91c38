"""Imports point one way: a package imports only what its row below allows; no modules, and no packages, form a ring."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Rule:
    """What the modules of one package may import, beside themselves and the standard library."""

    packages: set[str] = field(default_factory=set)  # of this repository
    extras: set[str] = field(default_factory=set)  # of pyproject.toml: their distributions, beside the core's
    others: set[str] = field(default_factory=set)  # import names that no extra lists, but some distribution brings
    inside_functions: set[str] = field(default_factory=set)  # also these, but never when the module is imported
    apart_from: set[str] = field(default_factory=set)  # never these modules, nor what is in them


PICTURES = "moddit.pictures"  # with Pillow, which not everybody who imports the core has
RULES = {
    "moddit": Rule(apart_from={PICTURES}),
    PICTURES: Rule(others={"PIL"}),
    # Pickles, the Hub and tokenizers are read by the libraries that own them, where a checkpoint has such a part.
    "moddit.checkpoint": Rule(inside_functions={"torch", "huggingface_hub", "tokenizers"}, apart_from={PICTURES}),
    "torch_moddit": Rule({"moddit"}, {"train"}, inside_functions={"bitsandbytes"}),  # where a user has installed it
    "mlx_moddit": Rule({"moddit"}, {"mlx"}),
    "convert": Rule({"moddit"}, {"convert"}, inside_functions={"torch", "torch_moddit"}, apart_from={PICTURES}),
    # The exporter, and what proves its work without sharing any of it.
    "convert.coreml": Rule({"moddit"}, {"convert"}, {"coremltools"}, apart_from={"convert.verify", PICTURES}),
    "convert.verify": Rule(
        {"moddit", "torch_moddit"}, {"convert", "coreml"}, {"google"}, apart_from={"convert.coreml"}
    ),
    "recipes": Rule({"moddit", "torch_moddit"}, {"train", "dev"}),
    # Methods of others that benchmarks time as well, and MLX's own trials of converted checkpoints.
    "recipes.comparison": Rule({"moddit", "torch_moddit", "mlx_moddit", "convert", "benchmarks"}, {"train", "dev"}),
    "benchmarks": Rule({"moddit", "torch_moddit", "mlx_moddit", "convert"}, {"train", "mlx", "convert", "dev"}),
    "scripts": Rule({"moddit", "convert"}, {"dev", "mlx"}),
    "tests": Rule(
        {"moddit", "torch_moddit", "mlx_moddit", "convert", "recipes", "benchmarks", "scripts"},
        {"train", "mlx", "convert", "coreml", "dev"},
    ),
}
IMPORT_NAMES = {"pillow": "PIL"}  # where they differ from the distribution's
HEAVY = {"torch", "diffusers", "transformers", "mlx", "coremltools", "coreai", "coreai_torch"}
LIGHT = {  # what importing every module of a package must not load
    "moddit": HEAVY | {"torch_moddit", "mlx_moddit", "convert"},
    "mlx_moddit": HEAVY - {"mlx"} | {"torch_moddit", "convert"},
    "convert": HEAVY | {"tokenizers", "PIL", "google", "torch_moddit", "mlx_moddit"},
}
# Packages whose modules may be heavy, but for those that the command line imports.
MAY_BE_HEAVY = {
    "convert.coreml": {"convert.coreml", "convert.coreml.choices", "convert.coreml.compress"},
    "convert.verify": {"convert.verify", "convert.verify.command"},
}


@dataclass(frozen=True)
class Import:
    module: str  # who imports
    target: str  # dotted name
    line: int
    in_function: bool


def declared(pyproject: Path, extras: set[str]) -> set[str]:
    """Import names of the core's dependencies and of those of some extras."""
    project = tomllib.loads(pyproject.read_text())["project"]
    lists = [project["dependencies"], *(project["optional-dependencies"][extra] for extra in extras)]
    names = {re.split(r"[^A-Za-z0-9_.-]", requirement)[0].lower() for entries in lists for requirement in entries}
    return {IMPORT_NAMES.get(name, name) for name in names}


def modules_of(package: Path) -> dict[str, Path]:
    """Map the dotted names of a package's modules to their files."""
    found = {}
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def find_rule(module: str) -> Rule | None:
    """Find the rule of the innermost package that has one."""
    parts = module.split(".")
    names = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((RULES[name] for name in names if name in RULES), None)


def is_within(module: str, packages: Iterable[str]) -> bool:
    return any(f"{module}.".startswith(f"{package}.") for package in packages)


def targets(node: ast.AST, known: set[str]) -> Iterator[str]:
    """List the modules that a statement or call imports; `from a import b` means a.b where that is a module."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = "." * node.level + (node.module or "")
        yield from {f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in node.names}
    elif isinstance(node, ast.Call) and ast.unparse(node.func) in {
        "importlib.import_module",
        "import_module",
        "__import__",
    }:
        name = node.args[0] if node.args else None
        yield name.value if isinstance(name, ast.Constant) and isinstance(name.value, str) else "?"


def imports_of(module: str, tree: ast.Module, known: set[str]) -> Iterator[Import]:
    """List what a module imports at run time, wherever it does so."""

    def walk(node: ast.AST, in_function: bool) -> Iterator[Import]:
        condition = ast.unparse(node.test) if isinstance(node, ast.If) else ""
        if condition in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            return
        for target in targets(node, known):
            yield Import(module, target, getattr(node, "lineno", 0), in_function)
        in_function = in_function or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            yield from walk(child, in_function)

    yield from walk(tree, in_function=False)


def judge(item: Import, package: str, rule: Rule, third_party: set[str]) -> str | None:
    """Say what is wrong with an import, if anything."""
    top = item.target.split(".")[0]
    allowed = {package, "__future__"} | rule.packages | third_party | rule.others | set(sys.stdlib_module_names)
    if is_within(item.target, rule.apart_from):
        return f"imports {item.target}"
    if item.target.startswith(("?", ".")):
        return "imports by a computed or relative name"
    if top in allowed or (item.in_function and top in rule.inside_functions):
        return None
    return f"imports {item.target}" + (" outside a function" if top in rule.inside_functions else "")


def find_cycle(edges: dict[str, set[str]]) -> list[str] | None:
    """Find modules that import each other in a ring."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str] | None:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return None
        for target in sorted(edges.get(module, set())):
            ring = visit(target, [*path, module])
            if ring:
                return ring
        done.add(module)
        return None

    return next(filter(None, (visit(module, []) for module in sorted(edges))), None)


def find_knot(edges: dict[str, set[str]]) -> list[str] | None:
    """Find modules, or packages as wholes among their siblings, that import each other in a ring, wherever they do."""
    for depth in range(2, 1 + max(len(module.split(".")) for module in edges)):
        siblings: dict[str, set[str]] = {}
        for module, found in edges.items():
            siblings.setdefault(first(module, depth), set()).update(first(target, depth) for target in found)
        ring = find_cycle({unit: found - {unit} for unit, found in siblings.items()})
        if ring:
            return ring
    return None


def first(module: str, depth: int) -> str:
    return ".".join(module.split(".")[:depth])


def check_layers(root: Path, pyproject: Path) -> list[str]:
    """Check every package of a tree; return one line for each thing that is wrong."""
    problems = []
    for folder in sorted({file.relative_to(root).parts[0] for file in root.glob("[!.]*/**/*.py")} - {"out", "build"}):
        if find_rule(folder) is None:
            problems.append(f"{folder}: has no rule in tests/test_layering.py")
            continue
        modules = modules_of(root / folder)
        edges: dict[str, set[str]] = {}
        for module, file in modules.items():
            found = list(imports_of(module, ast.parse(file.read_text(), str(file)), set(modules)))
            edges[module] = {item.target for item in found if item.target in modules}
            rule = find_rule(module)
            assert rule is not None
            third_party = declared(pyproject, rule.extras)
            for item in found:
                problem = judge(item, folder, rule, third_party)
                if problem:
                    problems.append(f"{module}:{item.line}: {problem}")
        # packages of tests mirror the others', and share what they make
        ring = find_cycle(edges) if folder == "tests" else find_knot(edges)
        if ring:
            problems.append(f"{folder}: cycle {' -> '.join(ring)}")
    return problems


def test_this_repository_is_layered() -> None:
    assert check_layers(ROOT, ROOT / "pyproject.toml") == []


def may_be_heavy(module: str) -> bool:
    return any(is_within(module, {package}) and module not in light for package, light in MAY_BE_HEAVY.items())


@pytest.mark.parametrize("package", LIGHT)
def test_importing_a_package_loads_nothing_heavy(package: str) -> None:
    names = [name for name in modules_of(ROOT / package) if not name.endswith("__main__") and not may_be_heavy(name)]
    assert names
    program = f"import sys, {', '.join(names)}; print(*{{name.split('.')[0] for name in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(result.stdout.split()) & LIGHT[package] == set()


CLEAN = {
    "moddit/__init__.py": "",
    "moddit/errors.py": "import json\n",
    "moddit/spec.py": "import numpy as np\nfrom moddit import errors\nfrom moddit.errors import json\n",
    "moddit/pictures.py": "import PIL.Image\n",
    "moddit/checkpoint/pth.py": "import numpy\ndef read():\n    import torch\n",
    "convert/__init__.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n",
    "convert/pth.py": "def read():\n    import torch\n    from torch_moddit import model\n",
    "convert/coreml/package.py": "import coremltools as ct\nfrom convert import pth\n",
    "convert/verify/package.py": "import torch\nimport torch_moddit.model\nfrom google.protobuf import message\n",
    "mlx_moddit/cli.py": "import click\nimport PIL.Image\nimport mlx.core as mx\nfrom moddit.pictures import PIL\n",
    "torch_moddit/model.py": "import torch\nfrom diffusers import PixArtTransformer2DModel\n",
    "torch_moddit/cli.py": "import torch_moddit.model\n",
    "torch_moddit/train.py": "if __name__ == '__main__':\n    from torch_moddit.cli import main\n",
    "tests/test_all.py": "import convert, mlx_moddit, torch_moddit, recipes, pytest\n",
}


def build_tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_accepts_a_layered_tree(tmp_path: Path) -> None:
    assert check_layers(build_tree(tmp_path, CLEAN), ROOT / "pyproject.toml") == []


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("moddit/a.py", "import torch", "moddit.a:1: imports torch"),
        ("moddit/a.py", "def f():\n    import mlx.core as mx", "moddit.a:2: imports mlx.core"),
        (
            "moddit/checkpoint/a.py",
            "import tokenizers",
            "moddit.checkpoint.a:1: imports tokenizers outside a function",
        ),
        ("moddit/checkpoint/a.py", "def f():\n    import mlx.core", "moddit.checkpoint.a:2: imports mlx.core"),
        ("moddit/a.py", "from click import echo", "moddit.a:1: imports click"),
        ("moddit/a.py", "import PIL.Image", "moddit.a:1: imports PIL.Image"),
        ("moddit/a.py", "from moddit.pictures import PIL", "moddit.a:1: imports moddit.pictures"),
        ("moddit/checkpoint/a.py", "from moddit import pictures", "moddit.checkpoint.a:1: imports moddit.pictures"),
        ("convert/a.py", "def f():\n    import moddit.pictures", "convert.a:2: imports moddit.pictures"),
        ("moddit/a.py", "from convert import b", "moddit.a:1: imports convert"),
        ("moddit/a.py", "import importlib\nimportlib.import_module('torch')", "moddit.a:2: imports torch"),
        ("moddit/a.py", "import importlib\nimportlib.import_module(name)", "moddit.a:2: imports by a computed"),
        ("moddit/a.py", "if __name__ == '__main__':\n    import torch", "moddit.a:2: imports torch"),
        ("moddit/a.py", "from . import spec", "moddit.a:1: imports by a computed or relative name"),
        ("moddit/a.py", "try:\n    import scipy\nexcept ImportError:\n    pass", "moddit.a:2: imports scipy"),
        ("torch_moddit/a.py", "import convert", "torch_moddit.a:1: imports convert"),
        ("torch_moddit/a.py", "import mlx.core", "torch_moddit.a:1: imports mlx.core"),
        ("mlx_moddit/a.py", "def f():\n    import torch", "mlx_moddit.a:2: imports torch"),
        ("mlx_moddit/a.py", "from convert.cli import main", "mlx_moddit.a:1: imports convert.cli"),
        ("mlx_moddit/a.py", "from torch_moddit import model", "mlx_moddit.a:1: imports torch_moddit"),
        ("convert/a.py", "import torch", "convert.a:1: imports torch outside a function"),
        ("convert/a.py", "class A:\n    from torch_moddit import model", "convert.a:2: imports torch_moddit outside"),
        ("convert/a.py", "def f():\n    import mlx_moddit", "convert.a:2: imports mlx_moddit"),
        ("convert/a/b.py", "def f():\n    import mlx.core", "convert.a.b:2: imports mlx.core"),
        ("convert/a.py", "import coremltools", "convert.a:1: imports coremltools"),
        ("convert/coreml/a.py", "def f():\n    import torch", "convert.coreml.a:2: imports torch"),
        (
            "convert/coreml/a.py",
            "from convert.verify import package",
            "convert.coreml.a:1: imports convert.verify.package",
        ),
        ("convert/verify/a.py", "import convert.coreml.package", "convert.verify.a:1: imports convert.coreml.package"),
        ("convert/verify/a.py", "import mlx.core", "convert.verify.a:1: imports mlx.core"),
        (
            "torch_moddit/model.py",
            "if __name__ == '__main__':\n    from torch_moddit.cli import main",
            "torch_moddit: cycle torch_moddit.cli -> torch_moddit.model -> torch_moddit.cli",
        ),
        ("recipes/a.py", "import tests.tiny", "recipes.a:1: imports tests.tiny"),
        ("recipes/a.py", "import benchmarks", "recipes.a:1: imports benchmarks"),
        ("helpers/a.py", "import json", "helpers: has no rule"),
        (
            "moddit/errors.py",
            "from moddit.spec import x",
            "moddit: cycle moddit.errors -> moddit.spec -> moddit.errors",
        ),
        ("moddit/errors.py", "def f():\n    import moddit.spec", "moddit: cycle moddit.errors -> moddit.spec"),
        ("moddit/__init__.py", "from moddit.a import b", "moddit: cycle moddit -> moddit.a -> moddit"),
    ],
)
def test_finds_what_breaks_a_layered_tree(name: str, text: str, problem: str, tmp_path: Path) -> None:
    extra = {"moddit/a.py": "from moddit import VERSION"} if name == "moddit/__init__.py" else {}
    problems = check_layers(build_tree(tmp_path, CLEAN | {name: text} | extra), ROOT / "pyproject.toml")
    assert len(problems) == 1
    assert problems[0].startswith(problem)


def test_finds_packages_that_import_each_other_through_different_modules(tmp_path: Path) -> None:
    knot = {
        "convert/backends.py": "def write():\n    from convert.verify import package\n",
        "convert/verify/command.py": "from convert.backends import write\n",
    }
    problems = check_layers(build_tree(tmp_path, CLEAN | knot), ROOT / "pyproject.toml")
    assert problems == ["convert: cycle convert.backends -> convert.verify -> convert.backends"]


def test_packages_of_tests_may_share_what_they_make(tmp_path: Path) -> None:
    knot = {
        "tests/convert/test_a.py": "from tests.moddit.test_b import x\n",
        "tests/moddit/test_b.py": "x = 1\n",
        "tests/moddit/test_c.py": "from tests.convert.test_d import y\n",
        "tests/convert/test_d.py": "y = 1\n",
    }
    assert check_layers(build_tree(tmp_path, CLEAN | knot), ROOT / "pyproject.toml") == []
