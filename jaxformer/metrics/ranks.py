"""Spearman rank correlation. It is computed from all documents together, because the ranks of values in one batch
depend on all other batches.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxformer.metrics.base import Context, DocumentMetric

Pairs = tuple[tuple[float, float], ...]
"""Pairs of a prediction and a target, in document order."""


@dataclasses.dataclass(frozen=True)
class Spearman(DocumentMetric[Pairs]):
    """Spearman rank correlation between predictions and targets over all documents. 0 if either is constant."""

    predict: Callable[[Context, Sequence[Mapping[str, Any]], Sequence[int]], Pairs]
    """Function that takes the context, all documents and the indices of some of them, and returns a pair of prediction
    and target for each index.
    """

    names = ("spearman",)
    higher_is_better = True

    def score(self, context: Context, documents: Sequence[Mapping[str, Any]], indices: Sequence[int]) -> Pairs:
        return self.predict(context, documents, indices)

    def merge(self, state: Pairs, other: Pairs) -> Pairs:
        return state + other

    def compute(self, state: Pairs) -> dict[str, float]:
        values, targets = zip(*state, strict=True) if state else ((), ())
        alike = len(set(values)) < 2 or len(set(targets)) < 2
        if alike:
            return {"spearman": 0.0}
        import scipy.stats  # A quarter of the time in which all of jaxformer is imported.

        found = scipy.stats.spearmanr(values, targets)
        return {"spearman": float(found.statistic)}  # pyright: ignore[reportAttributeAccessIssue] - SciPy's own result.
