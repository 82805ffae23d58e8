"""Who may import whom: the order of docs/architecture.md, read from the imports themselves."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "jaxformer"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def import_nodes(tree, typing_only):
    """The import statements of a module, those in functions too; those under `TYPE_CHECKING` where asked for."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif is_type_checking(node):
            waiting += node.body * typing_only + node.orelse
        else:
            waiting += ast.iter_child_nodes(node)


def imported(name, typing_only=False):
    """The modules of jaxformer that a module imports."""
    found = set()
    for node in import_nodes(ast.parse(FILES[name].read_text(encoding="utf-8")), typing_only):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            assert node.level == 0, f"{name}: imports are absolute"
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {part if part in FILES else node.module for part in parts}
    return {one for one in found if one in FILES and one != name}


GRAPH = {name: imported(name) for name in FILES}


def floors():
    """The floor of each name in the page's list; 0 is the lowest."""
    section = PAGE.split("## Which modules may import which")[1].split("\n## ")[0]
    lines = [line.split(": ")[0] for line in re.findall(r"^\d+\. (.*)$", section, re.MULTILINE)]
    return {name: floor for floor, line in enumerate(reversed(lines)) for name in re.findall(r"`([\w.]+)`", line)}


FLOORS = floors()


def floor_of(name):
    """The floor of a module: that of the longest name in the list that its path begins with."""
    parts = name.split(".")[1:]
    ends = [".".join(parts[:end]) for end in range(len(parts), 0, -1)]
    return next((FLOORS[part] for part in ends if part in FLOORS), None)


def circles(graph):
    """The strongly connected components of more than one module (Tarjan 1972)."""
    index, low, stack, found = {}, {}, [], []

    def visit(node):
        index[node] = low[node] = len(index)
        stack.append(node)
        for other in graph[node]:
            if other not in index:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == index[node]:
            component = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(component) > 1:
                found.append(sorted(component))

    for node in graph:
        if node not in index:
            visit(node)
    return found


def test_the_search_finds_a_circle():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}
    assert circles(graph) == [["b", "c"]]


def test_no_modules_import_each_other_in_a_circle():
    """Imports in functions count: they hide a circle, and do not open it."""
    assert circles(GRAPH) == []


MODULES = [name for name in FILES if name not in ("jaxformer", "jaxformer.__main__")]
"""All but the package itself, whose names are imported on first use, and the program."""


def test_every_module_is_on_a_floor_and_every_name_is_a_module():
    assert [name for name in MODULES if floor_of(name) is None] == []
    assert [name for name in FLOORS if f"jaxformer.{name}" not in FILES] == []


def test_no_module_imports_one_of_a_floor_above():
    above = [
        f"{name} (floor {floor_of(name)} from below) imports {one} (floor {floor_of(one)})"
        for name in MODULES
        for one in GRAPH[name] - {"jaxformer"}
        if floor_of(one) > floor_of(name)
    ]
    assert above == []


def test_data_knows_nothing_of_models():
    """Processes that prepare batches import these alone, and no JAX."""
    allowed = {
        "data",
        "datasets",
        "classes",
        "digests",
        "ending",
        "errors",
        "storage",
        "field_docs",
        "fields",
        "limits",
        "namespaces",
        "progress",
    }
    allowed |= {"suggestions"}
    for name in MODULES:
        if name.split(".")[1] in ("data", "datasets"):
            assert {one.split(".")[1] for one in GRAPH[name]} <= allowed, name
            for node in import_nodes(ast.parse(FILES[name].read_text(encoding="utf-8")), typing_only=False):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
                assert not {one.split(".")[0] for one in names} & {"jax", "flax", "optax", "orbax"}, name


def test_an_import_from_a_higher_floor_is_reported(tmp_path, monkeypatch):
    """The reading finds an import in a function and one of several lines."""
    path = tmp_path / "module.py"
    path.write_text("def f():\n    from jaxformer.training import (\n        loop,\n    )\n    import jaxformer.cli\n")
    monkeypatch.setitem(FILES, "jaxformer.layers.new", path)
    assert imported("jaxformer.layers.new") == {"jaxformer.training.loop", "jaxformer.cli"}
    assert floor_of("jaxformer.layers.new") < floor_of("jaxformer.training.loop") < floor_of("jaxformer.cli")
