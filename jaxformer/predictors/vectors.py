"""Vectors as answers."""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from jaxformer.predictors.base import Answer


@dataclasses.dataclass(frozen=True)
class Embedded(Answer):
    """A text, its vector, and how near the vectors of the other texts are."""

    pair_names: ClassVar = {"cosines": ("text", "cosine")}

    text: str
    """The text as it was given."""
    vector: np.ndarray
    """float32 [d]."""
    cosines: tuple[tuple[str, float], ...] = ()
    """The other texts in their order, each with the cosine between both vectors."""

    def __str__(self) -> str:
        if not self.cosines:
            return " ".join(f"{number:.6f}" for number in self.vector)
        return "\n".join([self.text, *(f"  {cosine:6.3f}  {other}" for other, cosine in self.cosines)])


def with_cosines(names: Sequence[str], vectors: np.ndarray) -> list[Embedded]:
    """Each vector of [n, d] with its name, and with the cosines between it and the others."""
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
