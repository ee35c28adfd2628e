"""The project's modules import each other one way, in functions and for annotations too."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def imports(folder: Path, package: str) -> dict[str, set[str]]:
    """Module -> the modules of the package that it imports. The package itself, which Python runs first in any case,
    has the version and the functions for users, and is left out."""
    files = {path.relative_to(folder).with_suffix("").parts: path for path in (folder / package).rglob("*.py")}
    modules = {".".join(name[:-1] if name[-1] == "__init__" else name): path for name, path in files.items()}
    del modules[package]
    found: dict[str, set[str]] = {}
    for module, path in modules.items():
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                places = ((f"{node.module}.{alias.name}", node.module) for alias in node.names)
                names |= {submodule if submodule in modules else place for submodule, place in places}
        found[module] = names & modules.keys() - {module}
    return found


def test_no_module_imports_itself_by_way_of_others():
    try:
        TopologicalSorter(imports(ROOT, "pipeline")).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def test_a_circle_is_found(tmp_path):
    files = {
        "__init__": "from p import a",
        "a": "def f():\n    from p.b import c",
        "b/__init__": "import p",
        "b/c": "import typing\nif typing.TYPE_CHECKING:\n    import p.a",
    }
    for name, text in files.items():
        (tmp_path / "p" / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / "p" / f"{name}.py").write_text(text)
    graph = imports(tmp_path, "p")
    assert graph == {"p.a": {"p.b.c"}, "p.b": set(), "p.b.c": {"p.a"}}
    with pytest.raises(CycleError):
        TopologicalSorter(graph).prepare()
