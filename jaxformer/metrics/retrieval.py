"""Image-to-text and text-to-image retrieval."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from jaxformer.metrics.base import Metric, Terms

CHUNK = 1024
"""Number of rows of the score matrix that are computed at once."""


class Pairs(NamedTuple):
    """Vectors of matching images and texts, one pair per row."""

    images: np.ndarray
    """Image embeddings, float32 [n, embed], each row normalized to unit length."""
    texts: np.ndarray
    """Text embeddings, float32 [n, embed], each row normalized to unit length."""
    keys: np.ndarray
    """Integers [n, length] that identify the texts: rows with equal texts have equal integers."""


@dataclasses.dataclass(frozen=True)
class Retrieval(Metric[Pairs]):
    """Recall at k of image-to-text and text-to-image retrieval.

    The candidates are all distinct texts, or all images, of the data, regardless of batches. A text may match several
    images. Ties count against the model. `chance_k` is the image-to-text recall of a random ranking.
    """

    at: tuple[int, ...] = (1, 5)
    """Values of k."""

    higher_is_better = True

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(f"{kind}_{k}" for kind in ("image_to_text", "text_to_image", "chance") for k in self.at)

    def update(self, terms: Terms) -> Pairs | None:
        if "image_vectors" not in terms:
            return None
        real = np.flatnonzero(terms["pair_weights"])
        return Pairs(*(np.asarray(terms[name])[real] for name in ("image_vectors", "text_vectors", "text_keys")))

    def merge(self, state: Pairs, other: Pairs) -> Pairs:
        return Pairs(*(np.concatenate(parts) for parts in zip(state, other, strict=True)))

    def compute(self, state: Pairs) -> dict[str, float]:
        if not len(state.keys):
            return dict.fromkeys(self.names, 0.0)
        _, first, text_of = np.unique(state.keys, axis=0, return_index=True, return_inverse=True)
        text_of = text_of.reshape(-1)
        texts = state.texts[first]
        of_image = _ranks(state.images, texts, text_of[:, None] == np.arange(len(texts)))
        of_text = _ranks(texts, state.images, np.arange(len(texts))[:, None] == text_of)
        ranks = {"image_to_text": of_image, "text_to_image": of_text}
        found: dict[str, Any] = {
            f"{kind}_{k}": float((some < k).mean()) for kind, some in ranks.items() for k in self.at
        }
        return found | {f"chance_{k}": min(1.0, k / len(texts)) for k in self.at}


def _ranks(queries: np.ndarray, candidates: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Returns the number of non-matching candidates that score at least as high as the best match, integers [n]."""
    found = []
    for start in range(0, len(queries), CHUNK):
        rows = slice(start, start + CHUNK)
        scores = queries[rows] @ candidates.T
        nearest = np.where(right[rows], scores, -np.inf).max(1, keepdims=True)
        found.append(((scores >= nearest) & ~right[rows]).sum(1))
    return np.concatenate(found)
