"""HTML page of speech: waveform, spectrogram, parts with their times, and a player."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from jaxformer import html_page
from jaxformer.data.fields.sound import wav
from jaxformer.html_page import escape

WIDTH, HEIGHT = 960, 80
"""Size of a waveform in pixels. A spectrogram has the same width and twice the height."""
RANGE = 4.0
"""Range of the values of a spectrogram that are shown, from the largest one down, in log10 of amplitudes."""
STYLE = """
figure.player { margin-bottom: 1.5rem } figcaption { margin-bottom: .5rem }
.speech { position: relative; cursor: pointer } .speech svg, .speech img { display: block; width: 100% }
.speech img { height: 160px } .speech svg { height: 80px }
.marks { position: relative; height: 1.4rem; font-size: 11px; color: var(--muted) }
.marks span { position: absolute; overflow: hidden; border-left: 1px solid var(--edge); padding-left: 2px;
  height: 100% }
.now { position: absolute; top: 0; bottom: 0; width: 1px; background: var(--bad) }
.speech svg { color: var(--muted) }
@media (prefers-color-scheme: dark) { .speech img { filter: invert(1) } }
"""
SCRIPT = """<script>
for (const figure of document.querySelectorAll("figure.player")) {
  const audio = figure.querySelector("audio"), area = figure.querySelector(".speech"), now = area.querySelector(".now");
  audio.addEventListener("timeupdate", () => { now.style.left = 100 * audio.currentTime / audio.duration + "%"; });
  area.addEventListener("click", event => {
    const box = area.getBoundingClientRect();
    audio.currentTime = (event.clientX - box.left) / box.width * audio.duration;
    audio.play();
  });
}
</script>"""


def page(answers: Sequence[Any]) -> str:
    """Returns an HTML page with the `Speech` objects `answers`. It contains the sounds, and needs no other files."""
    title = answers[0].text[:60] if answers else "Speech"
    return html_page.page(title, "\n".join(map(figure, answers)), STYLE, SCRIPT)


def figure(speech: Any) -> str:
    """Returns the HTML of one `Speech`: its text, waveform, spectrogram, parts with their times, and player."""
    length = max(speech.seconds, 1e-3)
    marks = "".join(
        f'<span style="left:{100 * mark.start / length:.2f}%;width:{100 * (mark.end - mark.start) / length:.2f}%" '
        f'title="{mark.start:.2f}–{mark.end:.2f} s">{escape(mark.text)}</span>'
        for mark in speech.marks
    )
    picture = html_page.picture(spectrogram(speech.log_mel), "spectrogram")
    return (
        f'<figure class="player"><figcaption>{escape(speech.text)} ({speech.seconds:.1f} s)</figcaption>\n'
        f'<div class="speech">{waveform(speech.samples)}\n{picture}\n'
        f'<div class="marks">{marks}</div><div class="now"></div></div>\n'
        f"{html_page.sound(wav(speech.samples, speech.rate), 'speech')}</figure>"
    )


def waveform(samples: np.ndarray) -> str:
    """Draws samples [samples] as an SVG: the smallest and the largest sample of each column of pixels."""
    columns = np.array_split(np.clip(samples, -1, 1), min(WIDTH, max(1, len(samples))))
    edges = [(column.max(initial=0.0), column.min(initial=0.0)) for column in columns]
    middle = HEIGHT / 2
    upper = [f"{x},{middle * (1 - high):.1f}" for x, (high, _) in enumerate(edges)]
    lower = [f"{x},{middle * (1 - low):.1f}" for x, (_, low) in enumerate(edges)]
    points = " ".join([*upper, *reversed(lower)])
    return (
        f'<svg viewBox="0 0 {len(edges)} {HEIGHT}" preserveAspectRatio="none"><polygon points="{points}" '
        'fill="currentColor" stroke="currentColor" stroke-width=".5"/></svg>'
    )


def spectrogram(log_mel: np.ndarray) -> Image.Image:
    """Draws a log-mel spectrogram [frames, mels], low frequencies at the bottom."""
    shown = log_mel if log_mel.size else np.zeros((1, 1))
    levels = np.clip(1 + (shown - shown.max()) / RANGE, 0, 1).T[::-1]
    picture = Image.fromarray(np.round(255 * (1 - levels)).astype(np.uint8))
    return picture.resize((WIDTH, 2 * HEIGHT), Image.Resampling.BILINEAR)
