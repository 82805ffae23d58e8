"""Predicts the boxes and labels of objects in images."""

import colorsys
import dataclasses
import functools
import html
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jaxformer import html_page
from jaxformer.data.tasks.boxes import PreparedScene
from jaxformer.models.detection import DetectionModel
from jaxformer.predictors.base import PAGES, Answer, Predictor

ROWS, MAX_EXAMPLES = 8, 4
"""Number of images per batch of a prediction (`ROWS`), and maximum number of held-out images shown in a demonstration
(`MAX_EXAMPLES`).
"""
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
"""File name extensions of image formats. An answer that is saved to such a file is drawn as a picture with boxes."""
LEAST_SIDE = 320
"""Minimum length in pixels of the longer side of a picture with drawn boxes. Smaller pictures are enlarged."""


@dataclasses.dataclass(frozen=True)
class DetectedObject:
    """An object that was found in an image."""

    label: str
    """Name of the most likely label."""
    score: float
    """Probability of the label."""
    box: tuple[float, float, float, float]
    """Left, upper, right and lower edge of the box, in pixels of the image."""


@dataclasses.dataclass(frozen=True)
class DetectedObjects(Answer):
    """An image and the objects that were found in it."""

    display_fields: ClassVar[tuple[str, ...]] = ("picture", "labels")

    path: str
    """Path of the image file."""
    objects: tuple[DetectedObject, ...]
    """Objects that were found, highest probability first."""
    picture: Image.Image
    """The image, without boxes."""
    labels: tuple[str, ...]
    """All label names of the model. The index of a label determines the color in which it is drawn."""

    def __str__(self) -> str:
        lines = [
            f"  {one.score:6.1%}  {one.label} at {', '.join(f'{edge:.0f}' for edge in one.box)}" for one in self.objects
        ]
        return "\n".join([self.path, *(lines or ["  no objects"])])

    def to_json(self) -> dict[str, Any]:
        """Converts the answer to a dict that can be written as JSON: the path and the objects, without the picture."""
        return {"path": self.path, "objects": [dataclasses.asdict(one) for one in self.objects]}

    def drawn(self) -> Image.Image:
        """Draws the answer: returns a copy of the image with the box, the label and the probability of each object."""
        factor = max(1, math.ceil(LEAST_SIDE / max(self.picture.size)))
        width, height = self.picture.size
        picture = self.picture.convert("RGB").resize((width * factor, height * factor))
        draw, font = ImageDraw.Draw(picture), ImageFont.load_default(size=max(11, max(picture.size) // 50))
        for one in reversed(self.objects):  # The most likely one is drawn last.
            color = _color(self.labels.index(one.label), len(self.labels))
            _draw(draw, font, one, factor, color, picture.width)
        return picture

    def save(self, path: Path) -> None:
        """Writes the answer to a file. The file name extension determines the format: a picture with the boxes (see
        `PICTURES`), an HTML page, or otherwise JSON. A path without an extension is a folder, see `save_all`.
        """
        if not path.suffix:
            self.save_all([self], path)
        elif path.suffix.lower() in PICTURES:
            self.drawn().save(path)
        else:
            super().save(path)

    @classmethod
    def save_all(cls, answers: Sequence["Answer"], path: Path) -> None:
        """Writes several answers to an HTML page or a JSON file if the path has such an extension. Otherwise, writes a
        folder with a picture per answer, an HTML page and `answers.json`.
        """
        found = [answer for answer in answers if isinstance(answer, DetectedObjects)]
        if path.suffix.lower() in (*PAGES, ".json"):
            super().save_all(answers, path)
        else:
            path.mkdir(parents=True, exist_ok=True)
            for number, answer in enumerate(found, 1):
                answer.drawn().save(path / f"{number}_{Path(answer.path).stem}.png")
            super().save_all(answers, path / "answers.json")
            super().save_all(found, path / "index.html")

    def _repr_html_(self) -> str:
        return figure(self)


def _draw(
    draw: ImageDraw.ImageDraw, font: Any, one: DetectedObject, factor: int, color: tuple[int, int, int], width: int
) -> None:
    """Draws the box of an object and its label. The label is above the box or, if there is not enough space, inside the
    box.

    `factor` is the number by which coordinates are multiplied, because the picture is enlarged, and `width` is the
    width of the enlarged picture in pixels.
    """
    left, upper, right, lower = (edge * factor for edge in one.box)
    draw.rectangle((left, upper, max(left, right - 1), max(upper, lower - 1)), outline=color, width=2)
    text = f"{one.label} {one.score:.0%}"
    edges = draw.textbbox((0, 0), text, font=font)
    wide, high = edges[2] + 4, edges[3] + 2
    left, upper = max(0, min(left, width - wide)), upper - high if upper >= high else upper
    draw.rectangle((left, upper, left + wide, upper + high), fill=color)
    draw.text((left + 2, upper), text, font=font, fill="black")


def _color(number: int, count: int) -> tuple[int, int, int]:
    """Returns the color of a label as (red, green, blue), 0–255. `number` is the index of the label, and `count` the
    number of labels.
    """
    red, green, blue = colorsys.hsv_to_rgb(number / max(count, 1), 0.6, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def figure(answer: DetectedObjects) -> str:
    """Returns an HTML `<figure>` with the picture of an answer and a list of its objects. The picture is embedded in
    the HTML.
    """
    items = "".join(f"<li>{html.escape(one.label)} {one.score:.1%}</li>" for one in answer.objects)
    caption = f"<figcaption><b>{html.escape(answer.path)}</b><ul>{items or '<li>no objects</li>'}</ul></figcaption>"
    return f"<figure>{html_page.picture(answer.drawn(), answer.path)}{caption}</figure>"


@dataclasses.dataclass(frozen=True, eq=False)
class BoxPredictor(Predictor[DetectionModel]):
    """Predictor of object detection models: finds the objects in images."""

    threshold: float = 0.5
    """Minimum probability of an object's label for the object to be included in an answer."""

    def encode(self, requests: Sequence[PreparedScene]) -> dict[str, np.ndarray]:
        """Converts images to the arguments of the model: `images` and, if the model takes it, `pixel_mask`."""
        arrays = {
            "images": np.stack([one.pixels for one in requests]),
            "pixel_mask": np.stack([one.mask for one in requests]),
        }
        return {name: array for name, array in arrays.items() if name in self.model.inputs()}

    def predict(self, requests: Sequence[PreparedScene]) -> list[DetectedObjects]:
        """Finds the objects in each image. Objects with a probability below `threshold` are left out."""
        answers = []
        for start in range(0, len(requests), ROWS):
            part = requests[start : start + ROWS]
            scores, boxes = jax.device_get(_detections(self.model, self.params, self.encode(part)))
            answers += [self._answer(one, *row) for one, *row in zip(part, scores, boxes, strict=True)]
        return answers

    def _answer(self, request: PreparedScene, scores: np.ndarray, boxes: np.ndarray) -> DetectedObjects:
        """Converts the predictions for one image to an answer.

        Args:
          request: the image.
          scores: probability of each label, [predictions, labels].
          boxes: left, upper, right and lower edges as fractions of the image size, [predictions, 4].
        """
        sizes = np.array([*request.picture.size] * 2)
        best = scores.max(-1)
        order = [place for place in np.argsort(-best, kind="stable") if best[place] >= self.threshold]
        labels = self.model.labels
        objects = [
            DetectedObject(
                labels[scores[place].argmax()],
                float(best[place]),
                tuple(np.clip(boxes[place] * sizes, 0, sizes).tolist()),
            )
            for place in order
        ]
        return DetectedObjects(request.path, tuple(objects), request.picture, labels)

    def demonstrate(self, batch: Mapping[str, np.ndarray]) -> list[str]:
        """Finds the objects in the first images of a held-out batch, and formats the names of the predicted and of the
        true objects for display.
        """
        rows = np.flatnonzero(batch["weights"][:, 0])[:MAX_EXAMPLES]
        inputs = {name: batch[name][rows] for name in ("images", "pixel_mask") if name in self.model.inputs()}
        scores, _ = jax.device_get(_detections(self.model, self.params, inputs))
        lines = []
        for row, shares in zip(rows, scores, strict=True):
            found = shares.argmax(-1)[shares.max(-1) >= self.threshold]
            true = batch["labels"][row][batch["box_weights"][row] > 0]
            lines.append(f"held-out image {row}: {self._names(found)}; there: {self._names(true)}")
        return lines

    def _names(self, labels: np.ndarray) -> str:
        return ", ".join(self.model.labels[label] for label in sorted(labels)) or "nothing"


@functools.partial(jax.jit, static_argnums=0)
def _detections(model: DetectionModel, params: Any, inputs: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Applies the model. Returns the probabilities of the labels, [batch, predictions, labels], and the left, upper,
    right and lower edges of the boxes as fractions of the image size, [batch, predictions, 4].
    """
    output = model.apply({"params": params}, **inputs)
    center, size = output.boxes[..., :2], output.boxes[..., 2:]
    edges = jax.numpy.concatenate([center - size / 2, center + size / 2], axis=-1)
    return jax.nn.softmax(output.logits)[..., :-1], edges
