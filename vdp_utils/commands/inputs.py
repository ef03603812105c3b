"""Which files of this package a notebook's results depend on, read from imports alone."""

import ast
import json
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def files_of(notebook) -> list[Path]:
    """The modules that a notebook reaches through imports, and the data files that lie with them.

    A package whose `__init__` passes on its modules' names, as `figures` does, is looked through:
    who uses `figures.decline` depends on the module of that name and not on its neighbours. A
    notebook that is not plain Python, or broken, depends on everything.
    """
    try:
        cells = json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]
        code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
        todo = _named(ast.parse("\n".join(code)))
    except (ValueError, KeyError, TypeError, SyntaxError):
        todo = set(PACKAGE.rglob("*.py"))
    found = set()
    while todo:
        path = todo.pop()
        found.add(path)
        todo |= _imports(path) - found
    return sorted(found | {path for folder in {path.parent for path in found}
                           for path in folder.glob("*.*") if path.suffix != ".py"})


@cache
def _imports(path: Path) -> set[Path]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if path.name == "__init__.py":  # what it only passes on is for those who ask for it
        used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        tree.body = [node for node in tree.body if not isinstance(node, ast.ImportFrom)
                     or used & {one.asname or one.name for one in node.names}]
    return _named(tree)


def _named(tree: ast.AST) -> set[Path]:
    """The modules of this package whose names, or names in them, stand in a piece of code."""
    names, bound = set(), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {one.name for one in node.names}
        elif isinstance(node, ast.ImportFrom):
            bound |= {one.asname or one.name: f"{node.module}.{one.name}" for one in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names.add(f"{bound.get(node.value.id)}.{node.attr}")
    return {_module(name) for name in names | set(bound.values())
            if name.startswith(f"{PACKAGE.name}.")}


def _module(name: str) -> Path:
    """The file that holds what has a dotted name: a module's own, or that of what is in it."""
    path = PACKAGE.parent.joinpath(*name.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    package, _, attribute = name.rpartition(".")
    file = _module(package)
    origin = _passed_on(file).get(attribute) if file.name == "__init__.py" else None
    return _module(origin) if origin else file


@cache
def _passed_on(init: Path) -> dict[str, str]:
    """{name: its dotted origin} of what a package's __init__ imports."""
    nodes = ast.parse(init.read_text(encoding="utf-8")).body
    return {one.asname or one.name: f"{node.module}.{one.name}"
            for node in nodes if isinstance(node, ast.ImportFrom) for one in node.names}
