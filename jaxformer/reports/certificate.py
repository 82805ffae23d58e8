"""Formats a parity certificate (the results of comparing a JAX model with its PyTorch counterpart) as a page, and as a
section of a report.
"""

from collections.abc import Mapping
from typing import Any

from jaxformer import html_page
from jaxformer.html_page import escape

EXPLANATION = """
<p>The JAX model and the PyTorch model of the folder received the same inputs (rows × tokens), both in float32 on the
CPU: short texts, a text of the maximum length or 1,024 tokens, padded texts, and out-of-distribution tokens, drawn at
random from the whole vocabulary; or images. Differences of logits are relative to the largest logit, those of the loss
to the loss, and those of gradients to the largest gradient of each tensor. For greedy tokens, the number is the
difference between the logits of the first two tokens that differ, or 0 if all are equal. For tokens, it is the number
of texts that the two tokenizers encode differently. If the note says "from raw inputs", or texts were generated, both
sides received raw texts, pairs of texts, prompts or pictures: the run's predict in JAX; in PyTorch the tokenizer or
image processor with the model, generate with the folder's generation config, or the pipeline.</p>
"""
LINE = (
    '<tr{row}><td class="name">{what}</td><td class="name">{where}</td><td class="number">{measured}</td>'
    '<td class="number">{tolerance}</td><td class="{mark}">{mark}</td><td>{note}</td></tr>'
)
TABLE = """
<div class="scroll">
<table class="wide">
<thead><tr><th>Compared</th><th>On</th><th class="number">Difference</th><th class="number">Allowed</th><th></th>
<th>Note</th></tr></thead>
<tbody>
{lines}
</tbody>
</table>
</div>
"""


def page(certificate: Mapping[str, Any]) -> str:
    """Formats the content of `parity.json` as an HTML page."""
    title = f"Parity certificate: {certificate['architecture']}"
    return html_page.page(title, f"<h1>Parity certificate</h1>\n{section(certificate)}")


def section(certificate: Mapping[str, Any]) -> str:
    """Formats the content of `parity.json` as HTML without a heading."""
    lines = []
    for line in certificate["lines"]:
        texts = {name: escape(line[name]) for name in ("what", "where", "note")}
        numbers = {name: f"{line[name]:.1e}" if line[name] else "0" for name in ("measured", "tolerance")}
        mark = "passed" if line["passed"] else "failed"
        lines.append(LINE.format(**texts, **numbers, mark=mark, row="" if line["passed"] else ' class="failed"'))
    passed = certificate["passed"]
    verdict = "passed: PyTorch computes the same results" if passed else "failed: PyTorch computes other results"
    versions = " · ".join(f"{name} {version}" for name, version in certificate["versions"].items())
    return "\n".join(
        (
            f"<p>{escape(certificate['architecture'])}, {certificate['parameters']:,} parameters, weights in "
            f"{escape(certificate['dtype'])}</p>",
            f'<p class="verdict{"" if passed else " failed"}">{verdict}</p>',
            EXPLANATION,
            TABLE.format(lines="\n".join(lines)),
            f"<p><small>{escape(versions)}</small></p>",
        )
    )
