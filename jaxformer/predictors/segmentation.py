"""Segments pictures of any size in sliding windows, and draws the masks."""

import colorsys
import dataclasses
import functools
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxformer import html_page
from jaxformer.data.tasks.segmentation import PreparedPicture
from jaxformer.data.transforms.image import pixels
from jaxformer.layers.resizing import bilinear, resized
from jaxformer.predictors.base import PAGES, Answer, Predictor

ROWS, MAX_EXAMPLES = 8, 4
"""Number of windows per batch (`ROWS`), and maximum number of held-out images that `demonstrate` segments
(`MAX_EXAMPLES`).
"""
STRIP = 64
"""Number of pixel rows of a picture for which `_argmax` resizes the probabilities at a time. This limits the memory
that it needs.
"""
LEAST_SIDE = 320
"""Minimum length in pixels of the longer side of a picture in a page. Smaller ones are enlarged."""
PICTURES = (".jpg", ".jpeg", ".png", ".webp")
"""File name extensions for which `Segmented.save` writes a picture. For all others, it writes JSON."""


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class Segmented(Answer):
    """A picture and the labels of its pixels."""

    pair_names: ClassVar = {"labels": ("label", "share")}
    display_fields: ClassVar = ("picture", "mask", "colors")

    path: str
    """Path of the picture."""
    labels: tuple[tuple[str, float], ...]
    """Pairs of a label and the fraction of the pixels that have it, largest fraction first. Labels that do not occur
    are left out.
    """
    picture: Image.Image
    mask: np.ndarray
    """Index of the label of each pixel, uint8 [height, width]."""
    colors: np.ndarray
    """Color of each label, uint8 [labels, 3]."""

    def __str__(self) -> str:
        return "\n".join([self.path, *(f"  {share:6.1%}  {name}" for name, share in self.labels)])

    def drawn(self) -> Image.Image:
        """Returns the picture blended with the color of each pixel's label, as an RGB image. The colors have weight
        0.6.
        """
        return Image.blend(self.picture.convert("RGB"), Image.fromarray(self.colors[self.mask]), 0.6)

    def save(self, path: Path) -> None:
        """Writes the answer to a file. If the extension of `path` is in `PICTURES`, this is the picture blended with
        the label colors (`drawn`). Otherwise it is an HTML page or JSON.
        """
        if path.suffix.lower() in PICTURES:
            self.drawn().save(path)
        else:
            super().save(path)

    @classmethod
    def save_all(cls, answers: Sequence[Answer], path: Path) -> None:
        """Writes several answers to one JSON file or HTML page if `path` has such an extension. Otherwise, creates a
        folder with the blended picture and the label mask of each answer as PNG files, and `answers.json`.
        """
        if path.suffix.lower() in (*PAGES, ".json"):
            super().save_all(answers, path)
            return
        path.mkdir(parents=True, exist_ok=True)
        for number, answer in enumerate(answers, 1):
            if isinstance(answer, Segmented):
                name = f"{number}_{Path(answer.path).stem}"
                answer.drawn().save(path / f"{name}.png")
                Image.fromarray(answer.mask).save(path / f"{name}_mask.png")
        super().save_all(answers, path / "answers.json")

    def _repr_html_(self) -> str:
        counts = np.bincount(self.mask.ravel(), minlength=len(self.colors))
        order = np.argsort(-counts, kind="stable")[: len(self.labels)]  # `labels` has the same order.
        items = []
        for number, (name, share) in zip(order, self.labels, strict=True):
            mark = f'<span style="color: rgb({", ".join(map(str, self.colors[number]))})">■</span>'
            items.append(f"{mark}&nbsp;{html.escape(name)}&nbsp;{share:.1%}")
        caption = f"<figcaption><b>{html.escape(self.path)}</b><p>{', '.join(items)}</p></figcaption>"
        return f"<figure>{html_page.picture(html_page.enlarged(self.drawn(), LEAST_SIDE), self.path)}{caption}</figure>"


@dataclasses.dataclass(frozen=True, eq=False)
class Segmentations(Predictor[Any]):
    """Predicts the label of each pixel of a picture, using a semantic segmentation model.

    The picture is resized so that its shorter side has the length that the task requires. The model segments
    overlapping windows of it. The mean of their label probabilities is resized to the original size of the picture.
    """

    overlap: float = 1 / 3
    """Minimum fraction of a window's width or height by which two neighbouring windows overlap."""

    def encode(self, pictures: Sequence[PreparedPicture]) -> dict[str, np.ndarray]:
        """Divides pictures into windows. Returns them as the model's argument `images`: all windows of the first
        picture, then those of the second one, and so on.
        """
        found = [window for picture in pictures for window, _ in self._windows(self._scaled(picture))]
        return {"images": np.stack(found)}

    def predict(self, pictures: Sequence[PreparedPicture]) -> list[Segmented]:
        """Predicts the label of each pixel of each picture."""
        names, found = self.model.labels, []
        for picture in pictures:
            mask = self.segment(picture)
            shares = np.bincount(mask.ravel(), minlength=len(names)) / mask.size
            order = [number for number in np.argsort(-shares, kind="stable") if shares[number]]
            labels = tuple((names[number], float(shares[number])) for number in order)
            found.append(Segmented(picture.path, labels, picture.picture, mask, palette(len(names))))
        return found

    def segment(self, picture: PreparedPicture) -> np.ndarray:
        """Predicts the label of each pixel of a picture. Returns label indices at the original size of the picture,
        uint8 [height, width].
        """
        scaled = self._scaled(picture)
        shape = (*scaled.shape[:2], len(self.model.labels))
        total, covers, size = np.zeros(shape, np.float32), np.zeros((*shape[:2], 1), np.float32), self.model.image
        windows = list(self._windows(scaled))
        for start in range(0, len(windows), ROWS):
            part = windows[start : start + ROWS]
            shares = np.asarray(_probabilities(self.model, self.params, np.stack([window for window, _ in part])))
            for (_, (top, left)), share in zip(part, shares, strict=True):
                total[top : top + size, left : left + size] += share
                covers[top : top + size, left : left + size] += 1
        return _argmax(total / covers, picture.picture.height, picture.picture.width)

    def demonstrate(self, batch: Mapping[str, Any]) -> list[str]:
        """Segments the first images of a held-out batch. Returns one line per image: the fraction of its labelled
        pixels for which the predicted label is right.
        """
        lines = []
        for row in np.flatnonzero(batch["weights"][:, 0])[:MAX_EXAMPLES]:
            shares = np.asarray(_probabilities(self.model, self.params, batch["images"][row : row + 1]))[0]
            mask = batch["mask"][row]
            known = mask != 255
            right = (shares.argmax(-1) == mask)[known].mean() if known.any() else 0.0
            lines.append(f"held-out image {row}: {right:.1%} of the labelled pixels are right")
        return lines

    def _scaled(self, picture: PreparedPicture) -> np.ndarray:
        """Resizes a picture so that its shorter side has `picture.edge` pixels, but not less than the size of a window.
        Returns uint8 [height, width, channels].
        """
        width, height = picture.picture.size
        least = self.model.image
        scale = max(picture.edge, least) / min(width, height)
        size = max(least, round(width * scale)), max(least, round(height * scale))
        return pixels(picture.picture.resize(size, Image.Resampling.BILINEAR))

    def _windows(self, image: np.ndarray):
        """Divides an image into overlapping windows that cover it. Yields the pixels of each window, and the (row,
        column) of its upper left pixel.
        """
        size = self.model.image
        for top in _starts(image.shape[0], size, self.overlap):
            for left in _starts(image.shape[1], size, self.overlap):
                yield image[top : top + size, left : left + size], (top, left)


def _starts(length: int, size: int, overlap: float) -> list[int]:
    """Returns the first index of each window along one side of an image, which has `length` pixels. The windows have
    `size` pixels, overlap by at least `overlap` · `size`, and are spread evenly.
    """
    step = max(1, int(size * (1 - overlap)))
    count = 1 + -(-max(0, length - size) // step)
    return np.linspace(0, length - size, count).round().astype(int).tolist()


def _argmax(shares: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resizes label probabilities [rows, columns, labels] to [height, width, labels]. Returns the most likely label of
    each pixel, uint8 [height, width].
    """
    rows, columns = bilinear(shares.shape[0], height), bilinear(shares.shape[1], width)
    strips = []
    for start in range(0, height, STRIP):
        strip = np.einsum("ry,yxn->rxn", rows[start : start + STRIP], shares, optimize=True)
        strips.append(np.einsum("cx,rxn->rcn", columns, strip, optimize=True).argmax(-1))
    return np.concatenate(strips).astype(np.uint8)


def palette(count: int) -> np.ndarray:
    """Returns `count` distinct colors, uint8 [count, 3]. Successive hues differ by the golden angle, and brightness
    cycles through three values.
    """
    hues = [colorsys.hsv_to_rgb(number * 0.381966 % 1, 0.85, (1.0, 0.75, 0.5)[number % 3]) for number in range(count)]
    return np.round(255 * np.array(hues)).astype(np.uint8)


@functools.partial(jax.jit, static_argnums=0)
def _probabilities(model: Any, params, images) -> jax.Array:
    logits = model.apply({"params": params}, jnp.asarray(images)).logits
    return jax.nn.softmax(resized(logits, images.shape[1:3]))
