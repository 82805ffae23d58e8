"""Average precision of predicted bounding boxes, as COCO defines it (Lin et al. 2014)."""

import contextlib
import dataclasses
import importlib.util
import io
from typing import Any, NamedTuple

import numpy as np

from jaxformer.errors import InputError
from jaxformer.metrics.base import Metric, Terms

STATS = ("ap", "ap_50", "ap_75", "ap_small", "ap_medium", "ap_large", "ar_1", "ar_10", "ar_100")
"""Names of the first nine numbers that pycocotools computes, in its order: average precisions (`ap`) and average
recalls (`ar`).
"""
NO_OBJECTS = -1.0
"""Value that is reported for a number if there are no objects to compute it from, as in pycocotools."""


class Scene(NamedTuple):
    """Objects and predictions of one image. Boxes consist of left edge, upper edge, width and height, in pixels of the
    original image.
    """

    boxes: np.ndarray
    """Boxes of the target objects, float64 [objects, 4]."""
    labels: np.ndarray
    """Class index of each target object, integers [objects]."""
    areas: np.ndarray
    """Area of each target object in square pixels, [objects]."""
    crowd: np.ndarray
    """Whether each target box contains a crowd of objects (`iscrowd` in COCO), bool [objects]."""
    predicted_boxes: np.ndarray
    """Predicted boxes, float64 [predictions, 4]."""
    predicted_labels: np.ndarray
    """Class index of each prediction, integers [predictions]."""
    scores: np.ndarray
    """Probability of the predicted class of each prediction, [predictions]."""


def check_installed() -> None:
    """Raises InputError if pycocotools is not installed."""
    if importlib.util.find_spec("pycocotools") is None:
        raise InputError(
            "objective.average_precision=True: needs pycocotools; pip install 'jaxformer[coco]', or set it to False"
        )


@dataclasses.dataclass(frozen=True)
class AveragePrecision(Metric[tuple[Scene, ...]]):
    """Average precision and recall of boxes over all images, computed by pycocotools.

    `ap` is averaged over all classes and over the thresholds 0.5, 0.55, ..., 0.95 of the intersection over union.
    `ap_50` and `ap_75` use only the threshold 0.5 or 0.75. `ap_small`, `ap_medium` and `ap_large` count only objects
    with an area below 32², from 32² to 96², or above 96² pixels. `ar_N` is the recall with at most N predictions per
    image. A number is -1 if there are no objects to compute it from.
    """

    names = STATS
    higher_is_better = True

    def update(self, terms: Terms) -> tuple[Scene, ...] | None:
        if "scenes" not in terms:
            return None
        arrays = terms["scenes"]
        return tuple(_scene(arrays, int(row)) for row in np.flatnonzero(arrays["weights"][:, 0]))

    def merge(self, state: tuple[Scene, ...], other: tuple[Scene, ...]) -> tuple[Scene, ...]:
        return state + other

    def compute(self, state: tuple[Scene, ...]) -> dict[str, float]:
        return dict(zip(STATS, coco_stats(state), strict=True))


def coco_stats(scenes: tuple[Scene, ...]) -> list[float]:
    """Computes the numbers named in `STATS`, in this order, with pycocotools. All are -1 if there are no objects."""
    if not sum(len(scene.labels) for scene in scenes):
        return [NO_OBJECTS] * len(STATS)
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # It prints progress and a table.
        truth: Any = COCO()  # Its types are those of COCO's files.
        truth.dataset = _dataset(scenes)
        truth.createIndex()
        rows = [_prediction_rows(number, scene) for number, scene in enumerate(scenes, 1)]
        evaluation = COCOeval(truth, truth.loadRes(np.concatenate(rows)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [float(value) for value in evaluation.stats[: len(STATS)]]


def _dataset(scenes: tuple[Scene, ...]) -> dict[str, Any]:
    """Returns the target objects as a COCO annotation dict. Ids are counted from 1, because pycocotools treats 0 as
    missing.
    """
    annotations = [
        {
            "image_id": number,
            "category_id": int(label) + 1,
            "bbox": box.tolist(),
            "area": float(area),
            "iscrowd": int(crowd),
        }
        for number, scene in enumerate(scenes, 1)
        for box, label, area, crowd in zip(scene.boxes, scene.labels, scene.areas, scene.crowd, strict=True)
    ]
    labels = {int(label) + 1 for scene in scenes for label in (*scene.labels, *scene.predicted_labels)}
    return {
        "images": [{"id": number} for number in range(1, len(scenes) + 1)],
        "annotations": [{**annotation, "id": number} for number, annotation in enumerate(annotations, 1)],
        "categories": [{"id": label} for label in sorted(labels)],
    }


def _prediction_rows(number: int, scene: Scene) -> np.ndarray:
    """Returns the predictions of an image, float64 [predictions, 7]: image id (`number`), box (4 numbers), score and
    category id.
    """
    count = len(scene.scores)
    return np.column_stack(
        [np.full(count, number), scene.predicted_boxes, scene.scores, scene.predicted_labels + 1]
    ).astype(np.float64)


def _scene(arrays: Terms, row: int) -> Scene:
    height, width = arrays["image_size"][row].tolist()
    there = np.flatnonzero((arrays["box_weights"][row] > 0) | (arrays["crowd"][row] > 0))
    return Scene(
        _in_pixels(arrays["boxes"][row][there], width, height),
        arrays["labels"][row][there],
        arrays["areas"][row][there].astype(np.float64),
        arrays["crowd"][row][there] > 0,
        _in_pixels(arrays["predicted_boxes"][row], width, height),
        arrays["predicted_labels"][row],
        arrays["scores"][row].astype(np.float64),
    )


def _in_pixels(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """Converts boxes [boxes, 4] from center x, center y, width and height, as fractions of the image, to left edge,
    upper edge, width and height in pixels.
    """
    boxes = boxes.astype(np.float64)
    corner = boxes[:, :2] - boxes[:, 2:] / 2
    return np.concatenate([corner, boxes[:, 2:]], axis=1) * np.array([width, height, width, height])
