"""Retrieval of texts by images and of images by texts."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from jaxformer.metrics.base import Metric, Terms

CHUNK = 1024
"""Rows of scores that exist at once."""


class Pairs(NamedTuple):
    """Images and texts that belong together, one of each in a row."""

    images: np.ndarray
    """float32 [n, d], of length 1."""
    texts: np.ndarray
    """float32 [n, d], of length 1."""
    keys: np.ndarray
    """Integers [n, t], the same in rows whose texts are equal."""


@dataclasses.dataclass(frozen=True)
class Retrieval(Metric[Pairs]):
    """How often the right text is among the k best for an image, and a right image among the k best for a text.

    Candidates are all different texts, and all images, of the data, however they are divided into batches. A text may
    belong to several images. Equal scores count against the model. `chance_k` is what a random order of the texts
    gives.
    """

    at: tuple[int, ...] = (1, 5)
    """The values of k."""

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
    """How many wrong candidates are at least as near to each query as its nearest right one; integers [n]."""
    found = []
    for start in range(0, len(queries), CHUNK):
        rows = slice(start, start + CHUNK)
        scores = queries[rows] @ candidates.T
        nearest = np.where(right[rows], scores, -np.inf).max(1, keepdims=True)
        found.append(((scores >= nearest) & ~right[rows]).sum(1))
    return np.concatenate(found)
