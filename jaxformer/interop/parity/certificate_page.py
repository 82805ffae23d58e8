"""Formats a parity certificate (the results of comparing a JAX model with its PyTorch counterpart) as a self-contained
HTML page.
"""

import html
from collections.abc import Mapping
from typing import Any

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Parity certificate: {architecture}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a;
  background: #fff }}
div {{ overflow-x: auto }}
h1 {{ font-size: 1.5rem; margin-bottom: 0 }}
.verdict {{ display: inline-block; padding: .2rem .8rem; border-radius: .3rem; color: #fff; font-weight: 600;
  background: #1a7f37 }}
.verdict.failed {{ background: #b42318 }}
table {{ border-collapse: collapse; width: 100%; margin: 1rem 0 2rem }}
th, td {{ text-align: left; padding: .35rem .7rem; border-bottom: 1px solid #ddd; vertical-align: top }}
th {{ border-bottom: 2px solid #888 }}
td.number, th.number {{ text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }}
td.name {{ white-space: nowrap }}
td.passed {{ color: #1a7f37 }}
td.failed, tr.failed td {{ color: #b42318; font-weight: 600 }}
small {{ color: #555 }}
</style>
<h1>Parity certificate</h1>
<p>{architecture}, {parameters:,} parameters, weights in {dtype}</p>
<p class="verdict{failed}">{verdict}</p>
<p>The JAX model and the PyTorch model of the folder received the same inputs (rows × tokens), both in float32 on the
CPU: short texts, a text of the maximum length or 1,024 tokens, padded texts, and out-of-distribution tokens, drawn at
random from the whole vocabulary; or images. Differences of logits are relative to the largest logit, those of the loss
to the loss, and those of gradients to the largest gradient of each tensor. For greedy tokens, the number is the
difference between the logits of the first two tokens that differ, or 0 if all are equal. For tokens, it is the number
of texts that the two tokenizers encode differently. If the note says "from raw inputs", or texts were generated, both
sides received raw texts, pairs of texts, prompts or pictures: the run's predict in JAX; in PyTorch the tokenizer or
image processor with the model, generate with the folder's generation config, or the pipeline.</p>
<div>
<table>
<thead><tr><th>Compared</th><th>On</th><th class="number">Difference</th><th class="number">Allowed</th><th></th>
<th>Note</th></tr></thead>
<tbody>
{lines}
</tbody>
</table>
</div>
<p><small>{versions}</small></p>
</html>
"""
LINE = (
    '<tr{row}><td class="name">{what}</td><td class="name">{where}</td><td class="number">{measured}</td>'
    '<td class="number">{tolerance}</td><td class="{mark}">{mark}</td><td>{note}</td></tr>'
)


def page(certificate: Mapping[str, Any]) -> str:
    """Formats the content of `parity.json` as an HTML page."""
    lines = []
    for line in certificate["lines"]:
        texts = {name: html.escape(str(line[name])) for name in ("what", "where", "note")}
        numbers = {name: f"{line[name]:.1e}" if line[name] else "0" for name in ("measured", "tolerance")}
        mark = "passed" if line["passed"] else "failed"
        lines.append(LINE.format(**texts, **numbers, mark=mark, row="" if line["passed"] else ' class="failed"'))
    passed = certificate["passed"]
    return PAGE.format(
        architecture=html.escape(certificate["architecture"]),
        parameters=certificate["parameters"],
        dtype=html.escape(certificate["dtype"]),
        failed="" if passed else " failed",
        verdict="passed: PyTorch computes the same results" if passed else "failed: PyTorch computes other results",
        lines="\n".join(lines),
        versions=html.escape(" · ".join(f"{name} {version}" for name, version in certificate["versions"].items())),
    )
