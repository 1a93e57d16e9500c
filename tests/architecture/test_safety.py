"""Models and messages are data: nothing in the project runs what it reads, and nothing tells secrets."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDERS = ("server", "engines", "examples", "loadtest", "deploy")
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "jsonpickle"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_ATTRIBUTES = {"register_custom_ops_library", "load_pickle", "unsafe_load", "full_load"}


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for folder in FOLDERS:
        for path in sorted(Path(folder).rglob("*.py")):
            yield path, ast.parse(path.read_text())


def complaints(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (name.name for name in names if name.name.split(".")[0] in FORBIDDEN_MODULES)
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in FORBIDDEN_MODULES:
                yield module
            case ast.Call(func=ast.Name(id=name)) if name in FORBIDDEN_CALLS:
                yield name
            case ast.Attribute(attr=name) if name in FORBIDDEN_ATTRIBUTES:
                yield name
            case ast.Call(func=ast.Attribute(value=ast.Name(id="np" | "numpy"), attr="load")):
                if not any(_refuses_pickles(keyword) for keyword in node.keywords):
                    yield "np.load without allow_pickle=False"
            case ast.Call(func=ast.Attribute(value=ast.Name(id="yaml"), attr="load")):
                yield "yaml.load"


def _refuses_pickles(keyword: ast.keyword) -> bool:
    return keyword.arg == "allow_pickle" and isinstance(keyword.value, ast.Constant) and keyword.value.value is False


def test_nothing_is_unpickled_or_evaluated_and_no_custom_operators_are_loaded() -> None:
    found = {str(path): list(complaints(tree)) for path, tree in sources()}
    assert len(found) > 150
    assert {path: what for path, what in found.items() if what} == {}


@pytest.mark.parametrize(
    "text",
    ["import pickle", "from pickle import loads", "eval('1')", "np.load(x)", "np.load(x, allow_pickle=True)",
     "options.register_custom_ops_library(x)", "yaml.load(x)", "import os, marshal"],
)  # fmt: skip
def test_the_search_finds_what_it_looks_for(text: str) -> None:
    assert list(complaints(ast.parse(text)))
