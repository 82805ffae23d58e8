"""HTML pages that open offline. They share one style, for light and dark screens from 390 pixels of width, and contain
all of their pictures and sounds. A policy in each page forbids requests to any host.
"""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from jaxformer import strict_json

if TYPE_CHECKING:
    from PIL import Image

GENERATOR = "jaxformer"
"""Value of the `generator` field in the head of a page, by which a page of jaxformer is recognised."""
POLICY = "; ".join(
    (
        "default-src 'none'",
        "style-src 'unsafe-inline'",
        "script-src 'unsafe-inline'",
        "img-src data: blob:",
        "media-src data:",
    )
)
"""Content security policy of a page: everything is part of the page itself."""
STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --muted: #59636e; --ground: #ffffff; --card: #f6f8fa;
  --edge: #d6dbe1; --accent: #1f5fbf; --good: #1a7f37; --bad: #b42318 }
@media (prefers-color-scheme: dark) { :root { --text: #e3e7ec; --muted: #9aa5b1; --ground: #13161a; --card: #1c2127;
  --edge: #363d46; --accent: #86b0ff; --good: #57c274; --bad: #ff8a7d } }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 74rem; margin: 0 auto; padding: 1.5rem 1rem 4rem;
  color: var(--text); background: var(--ground) }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .3rem; overflow-wrap: anywhere }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .6rem; scroll-margin-top: 3.5rem }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem }
p { margin: .5rem 0 }
small, .muted { color: var(--muted) }
.scroll { overflow-x: auto }
.verdict { display: inline-block; padding: .15rem .7rem; border-radius: .4rem; color: #fff; font-weight: 600;
  background: #1a7f37 }
.verdict.failed { background: #b42318 }
.verdict.open { background: #59636e }
table { border-collapse: collapse; margin: .5rem 0 1rem; font-size: .92rem }
table.wide { width: 100% }
th, td { text-align: left; padding: .35rem .8rem .35rem 0; border-bottom: 1px solid var(--edge); vertical-align: top }
thead th { border-bottom: 2px solid var(--edge) }
tbody th { font-weight: 400; color: var(--muted) }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
td.name, tbody th, .nowrap { white-space: nowrap }
td.passed { color: var(--good) }
td.failed, tr.failed td { color: var(--bad); font-weight: 600 }
details > summary { cursor: pointer; color: var(--accent) }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: 0; font-size: .88rem }
nav { position: sticky; top: 0; z-index: 5; display: flex; gap: 1.1rem; overflow-x: auto; padding: .6rem 0;
  background: var(--ground); border-bottom: 1px solid var(--edge); white-space: nowrap; margin-top: 1rem }
a { color: var(--accent); text-decoration: none }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: 1rem;
  align-items: start }
figure { margin: 0; padding: .8rem; border: 1px solid var(--edge); border-radius: .5rem; background: var(--card);
  min-width: 0 }
figure figure { padding: 0; border: 0; background: none }
figure ul { margin: .3rem 0 0; padding-left: 1.2rem }
figure table { display: block; overflow-x: auto; max-width: 100% }
figcaption { font-size: .9rem; overflow-wrap: anywhere }
img { max-width: 100%; height: auto; border-radius: .25rem }
.spectrogram img { display: block; width: 100%; height: 8rem; margin-bottom: .4rem }
audio { width: 100% }
@media (max-width: 40rem) { tbody th { white-space: normal; overflow-wrap: anywhere; min-width: 6rem }
  h2 { margin-top: 2rem } }
"""
LAYOUT = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="{generator}">
<title>{title}</title>
<style>{style}{more_style}</style>
</head>
<body>
{body}
{scripts}
</body>
</html>
"""


def page(title: str, body: str, style: str = "", scripts: str = "") -> str:
    """Returns a complete HTML page.

    Args:
      title: title of the browser window, as plain text.
      body: HTML of the content.
      style: further CSS, in addition to `STYLE`.
      scripts: HTML of the scripts at the end of the page.
    """
    return LAYOUT.format(
        policy=POLICY,
        generator=GENERATOR,
        title=escape(title),
        style=STYLE,
        more_style=style,
        body=body,
        scripts=scripts,
    )


def is_page(text: str) -> bool:
    """Returns whether the beginning of a file is that of a page that `page` returned."""
    return f'<meta name="generator" content="{GENERATOR}">' in text


def escape(value: Any) -> str:
    """Converts a value to HTML text."""
    return html.escape(str(value))


def table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = (), wide: bool = False) -> str:
    """Returns an HTML table, which scrolls by itself if the screen is too narrow. The first cell of each row is its
    name.

    Args:
      header: HTML of the cells of the header. An empty sequence for a table without a header.
      rows: HTML of the cells of each row.
      numbers: indices of the columns that contain numbers, which are aligned at the right.
      wide: whether the table has the width of the page.
    """

    def cells(row: Sequence[str], tag: str, first: int = 0) -> str:
        marked = ((' class="number"' if index in numbers else "", cell) for index, cell in enumerate(row, first))
        return "".join(f"<{tag}{mark}>{cell}</{tag}>" for mark, cell in marked)

    head = f"<thead><tr>{cells(header, 'th')}</tr></thead>" if header else ""
    lines = (f"<tr><th>{row[0]}</th>{cells(row[1:], 'td', 1)}</tr>" for row in rows)
    body = "\n".join(lines)
    return f'<div class="scroll"><table{" class=wide" if wide else ""}>{head}<tbody>\n{body}\n</tbody></table></div>'


def grid(items: Iterable[str]) -> str:
    """Returns a grid of frames, each with one of several pieces of HTML. Figures are not framed again."""
    framed = (item if item.startswith("<figure") else f"<figure>{item}</figure>" for item in items)
    return f'<div class="grid">{"".join(framed)}</div>'


def data(value: Any) -> str:
    """Returns an HTML `<script>` that contains a value as JSON, for the scripts of the page."""
    text = strict_json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
    return f'<script type="application/json">{text}</script>'


def details(summary: str, content: str) -> str:
    """Returns content that is hidden until the user opens it. `summary` is HTML of the line that is always shown."""
    return f"<details><summary>{summary}</summary>{content}</details>"


def picture(image: "Image.Image", name: str, longest: int | None = None) -> str:
    """Returns an HTML `<img>` that contains a picture.

    Args:
      image: the picture.
      name: description of the picture for readers who do not see it.
      longest: maximum number of pixels of the longer side. A larger picture is reduced and stored as JPEG. If None, the
        picture is stored as it is, as PNG.
    """
    content, kind = io.BytesIO(), "png"
    if longest is not None and max(image.size) > longest:
        image, kind = image.convert("RGB"), "jpeg"
        image.thumbnail((longest, longest))
    image.save(content, kind.upper())
    data = base64.b64encode(content.getvalue()).decode()
    return f'<img alt="{escape(name)}" src="data:image/{kind};base64,{data}">'


def enlarged(image: "Image.Image", longest: int) -> "Image.Image":
    """Enlarges a small picture by a whole number, so that its longer side has at least `longest` pixels. The pixels
    stay sharp.
    """
    factor = -(-longest // max(1, *image.size))
    return image.resize((image.width * factor, image.height * factor), resample=0)  # The nearest pixel.


def sound(content: bytes, name: str) -> str:
    """Returns an HTML player that contains a sound. `content` is that of a WAV file, and `name` describes the sound."""
    data = base64.b64encode(content).decode()
    return f'<audio controls aria-label="{escape(name)}" src="data:audio/wav;base64,{data}"></audio>'
