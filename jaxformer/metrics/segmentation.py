"""Mean intersection over union of semantic segmentation, over whole pictures in their own size."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxformer.data.sources.sources import located
from jaxformer.metrics.base import Context, DocumentMetric


def confusion(targets: np.ndarray, guesses: np.ndarray, classes: int) -> np.ndarray:
    """Counts pixels by their label and their predicted label, int64 [classes, classes].

    Args:
      targets: labels, integers. Pixels with other values, such as 255, are ignored.
      guesses: predicted labels, integers of the same shape.
      classes: number of labels.
    """
    known = (targets >= 0) & (targets < classes)
    pairs = targets[known].astype(np.int64) * classes + guesses[known]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


@dataclasses.dataclass(frozen=True)
class MeanIou(DocumentMetric[np.ndarray]):
    """Intersection over union of each label, from pixel counts summed over all pictures, and its mean over the labels
    that occur in masks or predictions. Pixels without a label are ignored.

    `mean_iou` is the mean, `iou/NAME` that of a label, and `pixel_accuracy` the share of pixels with the right label.
    """

    labels: tuple[str, ...]
    """Names of the labels."""
    segment: Callable[[Context, Mapping[str, Any]], tuple[np.ndarray, np.ndarray] | None]
    """Function that returns the mask of a document and the predicted one, both integers [height, width]. None for a
    document without a picture."""
    count: int | None = None
    """Number of pictures to score, from the start of the data. If None, all are scored."""

    higher_is_better = True

    @property
    def names(self) -> tuple[str, ...]:
        return "mean_iou", "pixel_accuracy", *(f"iou/{name}" for name in self.labels)

    def select(self, context: Context, documents: Sequence[Mapping[str, Any]]) -> range:
        return range(len(documents) if self.count is None else min(self.count, len(documents)))

    def score(self, context: Context, documents: Sequence[Mapping[str, Any]], indices: Sequence[int]) -> np.ndarray:
        counts = np.zeros((len(self.labels), len(self.labels)), np.int64)
        for targets, guesses in self._pairs(context, documents, indices):
            counts += confusion(targets, guesses, len(self.labels))
        return counts

    def merge(self, state: np.ndarray, other: np.ndarray) -> np.ndarray:
        return state + other

    def compute(self, state: np.ndarray) -> dict[str, float]:
        hits = np.diag(state)
        unions = state.sum(0) + state.sum(1) - hits
        shares = hits / np.maximum(unions, 1)
        mean = float(shares[unions > 0].mean()) if unions.any() else 0.0
        accuracy = float(hits.sum() / max(state.sum(), 1))
        found = zip(self.labels, shares, unions, strict=True)
        of_labels = {f"iou/{name}": float(share) for name, share, union in found if union}
        return {"mean_iou": mean, "pixel_accuracy": accuracy, **of_labels}

    def _pairs(
        self, context: Context, documents: Sequence[Mapping[str, Any]], indices: Sequence[int]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for index in indices:
            with located(documents, index):
                pair = self.segment(context, documents[index])
            if pair is not None:
                yield pair
