"""The documentation site is built without a warning, has every public name, and is readable on phones."""

import functools
import http.server
import importlib.util
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import browser
import pytest

import jaxformer as jf

ROOT = Path(__file__).parent.parent
PAGES = (
    "index",
    "tour",
    "own_data",
    "families",
    "recipes",
    "choosing",
    "api/models",
    "api/data",
    "zh/tour",
    "overview",
)


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


HOOKS = load(ROOT / "docs" / "_site" / "hooks.py")


def public():
    """The name of each public object as a user writes it, and the full name under which it is defined."""
    for namespace in HOOKS.NAMESPACES:
        module = getattr(jf, namespace) if namespace else jf
        for name in set(module.__all__) - set(HOOKS.NAMESPACES):
            value = getattr(module, name)
            home = getattr(value, "__module__", None) or ""
            yield f"{module.__name__.replace('jaxformer', 'jf')}.{name}", f"{home}.{name}"


def test_the_pages_of_the_api_have_every_public_name():
    text = "\n".join(map(HOOKS.api, HOOKS.NAMESPACES))
    names = [name for name, _ in public()]
    assert len(names) > 200
    assert all(f'heading: "{name}"' in text or f"## {name}\n" in text for name in names)


def test_links_lead_to_pages_of_the_site():
    linked = HOOKS.linked
    assert linked("[a](../configs/spam.py) [b](launch/README.md#x)", "docs/a.md", "a.md") == (
        "[a](configs/spam.md) [b](launch/README.md#x)"
    )
    assert linked("[a](../../README.md#use) [b](http://x)", "docs/zh/a.md", "zh/a.md") == (
        "[a](../overview.md#use) [b](http://x)"
    )
    assert linked("[a](docs/tour.md) [b](nowhere.md)", "README.md", "overview.md") == "[a](tour.md) [b](nowhere.md)"


def test_families_have_the_results_of_the_recipes():
    table = "| a | configs |\n|---|---|\n| x | [spam](../configs/spam.py) |\n| y | |\n"
    table += "| z | [spam](../configs/spam.py), [t5_base](../configs/t5_base.py) |\n"
    result = HOOKS.results()["spam"]
    assert HOOKS.with_results(table).splitlines() == [
        "| a | configs | result |",
        "|---|---| --- |",
        f"| x | [spam](../configs/spam.py) | {result} |",
        "| y | | – |",
        f"| z | [spam](../configs/spam.py), [t5_base](../configs/t5_base.py) | spam: {result} |",
    ]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site."""
    pytest.importorskip("mkdocs", reason="needs mkdocs: pip install 'jaxformer[docs]'")
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    assert not re.search(r"^(WARNING|ERROR)", done.stderr, re.MULTILINE), done.stderr
    return out


@pytest.mark.slow
def test_the_site_has_every_public_name_config_and_page(site):
    api = "\n".join(path.read_text(encoding="utf-8") for path in (site / "api").glob("*.html"))
    anchors = set(re.findall(r'id="(jaxformer\.[\w.]+)"', api))
    missing = [name for name, full in public() if full.startswith("jaxformer.") and full not in anchors]
    assert not missing
    headings = {" ".join(text.split()) for text in re.findall(r">([^<>]*)<", api)}
    assert not {name for name, _ in public()} - headings
    configs = {path.stem for path in (ROOT / "configs").glob("*.py")}
    assert configs <= {path.stem for path in (site / "configs").glob("*.html")}
    navigation = (site / "index.html").read_text(encoding="utf-8")
    for path in (ROOT / "docs").rglob("*.md"):
        uri = path.relative_to(ROOT / "docs").with_suffix(".html").as_posix().replace("README", "index")
        assert f'href="{uri}"' in navigation or f'href="./{uri}"' in navigation or uri == "index.html", uri
    assert not (site / "_site").exists()


@browser.needed
@pytest.mark.slow
def test_a_browser_shows_the_site(site):
    handler = functools.partial(Quiet, directory=str(site))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    home = f"http://127.0.0.1:{server.server_port}"
    try:
        with browser.opened() as shown:
            for page in PAGES:
                for width, dark in ((1280, False), (390, True)):
                    shown.show(f"{home}/{page}.html", width, dark)
                    assert shown.value("document.querySelector('.md-content h1') !== null"), page
                    assert shown.value("document.documentElement.scrollWidth") <= width, (page, width)
                    paper = shown.value("getComputedStyle(document.body).backgroundColor")
                    assert (paper == "rgb(255, 255, 255)") is not dark, (page, paper)
            assert not shown.problems
            assert {url.split("/")[2] for url in shown.requests if url.startswith(("http", "ws"))} == {
                home.split("/")[2]
            }
    finally:
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files without printing a line for each."""

    def log_message(self, *_):
        pass
