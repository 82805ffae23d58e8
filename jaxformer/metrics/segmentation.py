"""Mean intersection over union of semantic segmentation, computed over whole pictures in their original size."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxformer.data.sources.sources import located
from jaxformer.metrics.base import Context, DocumentMetric


def confusion(targets: np.ndarray, guesses: np.ndarray, classes: int) -> np.ndarray:
    """Computes the confusion matrix of pixels, int64 [classes, classes]: entry [i, j] is the number of pixels with
    label i that are predicted as label j.

    Args:
      targets: label index of each pixel, integers. Pixels with values outside 0 to `classes` − 1, such as 255, are
        ignored.
      guesses: predicted label indices, integers of the same shape.
      classes: number of labels.
    """
    known = (targets >= 0) & (targets < classes)
    pairs = targets[known].astype(np.int64) * classes + guesses[known]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


@dataclasses.dataclass(frozen=True)
class MeanIou(DocumentMetric[np.ndarray]):
    """Intersection over union of each label, from pixel counts summed over all pictures. Pixels without a label are
    ignored.

    `iou/NAME` is the intersection over union of the label NAME, and `mean_iou` their mean over the labels that occur in
    masks or predictions. `pixel_accuracy` is the share of pixels whose label is predicted correctly.
    """

    labels: tuple[str, ...]
    """Class names, in the order of the label indices."""
    segment: Callable[[Context, Mapping[str, Any]], tuple[np.ndarray, np.ndarray] | None]
    """Function that takes the context and a document, and returns the target mask and the predicted mask of its
    picture, both integers [height, width]. None for a document without a picture.
    """
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
