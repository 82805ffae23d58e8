"""Answers that are generated images, and how they are saved: as one grid, as files in a folder, or as a page."""

import base64
import dataclasses
import html
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from jaxformer import html_page
from jaxformer.predictors.base import PAGES, Answer

ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
"""File name extensions for which answers are saved as one grid of images."""
GAP, SMALLEST = 2, 96
"""Number of white pixels between the images of a grid, and minimum size at which a page shows an image."""


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Pictures(Answer):
    """Images that a model generated for a text or a class."""

    display_fields: ClassVar = ("images",)

    request: str
    """Text or class name of the request."""
    images: np.ndarray
    """Generated images, uint8 [images, height, width, channels], best first if they were ranked."""
    scores: tuple[float, ...] = ()
    """Similarity of each image to the text, if the images were ranked by a model of images and texts."""

    def __str__(self) -> str:
        count, height, width, _ = self.images.shape
        what = "1 image" if count == 1 else f"{count} images"
        return f"{self.request}: {what} of {width} × {height} pixels; save with --out FOLDER or --out page.html"

    def save(self, path: Path) -> None:
        """Writes the images to `path`, as `save_all` does."""
        write([self], path)

    @classmethod
    def save_all(cls, answers: Sequence[Answer], path: Path) -> None:
        """Writes several answers to one file or folder, with one row of images per request.

        The extension of `path` determines the format: one grid (such as .png), a page (.html) or JSON without the
        images (.json). Any other path is a folder, which gets a file per image, `grid.png`, `page.html` and
        `answers.json`.
        """
        write([answer for answer in answers if isinstance(answer, Pictures)], path)

    def _repr_html_(self) -> str:
        return f"<figure><figcaption><b>{html.escape(self.request)}</b></figcaption>{' '.join(_images(self))}</figure>"


def write(answers: Sequence[Pictures], path: Path) -> None:
    """Writes answers in the format that the extension of `path` determines. See `Pictures.save_all`."""
    ending = path.suffix.lower()
    if ending in ENDINGS:
        grid([answer.images for answer in answers]).save(path)
    elif ending in PAGES:
        path.write_text(page(answers), encoding="utf-8")
    elif ending == ".json":
        Answer.save_all(answers, path)
    else:
        path.mkdir(parents=True, exist_ok=True)
        for row, answer in enumerate(answers, 1):
            name = re.sub(r"\W+", "_", answer.request)[:40].strip("_") or "image"
            for column, image in enumerate(answer.images, 1):
                picture(image).save(path / f"{row}_{name}_{column}.png")
        grid([answer.images for answer in answers]).save(path / "grid.png")
        (path / "page.html").write_text(page(answers), encoding="utf-8")
        Answer.save_all(answers, path / "answers.json")


def picture(image: np.ndarray) -> Image.Image:
    """Converts pixels, uint8 [height, width, 1 or 3], to a Pillow image."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def grid(rows: Sequence[np.ndarray]) -> Image.Image:
    """Arranges images in a grid on white ground.

    Args:
      rows: images of each row of the grid, uint8 [images, height, width, channels]. All have the same size.
    """
    height, width, channels = rows[0].shape[1:]
    columns = max(map(len, rows))
    whole = np.full((len(rows) * (height + GAP) - GAP, columns * (width + GAP) - GAP, channels), 255, np.uint8)
    for row, images in enumerate(rows):
        for column, image in enumerate(images):
            top, left = row * (height + GAP), column * (width + GAP)
            whole[top : top + height, left : left + width] = image
    return picture(whole)


def table(answers: Sequence[Pictures]) -> str:
    """Returns an HTML table with one row per request: its text, and its images, which are part of the HTML."""
    return f"<table>{''.join(map(_row, answers))}</table>"


def page(answers: Sequence[Pictures]) -> str:
    """Returns an HTML page with all answers, which needs no other files."""
    body = f'<h1>Generated images</h1><div class="scroll">{table(answers)}</div>'
    return html_page.page("Generated images", body, "th { max-width: 16em }")


def _row(answer: Pictures) -> str:
    cells = "".join(f"<td>{image}</td>" for image in _images(answer))
    return f"<tr><th>{html.escape(answer.request)}</th>{cells}</tr>\n"


def _images(answer: Pictures) -> list[str]:
    """Returns the HTML of each image. Small ones are enlarged, and their pixels stay sharp."""
    found = []
    scores = answer.scores or (None,) * len(answer.images)
    for image, score in zip(answer.images, scores, strict=True):
        content = io.BytesIO()
        picture(image).save(content, "PNG")
        data, size = base64.b64encode(content.getvalue()).decode(), max(SMALLEST, image.shape[1])
        title = html.escape(answer.request if score is None else f"{answer.request} ({score:.2f})", quote=True)
        style = f'width="{size}" style="image-rendering: pixelated"'
        found.append(f'<img {style} alt="{title}" title="{title}" src="data:image/png;base64,{data}">')
    return found
