"""`import jaxformer as jf` has every public name, imports it on first use, and type checkers see the same names."""

import ast
import importlib
import inspect
import pydoc
import re
import rlcompleter
import subprocess
import sys
from pathlib import Path

import pytest

import jaxformer as jf
from jaxformer import namespaces

ROOT = Path(__file__).parent.parent
NAMESPACES = ("data", "layers", "metrics", "models", "objectives", "optimizers", "tokenizers")
MODULES = {"jaxformer": jf} | {f"jaxformer.{name}": getattr(jf, name) for name in NAMESPACES}


@pytest.fixture(params=MODULES)
def module(request):
    return MODULES[request.param]


def typed(module):
    """Each name that a type checker sees, with the module that it is imported from."""
    tree = ast.parse(inspect.getsource(module))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    found = {}
    for node in block.body:
        for alias in node.names:
            assert alias.name == alias.asname, "a type checker takes `X as X` for a name that is exported"
            found[alias.name] = node.module
    return found


def test_type_checkers_see_the_names_of_the_table(module):
    homes = typed(module)
    assert sorted(homes) == module.__all__
    for name, home in homes.items():
        value = getattr(module, name)
        assert value is getattr(importlib.import_module(home), name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__module__ == home, f"{name}: {home} only passes it on"


def test_no_name_is_hidden_by_a_submodule(module):
    """Importing a submodule sets an attribute of its package."""
    submodules = {path.stem for path in Path(module.__file__).parent.glob("*")} if "__init__" in module.__file__ else ()
    assert not (set(module.__all__) - set(NAMESPACES)) & set(submodules)


def test_no_name_is_in_two_namespaces():
    names = [name for path, module in MODULES.items() if path != "jaxformer" for name in module.__all__]
    assert len(names) == len(set(names))


def test_dir_and_star_have_the_names(module):
    assert set(module.__all__) <= set(dir(module))
    assert all(name in module.__all__ or name.startswith("__") for name in dir(module))
    scope = {}
    exec(f"from {module.__name__} import *", scope)
    assert set(module.__all__) <= scope.keys()


def test_tab_completes_and_help_lists():
    completer = rlcompleter.Completer({"jf": jf})
    assert completer.complete("jf.models.Enc", 0).startswith("jf.models.EncoderDecoder")
    assert "class Bert" in pydoc.plain(pydoc.render_doc(jf.models))


@pytest.mark.parametrize(
    "expression, perhaps",
    [("jf.models.Bret", "Bert"), ("jf.optimizers.Adam", "AdamW"), ("jf.fot", "fit"), ("jf.data.Tfd", "Tfds")],
)
def test_a_misspelt_name_has_a_suggestion(expression, perhaps):
    with pytest.raises(AttributeError, match=rf"has no attribute '\w+'; perhaps {perhaps}$"):
        eval(expression, {"jf": jf})


def test_a_private_name_has_no_suggestion():
    with pytest.raises(AttributeError, match=r"has no attribute '__wrapped__'$"):
        jf.models.__wrapped__  # noqa: B018


def test_a_field_of_a_public_class_can_be_corrected(tmp_path):
    (tmp_path / "c.py").write_text("import jaxformer as jf\nexperiment = jf.layers.Transformer(widht=8)\n")
    with pytest.raises(jf.InputError, match=r"line 2: TypeError: .*'widht'; perhaps width"):
        jf.load(tmp_path / "c.py")
    assert namespaces.find("Transformer") is jf.layers.Transformer and namespaces.find("Nothing") is None


def test_importing_the_package_imports_neither_jax_nor_a_model():
    code = "import sys, jaxformer as jf; jf.data, jf.models, jf.layers; dir(jf.optimizers); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    modules = set(done.stdout.split())
    assert not modules & {"jax", "flax", "numpy", "jaxformer.models.bert"}


def test_configs_and_pages_need_one_import():
    sources = [*(ROOT / "configs").glob("*.py"), *(ROOT / "colab").glob("*.py")]
    blocks = {path: path.read_text(encoding="utf-8") for path in sources}
    blocks |= {"README": "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL))}
    for path, text in blocks.items():
        imports = {line for line in text.splitlines() if re.match(r"(from|import) jaxformer", line)}
        assert imports == {"import jaxformer as jf"}, path
