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


def part_of(name):
    """The folder or top-level module that a module belongs to: `layers`, `config`."""
    return name.split(".")[1] if "." in name else "jaxformer"


def floors():
    """The order of the page, lowest floor first, each as the names on it."""
    line = re.search(r"Each floor imports only those below it:\n((?:`.*\n)+)", PAGE)[1]
    return [re.findall(r"`(\w+)`", floor) for floor in reversed(line.split(">"))]


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
