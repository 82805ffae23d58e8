"""Hooks of MkDocs that complete the pages of docs/ to a site.

- Files outside of docs/ that a page links to, such as README.md and the configs, become pages of the site.
- Each namespace has a page that lists all of its public names, with their docstrings.
- The tables of docs/families.md get a column with the results of the configs in docs/recipes.md.
- Pages of docs/ that mkdocs.yml does not place in the navigation are added to its section "Guides".
"""

import ast
import importlib
import posixpath
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DOCS = "docs"
NAMESPACES = ("", "models", "layers", "objectives", "metrics", "data", "tokenizers", "optimizers")
"""The namespaces, each with a page of the API. The empty name is that of `jaxformer` itself."""
PLACES = {"README.md": "overview.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""Maps files at the root to their pages. Other files keep their path, with the ending .md."""
LANGUAGES = {".py": "python", ".sh": "bash", ".toml": "toml", ".yml": "yaml"}
SECTION = "Guides"
_LINK = re.compile(r"(?<=\]\()([^)\s#:]+)((?:#[^)\s]*)?)(?=\))")
_CONFIG = re.compile(r"configs/(\w+)\.(?:py|md)")
_origins: dict[str, str] = {}
"""Maps the pages that were made from files outside of docs/ to the paths of these files."""


def on_config(config: Any) -> Any:
    """Adds pages that the navigation lacks to its section "Guides"."""
    placed = set(_pages(config["nav"]))
    for section in config["nav"]:
        if SECTION in section:
            section[SECTION] += [path for path in _documents() if path not in placed]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages of the API, and those of files outside of docs/ that pages link to."""
    from mkdocs.structure.files import File

    for name in NAMESPACES:
        files.append(File.generated(config, api_page(name), content=api(name)))
    for path in outside():
        _origins[place(path)] = path
        files.append(File.generated(config, place(path), content=page(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Changes the links of a page so that they lead to pages of the site."""
    uri = page.file.src_uri
    markdown = with_results(markdown) if uri == "families.md" else markdown
    markdown = with_links_to_configs(markdown) if uri == "recipes.md" else markdown
    return linked(markdown, _origins.get(uri, f"{DOCS}/{uri}"), uri)


def _pages(entry: Any) -> Iterator[str]:
    """Yields the paths of all pages in an entry of the navigation."""
    if isinstance(entry, str):
        yield entry
        return
    for one in entry.values() if isinstance(entry, dict) else entry:
        yield from _pages(one)


def _documents() -> list[str]:
    """Returns the paths of all pages in docs/, relative to it."""
    return sorted(path.relative_to(ROOT / DOCS).as_posix() for path in (ROOT / DOCS).rglob("*.md"))


def place(path: str) -> str:
    """Returns the page of a file, given the path of the file in the repository."""
    if path.startswith(f"{DOCS}/"):
        return path.removeprefix(f"{DOCS}/")
    if (ROOT / path).is_dir():
        return "recipes.md"
    return PLACES.get(path) or Path(path).with_suffix(".md").as_posix()


def outside() -> list[str]:
    """Returns the paths of the files outside of docs/ that become pages: all configs, the files in `PLACES`, and every
    file that one of these pages or a page of docs/ links to.
    """
    found = dict.fromkeys([*PLACES, *sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("configs/*.py"))])
    waiting = [*(f"{DOCS}/{name}" for name in _documents()), *PLACES]
    while waiting:
        origin = waiting.pop()
        for target, _ in _LINK.findall((ROOT / origin).read_text(encoding="utf-8")):
            path = resolved(origin, target)
            if path and not path.startswith(f"{DOCS}/") and path not in found and (ROOT / path).is_file():
                found[path] = None
                waiting += [path] if path.endswith(".md") else []
    return list(found)


def resolved(origin: str, target: str) -> str | None:
    """Returns the path in the repository to which a link of the file `origin` leads. None if there is no such file."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
    return path if not path.startswith("..") and (ROOT / path).exists() else None


def linked(markdown: str, origin: str, uri: str) -> str:
    """Replaces the links to files by links to their pages.

    Args:
      markdown: text of the page.
      origin: path of the file, in the repository, to which the links are relative.
      uri: path of the page in the site.
    """

    def replaced(found: re.Match) -> str:
        path = resolved(origin, found[1])
        return found[0] if path is None else posixpath.relpath(place(path), posixpath.dirname(uri) or ".") + found[2]

    return _LINK.sub(replaced, markdown)


def page(path: str) -> str:
    """Returns the page of a file outside of docs/ as Markdown. A page of a Markdown file is the file."""
    source = ROOT / path
    if source.suffix == ".ipynb":
        return notebook(source.with_suffix(".py").read_text(encoding="utf-8"), path)
    text = source.read_text(encoding="utf-8")
    if source.suffix == ".md":
        return text
    if path.startswith("configs/"):
        return config_page(text, source.stem)
    language = LANGUAGES.get(source.suffix, "text")
    return f"# {path}\n\n{fenced(text, language)}"


def config_page(source: str, name: str) -> str:
    """Returns the page of a config: its docstring, its result, and its code."""
    docstring = ast.get_docstring(ast.parse(source)) or ""
    code = source.split('"""', 2)[2].strip()
    result = results().get(name)
    measured = f"\n\n**Result:** {result}. See [recipes](../recipes.md)." if result else ""
    return f"# {name}\n\n{escaped(docstring)}{measured}\n\n## The config\n\n{fenced(code, 'python')}"


def notebook(source: str, path: str) -> str:
    """Returns a notebook as Markdown, given its source in the percent format of jupytext."""
    cells = re.split(r"^# %%(.*)\n", source, flags=re.MULTILINE)[1:]
    parts = [f"*The notebook is {path}.*"]
    for kind, cell in zip(cells[::2], cells[1::2], strict=True):
        if "[markdown]" in kind:
            parts.append(re.sub(r"^# ?", "", cell.strip(), flags=re.MULTILINE))
        elif cell.strip():
            parts.append(fenced(cell.strip(), "python"))
    head = next((index for index, part in enumerate(parts) if part.startswith("# ")), None)
    if head is None:
        return "\n\n".join([f"# {Path(path).stem}", *parts])
    return "\n\n".join([parts.pop(head), *parts])


def fenced(code: str, language: str) -> str:
    """Returns code as a block of Markdown."""
    return f"````{language}\n{code.strip()}\n````"


def escaped(text: str) -> str:
    """Escapes the characters of plain text that have a meaning in Markdown, except in indented blocks."""
    lines = text.splitlines()
    return "\n".join(line if line.startswith("    ") else re.sub(r"([*_<\[])", r"\\\1", line) for line in lines)


def results() -> dict[str, str]:
    """Returns the results in docs/recipes.md, keyed by config. Configs without a result of ours are left out."""
    measured = (ROOT / DOCS / "recipes.md").read_text(encoding="utf-8").split("## No result yet")[0]
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", measured, re.MULTILINE)
    return {name: cells.split("|")[-1].strip() for name, cells in rows}


def with_results(markdown: str) -> str:
    """Adds a column with the results of the configs to each table that links to configs."""
    known, lines = results(), []
    for line in markdown.splitlines():
        if line.startswith("|") and line.rstrip().endswith("|"):
            names = _CONFIG.findall(line)
            found = [name for name in names if name in known]
            cell = "; ".join(f"{name}: {known[name]}" if len(names) > 1 else known[name] for name in found) or "–"
            before = lines[-1] if lines else ""
            if not before.startswith("|"):
                cell = "result"
            elif set(line) <= set("|- :"):
                cell = "---"
            line = f"{line.rstrip()} {cell} |"
        lines.append(line)
    return "\n".join(lines) + "\n"


def with_links_to_configs(markdown: str) -> str:
    """Makes the names of configs in the first column of a table links to their pages."""
    return re.sub(r"^\| `(\w+)`", r"| [`\1`](configs/\1.md)", markdown, flags=re.MULTILINE)


def api_page(namespace: str) -> str:
    """Returns the page that lists the public names of a namespace."""
    return f"api/{namespace or 'jaxformer'}.md"


def public(namespace: str) -> dict[str, str]:
    """Returns the public names of a namespace, each with the module that defines it. Imports none of these modules."""
    module = importlib.import_module(f"jaxformer.{namespace}" if namespace else "jaxformer")
    home = importlib.import_module("jaxformer.namespaces").home
    return {name: home(name) for name in module.__all__ if name not in NAMESPACES}


def api(namespace: str) -> str:
    """Returns the page of a namespace. Each name is an instruction of mkdocstrings, which inserts its docstring."""
    module = f"jaxformer.{namespace}" if namespace else "jaxformer"
    short = f"jf.{namespace}" if namespace else "jf"
    summary = (importlib.import_module(module).__doc__ or "").strip().partition("\n\n")[0]
    parts = [f"# {short}", escaped(" ".join(summary.split()))]
    groups: dict[str, list[str]] = {}
    others = {} if namespace else {name: other for other in NAMESPACES[1:] for name in public(other)}
    for name, home in public(namespace).items():
        group = home.split(".")[2] if namespace == "data" else ""
        if other := others.get(name):
            same = f"## {short}.{name}\n\nThe same as [jf.{other}.{name}]({other}.md#{home}.{name})."
            groups.setdefault(group, []).append(same)
        else:
            groups.setdefault(group, []).append(entry(name, home, short, 3 if group else 2))
    for group in sorted(groups):
        parts += [f"## {group.capitalize()}"] if group else []
        parts += groups[group]
    return "\n\n".join(parts) + "\n"


def entry(name: str, home: str, short: str, level: int) -> str:
    """Returns the instruction of mkdocstrings that inserts the docstring of a public name.

    Args:
      name: the public name.
      home: full name of the module that defines it.
      short: namespace under which it is used, such as `jf.models`.
      level: level of its heading.
    """
    options = f"""
    ::: {home}.{name}
        options:
          heading: "{short}.{name}"
          toc_label: "{name}"
          heading_level: {level}
    """
    return textwrap.dedent(options).strip()
