"""Prose is plain English: refuses words of an older dialect in docstrings, comments, messages, test names and pages.

`python tests/test_prose.py` counts what is left in the files that are not yet read; `--sample [SEED]` prints 60
docstrings for a reader, with the seed that they were drawn by.
"""

import ast
import io
import random
import re
import sys
import tokenize
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SAMPLE = 60
"""Docstrings that `--sample` prints."""

MARKERS = {
    r"told|tells?": "say what it does: reports, names, distinguishes",
    r"(?<!one )(?<!each )(?<!some )(?<!all )(?<!none )(?<!both )(?<!most )of which": "use two sentences, or 'whose'",
    r"go(?:es|ing)? on|went on": "continues, generates",
    r"(?:a|the) person|people read": "the user, the reader; or leave it out",
    r"stands?(?! for)": "is, appears",
    r"(?:of|as) (?:ours|theirs)|theirs of|ours of": "name the two sides: our parameters, the tensors of transformers",
    r"behind": "after",
    r"anew": "again, new",
    r"nobody|whoever|whosoever": "name who, or use the passive",
    r"but for": "except for",
    r"of (?:itself|themselves)": "by default",
    r"lies": "is",
    r"the same of": "name it",
    r"without a word": "silently",
    r"put right|mend(?:s|ed|ing)?": "fix, correct",
    r"so (?:many|much)": "a number of; name the argument",
    r"(?<!there )(?<!makes )(?:is|are|was) no(?! longer)(?= \w)": "is not a",
    r"makes? of (?:it|them|a|the|us)": "name the result",
    r"in training alone": "only in training",
    r"a token more": "one more token, one decoding step",
    r"begins? (?:anew|with (?:an? )?(?:imported|run|weights))": "initialises from, restarts",
    r"lain|lay there|lest|wherein|thereof|thereby|hence|upon|thus|whence": "use a plain connective",
}
"""Regular expressions of the dialect, as whole words, and what to write instead."""

UNREAD: dict[str, int] = {}
"""Files that are not yet rewritten, by the number of markers in them. A file leaves the list once it has none."""

_PATTERN = re.compile("|".join(rf"\b(?:{marker})\b" for marker in MARKERS), re.IGNORECASE)
_FRAGMENT = re.compile(r"\s*(?:What|Those|Whoever|Theirs|Ours|Of(?! [^.,]*,))(?= )")
"""The start of a docstring that does not name its subject."""


def files():
    """The files that people read."""
    folders = ("jaxformer", "tests", "configs", "benchmarks", "colab")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    return sorted({*found, *pages} - {Path(__file__).resolve()})


def prose(path):
    """The line, the text and whether it is a docstring of each piece of prose in a file.

    Pages have lines; modules have docstrings, comments, messages and the names of tests.
    """
    source = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        text = re.sub(r"^```.*?^```", lambda block: "\n" * block[0].count("\n"), source, flags=re.MULTILINE | re.DOTALL)
        yield from ((number, line, False) for number, line in enumerate(text.splitlines(), 1))
        return
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string, False
    tree = ast.parse(source)
    for line, text, is_docstring in strings(tree):
        if is_docstring or not path.is_relative_to(ROOT / "tests"):
            yield line, text, is_docstring
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            yield node.lineno, node.name.replace("_", " "), False


def strings(tree):
    """The line, the text and whether it is a docstring of each string that has words; docstrings of fields too."""
    docstrings = {
        id(statement.value)
        for node in ast.walk(tree)
        for statement in (node.body if isinstance(getattr(node, "body", None), list) else ())
        if isinstance(statement, ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value, id(node) in docstrings


def markers(path):
    """The line, the marker and its surroundings of each marker in a file."""
    for first, text, is_docstring in prose(path):
        plain = re.sub(r"`[^`]*`", lambda code: "·" * len(code[0]), text)
        fragments = [_FRAGMENT.match(plain)] if is_docstring else []
        for found in filter(None, [*fragments, *_PATTERN.finditer(plain)]):
            line = first + text.count("\n", 0, found.start())
            around = " ".join(text[max(0, found.start() - 60) : found.end() + 40].split())
            yield line, found[0].strip(), around


def name(path):
    return path.relative_to(ROOT).as_posix()


def test_prose_has_no_marker_of_the_dialect():
    found = {name(path): list(markers(path)) for path in files()}
    lines = [
        f"{file}:{line}: {word!r} in: {around}"
        for file in found
        if file not in UNREAD
        for line, word, around in found[file]
    ]
    assert not lines, "write it in plain English (MARKERS says how):\n" + "\n".join(lines)


@pytest.mark.parametrize("file", UNREAD)
def test_a_file_that_is_not_yet_read_gets_no_further_markers(file):
    """Lower its number in `UNREAD`, or remove it at 0."""
    assert len(list(markers(ROOT / file))) == UNREAD[file]


def test_markers_are_found_in_every_kind_of_prose(tmp_path):
    module = tmp_path / "module.py"
    module.write_text('"""What is told."""\n# behind it\nx = f"goes on {1}"\n\n\ndef test_it_stands():\n    pass\n')
    found = sorted((line, word) for line, word, _ in markers(module))
    assert found == [(1, "What"), (1, "told"), (2, "behind"), (3, "goes on"), (6, "stands")]
    page = tmp_path / "page.md"
    page.write_text("Plain.\n```python\n# told\n```\n`told` told\n")
    assert [(line, word) for line, word, _ in markers(page)] == [(5, "told")]


def documented(tree, outer="", inner=""):
    """The line, what is documented (`class Mlp`, `Mlp.def f(x)`, `Mlp.width: int`) and the text of each docstring."""
    before = None
    for statement in tree.body:
        value = getattr(statement, "value", None)
        if isinstance(statement, ast.Expr) and isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield statement.lineno, f"{inner}{heading(before)}" if before else f"{outer}{heading(tree)}", value.value
        elif isinstance(statement, ast.ClassDef):
            yield from documented(statement, inner, f"{statement.name}.")
        elif isinstance(statement, ast.FunctionDef):
            yield from documented(statement, inner)
        before = statement


def heading(node):
    """A class, a function or a field without what is in it."""
    if isinstance(node, ast.Module):
        return "(module)"
    text = ast.unparse(node)
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return next(line for line in text.splitlines() if line.startswith(("class ", "def ")))
    return text.partition("\n")[0]


def sample(seed):
    """Prints docstrings of the library with what they document, drawn by a seed."""
    found = [
        (f"{name(path)}:{line}", what, text)
        for path in sorted((ROOT / "jaxformer").rglob("*.py"))
        for line, what, text in documented(ast.parse(path.read_text(encoding="utf-8")))
    ]
    print(f"seed {seed}: {SAMPLE} of {len(found)} docstrings")
    for where, what, text in random.Random(seed).sample(found, SAMPLE):
        print(f"\n{where}\n{what}\n    {text.strip()}")


def main(arguments):
    if arguments[:1] == ["--sample"]:
        sample(int(arguments[1]) if len(arguments) > 1 else random.randrange(10_000))
        return
    counts = Counter({name(path): len(list(markers(path))) for path in files()})
    for file, count in counts.most_common():
        if count:
            print(f'    "{file}": {count},')
    print(counts.total())


if __name__ == "__main__":
    main(sys.argv[1:])
