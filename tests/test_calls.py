"""Calls name their arguments, and functions take few.

`f(*(a, b))` and `f(**{"a": a})` of a literal, or of a name for one in the same function, hide which argument
is which from readers, type checkers and searches.
"""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "jaxformer"
SPLATS = 0
"""Calls through literals that may be left."""
LONG = 8
"""Functions of more than `PARAMETERS` parameters that may be left."""
PARAMETERS = 6

Function = ast.FunctionDef | ast.AsyncFunctionDef


def is_literal(node, names):
    """Whether an expression is a tuple, a list or a dict with constant keys, or a name of one.

    An empty dict is filled elsewhere, perhaps under keys that are computed.
    """
    if isinstance(node, ast.Name):
        return node.id in names
    if isinstance(node, ast.Dict):
        return bool(node.keys) and all(key is None or isinstance(key, ast.Constant) for key in node.keys)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        return is_literal(node.left, names) and is_literal(node.right, names)
    return isinstance(node, ast.Tuple | ast.List)


def scopes(tree):
    """Each function with the nodes in it that are in no function inside of it."""
    for function in ast.walk(tree):
        if isinstance(function, Function):
            waiting, nodes = list(function.body), []
            while waiting:
                node = waiting.pop()
                nodes.append(node)
                if not isinstance(node, Function):
                    waiting += ast.iter_child_nodes(node)
            yield function, nodes


def splats(tree):
    """The lines of calls through literals."""
    found = []
    for _, nodes in scopes(tree):
        bound = {}
        for node in nodes:
            if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
                bound.setdefault(node.targets[0].id, []).append(node.value)
        names = {name for name, values in bound.items() if all(is_literal(value, ()) for value in values)}
        for node in nodes:
            if isinstance(node, ast.Call):
                spread = [one.value for one in node.args if isinstance(one, ast.Starred)]
                spread += [one.value for one in node.keywords if one.arg is None]
                found += [node.lineno] * any(is_literal(one, names) for one in spread)
    return sorted(found)


def long_signatures(tree):
    """The functions with more parameters than `PARAMETERS`, without self and cls."""
    found = []
    for function in ast.walk(tree):
        if isinstance(function, Function):
            arguments = function.args
            names = [one.arg for one in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
            if len(set(names) - {"self", "cls"}) > PARAMETERS:
                found.append(function.name)
    return found


def everywhere(search):
    """The results of a search in the library, each with its file."""
    files = sorted(PACKAGE.rglob("*.py"))
    return [
        f"{path.relative_to(PACKAGE)}:{one}" for path in files for one in search(ast.parse(path.read_text("utf-8")))
    ]


def test_calls_name_their_arguments():
    found = everywhere(splats)
    print(f"{len(found)} calls through literals:", *found, sep="\n")
    assert len(found) <= SPLATS, found


def test_functions_take_few_parameters():
    found = everywhere(long_signatures)
    print(f"{len(found)} functions with more than {PARAMETERS} parameters:", *found, sep="\n")
    assert len(found) <= LONG, found


def test_the_search_sees_literals_and_names_of_them():
    assert splats(ast.parse("def f(a):\n g(*(a, 1))\n g(**{'a': a})\n g(**{a: a})\n g(*a)\n g(*[x for x in a])")) == [
        2,
        3,
    ]
    assert splats(ast.parse("def f(a):\n b = {'c': 1} | {'d': 2}\n g(**b)\n def h(b):\n  g(**b)")) == [3]
    assert splats(ast.parse("def f(a):\n b = (1, a)\n b = a\n g(*b)")) == []
    assert splats(ast.parse("def f(a):\n b = {}\n b[a] = 1\n g(**b)")) == []


def test_the_search_counts_parameters():
    assert long_signatures(ast.parse("def f(self, a, b, c, d, *, e, g): ...")) == []
    assert long_signatures(ast.parse("def f(a, b, c, d, *rest, e, g, h=1): ...")) == ["f"]
