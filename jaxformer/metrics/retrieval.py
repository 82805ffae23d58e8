"""Recall of image-to-text and text-to-image retrieval."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from jaxformer.metrics.base import Metric, Terms

CHUNK = 1024
"""Number of queries that are compared with all candidates at once, to limit memory."""


class Pairs(NamedTuple):
    """Vectors of matching images and texts. Row i of each array belongs to pair i."""

    images: np.ndarray
    """Image vectors, float32 [pairs, embed], with an L2 norm of 1."""
    texts: np.ndarray
    """Text vectors, float32 [pairs, embed], with an L2 norm of 1."""
    keys: np.ndarray
    """Integers that identify the text of each pair, such as its tokens, [pairs, length]. Equal texts have equal rows.
    """


@dataclasses.dataclass(frozen=True)
class Retrieval(Metric[Pairs]):
    """Recall at k of image-to-text and text-to-image retrieval: the share of queries with a match among the k best
    candidates.

    The candidates are all distinct texts or all images of the data, not only those of a batch. A text may match several
    images. A candidate that does not match, but has the same score as the best match, ranks before it. `chance_k` is
    the expected image-to-text recall at k of a random ranking.
    """

    at: tuple[int, ...] = (1, 5)
    """Values of k. A query counts as correct if a match is among its k best candidates."""

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
    """Ranks the candidates for each query by the dot product of their vectors.

    Args:
      queries: vectors of the queries, [queries, embed].
      candidates: vectors of the candidates, [candidates, embed].
      right: whether each candidate matches each query, bool [queries, candidates].

    Returns:
      Number of non-matching candidates whose score is at least that of the best match, integers [queries]. 0 if a match
      ranks first.
    """
    found = []
    for start in range(0, len(queries), CHUNK):
        rows = slice(start, start + CHUNK)
        scores = queries[rows] @ candidates.T
        nearest = np.where(right[rows], scores, -np.inf).max(1, keepdims=True)
        found.append(((scores >= nearest) & ~right[rows]).sum(1))
    return np.concatenate(found)
