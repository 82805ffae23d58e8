"""HTML page of an explanation: the prediction, attributions over tokens, pixels or a spectrogram, attention by layer
and head, attention rollout, and the logit lens.
"""

import base64
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import numpy as np
from PIL import Image

from jaxformer import html_page
from jaxformer.explanations.attributions import SOUND
from jaxformer.explanations.explanation import AttentionView, Explanation, Lens
from jaxformer.html_page import details, escape, table
from jaxformer.reports.media import heat_map

CELLS = 1_500_000
"""Maximum number of weights of a stack that are part of the page. Larger maps are reduced by averaging."""
SIDE = 224
"""Number of pixels of the longer side of a picture with its attributions."""
STYLE = """
.tokens { line-height: 2.1; overflow-wrap: anywhere }
.tokens span { padding: .15rem .3rem; border-radius: .25rem; margin-right: .1rem; white-space: pre-wrap }
.attention .layer { display: flex; flex-wrap: wrap; gap: 6px; align-items: center; margin-bottom: 6px }
.attention small { width: 4.5rem }
.attention canvas { width: 72px; height: 72px; image-rendering: pixelated; border: 1px solid var(--edge);
  cursor: zoom-in }
.attention canvas.large { width: min(100%, 480px); height: auto; aspect-ratio: 1; cursor: zoom-out }
#tip { display: none; position: fixed; z-index: 9; padding: .2rem .5rem; border-radius: .3rem; background: var(--text);
  color: var(--ground); font-size: .85rem; pointer-events: none; max-width: 90vw }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 15rem)); gap: 1rem }
.pictures img { image-rendering: pixelated; width: 100% }
"""
_EXPLANATION = """
<p><small>Attributions of the score (the logit) of the prediction. <b>Gradient × input</b>: the gradient with respect to
the features, times the features. <b>Integrated gradients</b>: the mean gradient on the line from the baseline (an input
without information) to the input, times their difference; they sum to the difference of the two scores.
<b>Occlusion</b>: how much the score falls if a part is replaced by the baseline. Blue parts raise the score, red ones
lower it.</small></p>
"""


def page(explanation: Explanation) -> str:
    """Returns the HTML page of an explanation. Everything is part of the page, which opens offline."""
    parts = [f"<h1>{escape(_short(explanation.request))}</h1>"]
    if explanation.answer is not None:
        parts.append(f"<figure>{explanation.answer._repr_html_()}</figure>")
    parts += ["<h2>Attributions</h2>", _attributions(explanation)]
    if explanation.lens is not None:
        parts += ["<h2>Logit lens</h2>", _lens(explanation.lens)]
    for view in explanation.attention:
        parts += [f"<h2>Attention: {escape(view.name)}</h2>", _attention(view)]
    code = resources.files("jaxformer.explanations").joinpath("attention.js").read_text(encoding="utf-8")
    return html_page.page("jaxformer explain", "\n".join(parts), STYLE, f"<script>{code}</script>")


def _attributions(explanation: Explanation) -> str:
    prediction, scores = explanation.prediction, explanation.scores
    if prediction is None or scores is None:
        return "<p>This model has no logits of the input that could be explained, so only its attention is shown.</p>"
    rows = [[escape(name), f"{float(values.sum()):.4f}"] for name, values in explanation.attributions.items()]
    rows += [["score of the input", f"{scores[0]:.4f}"], ["score of the baseline", f"{scores[1]:.4f}"]]
    rows.append(["difference of the scores", f"{scores[0] - scores[1]:.4f}"])
    shown = (_of_tokens if explanation.units else _of_pixels)(explanation)
    return "\n".join(
        (
            f"<p>Explained: <b>{escape(prediction.name)}</b>, probability {prediction.probability:.1%}.</p>",
            shown,
            details("Sums and scores", table(["", "sum"], rows, (1,))),
            _EXPLANATION,
        )
    )


def _of_tokens(explanation: Explanation) -> str:
    parts = []
    for name, values in explanation.attributions.items():
        most = float(np.abs(values).max()) or 1.0
        spans = []
        for unit, value in zip(explanation.units, values.tolist(), strict=True):
            color, share = ("var(--accent)" if value >= 0 else "var(--bad)"), abs(value) / most
            style = f"background: color-mix(in srgb, {color} {70 * share:.0f}%, transparent)"
            spans.append(f'<span style="{style}" title="{value:.4f}">{escape(unit)}</span>')
        parts.append(f'<h3>{escape(name)}</h3><p class="tokens">{" ".join(spans)}</p>')
    return "\n".join(parts)


def _of_pixels(explanation: Explanation) -> str:
    """Shows the input, and one map for each method: blue where a part raises the score, red where it lowers it."""
    features = explanation.features
    if explanation.kind == SOUND:
        first = heat_map(features.T[::-1])
    else:
        pixels = features.mean(0) if features.ndim == 4 else features
        low, high = pixels.min(), pixels.max()
        levels = (255 * (pixels - low) / ((high - low) or 1)).astype(np.uint8)
        first = Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels[..., :3])
    found = [f"<figure>{html_page.picture(first, 'the input', SIDE)}<figcaption>input</figcaption></figure>"]
    for name, values in explanation.attributions.items():
        values = values.T[::-1] if explanation.kind == SOUND else values
        image = html_page.picture(_signed(values), f"attributions by {name}", SIDE)
        found.append(f"<figure>{image}<figcaption>{escape(name)}</figcaption></figure>")
    return f'<div class="pictures">{"".join(found)}</div>'


def _signed(values: np.ndarray) -> Image.Image:
    """Returns a picture of a matrix [height, width]: blue for positive values, red for negative ones, white for 0. The
    strongest 1% have the full color.
    """
    most = float(np.quantile(np.abs(values), 0.99)) or float(np.abs(values).max()) or 1.0
    shares = np.clip(values / most, -1, 1)[..., None]
    colors = np.where(shares >= 0, np.array([31.0, 95.0, 191.0]), np.array([180.0, 35.0, 24.0]))
    return Image.fromarray((255 + np.abs(shares) * (colors - 255)).astype(np.uint8))


def _lens(lens: Lens) -> str:
    count = len(lens.tokens)
    rows = []
    for layer in reversed(range(count)):
        cells = []
        for token, share in zip(lens.tokens[layer], lens.probabilities[layer].tolist(), strict=True):
            style = f"background: color-mix(in srgb, var(--accent) {60 * share:.0f}%, transparent)"
            cells.append(f'<span style="{style}" title="{share:.1%}">{escape(token)}</span>')
        rows.append([f"block {layer + 1}", *cells])
    note = "<p><small>The most likely next token of each position, if the model ended after this block.</small></p>"
    return note + f'<div class="tokens">{table(["", *map(escape, lens.positions)], rows)}</div>'


def _attention(view: AttentionView) -> str:
    layers, heads = view.weights.shape[:2]
    titles = [f"layer {layer + 1}" for layer in range(layers)]
    parts = ["<p><small>Each map is a head: a row for each query, a column for each key.</small></p>"]
    weights, queries, keys = view.weights, view.queries, [view.keys]
    if view.grid is not None:
        rows, columns = view.grid
        leading = weights.shape[-1] - rows * columns
        # The map of a picture shows the patches that its first position, or all patches on average, attend to.
        chosen = weights[:, :, 0] if leading else weights.mean(axis=2)
        weights = chosen[..., leading:].reshape(layers, heads, rows, columns)
        source = view.queries[0] if leading else "all patches"
        queries = [source] * rows
        patches = view.keys[leading:]
        keys = [patches[row * columns : (row + 1) * columns] for row in range(rows)]
        parts = [f"<p><small>Each map is a head: the patches to which {escape(source)} attends.</small></p>"]
    parts.append(_maps(weights, queries, keys, titles))
    if view.rollout is not None:
        rolled = view.rollout[None, None]
        if view.grid is not None:
            chosen = rolled[:, :, 0] if leading else rolled.mean(axis=2)
            rolled = chosen[..., leading:].reshape(1, 1, rows, columns)
        parts += ["<h3>Attention rollout of all layers</h3>", _maps(rolled, queries, keys, ["rollout"])]
    return "\n".join(parts)


def _maps(weights: np.ndarray, queries: Sequence[str], keys: Sequence[Sequence[str]], titles: Sequence[str]) -> str:
    """Returns the element in which the script of the page draws attention maps.

    Args:
      weights: [layers, heads, rows, columns].
      queries: name of each row.
      keys: names of the columns of each row; a single entry if they are the same in all rows.
      titles: name of each layer.
    """
    while weights.size > CELLS:
        weights, queries, keys = _halved(weights, queries, keys)
    layers, heads, rows, columns = weights.shape
    most = float(weights.max()) or 1.0
    # The square root makes small weights visible.
    levels = np.round(255 * np.sqrt(np.clip(weights / most, 0, 1))).astype(np.uint8)
    view = {
        "layers": layers,
        "heads": heads,
        "rows": rows,
        "columns": columns,
        "most": most,
        "titles": list(titles),
        "queries": list(queries),
        "keys": [list(names) for names in keys],
        "data": base64.b64encode(levels.tobytes()).decode(),
    }
    return f'<div class="attention">{html_page.data(view)}</div>'


def _halved(weights: np.ndarray, queries: Sequence[str], keys: Sequence[Sequence[str]]):
    """Averages pairs of neighboring rows and columns. An odd last one is left out."""
    layers, heads, rows, columns = weights.shape
    high, wide = max(1, rows // 2), max(1, columns // 2)
    down, across = min(2, rows), min(2, columns)
    pooled = weights[:, :, : high * down, : wide * across].reshape(layers, heads, high, down, wide, across)
    return pooled.mean(axis=(3, 5)), queries[::down][:high], [names[::across][:wide] for names in keys[::down][:high]]


def _short(text: str) -> str:
    name = Path(text).name if "/" in text and len(text) < 300 and "\n" not in text else text
    return name if len(name) <= 120 else f"{name[:120]} …"
