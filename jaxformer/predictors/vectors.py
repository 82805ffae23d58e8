"""Return types of predictors that compute vectors of texts and images (embeddings)."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from jaxformer.predictors.base import Answer


@dataclasses.dataclass(frozen=True)
class Embedded(Answer):
    """A text or image path, its vector, and its cosine similarities to the other requests."""

    pair_names: ClassVar = {"cosines": ("text", "cosine")}

    text: str
    """Text or image path in the request."""
    vector: np.ndarray
    """Vector of the text or image, float32 [embed]."""
    cosines: tuple[tuple[str, float], ...] = ()
    """The other requests in their order, each with the cosine similarity of its vector to `vector`."""

    def __str__(self) -> str:
        if not self.cosines:
            return " ".join(f"{number:.6f}" for number in self.vector)
        return "\n".join([self.text, *(f"  {cosine:6.3f}  {other}" for other, cosine in self.cosines)])


def with_cosines(names: Sequence[str], vectors: np.ndarray) -> list[Embedded]:
    """Creates the answers of a predictor that computes vectors, including the cosine similarities between them.

    Args:
      names: text or image path of each request.
      vectors: vectors of the requests, [requests, embed].
    """
    lengths = np.linalg.norm(vectors, axis=-1)
    cosines = vectors @ vectors.T / np.maximum(np.outer(lengths, lengths), np.finfo(np.float32).tiny)
    return [
        Embedded(
            name,
            vectors[row],
            tuple((other, float(cosines[row, at])) for at, other in enumerate(names) if at != row),
        )
        for row, name in enumerate(names)
    ]
