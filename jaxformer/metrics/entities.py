"""Entity-level precision, recall and F1 of BIO, BIOES and BILOU tags.

A predicted entity is correct only if its type, its first word and its last word are correct, as in conlleval (Tjong Kim
Sang 2002).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.data.tasks.tagging import BEGINS, ENDS, OUTSIDE, kinds
from jaxformer.metrics.base import Context, DocumentMetric, Terms
from jaxformer.metrics.means import Mean

ENTITIES = "entities/"
"""Prefix of the keys under which an objective returns entity counts, one per entity type. The counts cover only
sentences that fit in one batch row.
"""


def counts(
    labels: Sequence[str],
    found: jax.Array | np.ndarray,
    right: jax.Array | np.ndarray,
    weights: jax.Array | np.ndarray,
    segments: jax.Array | np.ndarray,
) -> dict[str, Mean]:
    """Counts the true positives, predicted entities and target entities of each type.

    An entity begins with a B, S or U tag. It also begins with any other entity tag, such as I, at the start of a
    sentence, after O, after another type, or after the end of an entity (E, L, S or U). A predicted entity is a true
    positive if its first word, its last word and its type are correct.

    Args:
      labels: names of the tags.
      found: predicted tags, integers [batch, length].
      right: target tags, integers [batch, length].
      weights: 1 at the first token of each word and 0 elsewhere, [batch, length]. Tokens of weight 0 are ignored.
      segments: number of the sentence that each token belongs to, from 1 within a batch row, [batch, length]. 0 for
        padding.

    Returns:
      Maps each entity type to a `Mean` whose field `sum` contains the three counts.
    """
    words = weights > 0
    # Words move together, so that each one's neighbours are the words beside it; no sentence follows them.
    order = jnp.argsort(~words, axis=-1, stable=True)
    found, right, segments = (jnp.take_along_axis(array, order, -1) for array in (found, right, segments * words))
    ours, theirs = (_spans(labels, tags, segments) for tags in (found, right))
    same = ours.begins & theirs.begins & (ours.kind == theirs.kind) & (ours.end == theirs.end)
    totals = {}
    for number, kind in enumerate(kinds(labels)):
        is_kind = ours.kind == number, ours.kind == number, theirs.kind == number
        sums = [(part & of).sum() for part, of in zip((same, ours.begins, theirs.begins), is_kind, strict=True)]
        totals[kind] = Mean(jnp.stack(sums).astype(jnp.float32), jnp.ones(()))
    return totals


Counts = dict[str, Mean]
"""Maps each entity type to a `Mean`. Its field `sum` contains three counts: true positives, predicted entities and
target entities.
"""


@dataclasses.dataclass(frozen=True)
class EntityScores(DocumentMetric[Counts]):
    """Precision, recall and F1 over all entities, and the F1 of each entity type, from 0 to 1.

    Sentences that fit in one batch row are counted batch by batch, by the objective. Longer sentences are split into
    several rows, so `count_long` counts their entities from whole sentences.
    """

    labels: tuple[str, ...]
    """Names of the tags, in index order."""
    count_long: Callable[[Context, Sequence[Mapping[str, Any]], Sequence[int]], Counts]
    """Function that takes the context, all documents and the indices of some of them, and returns the entity counts of
    those sentences that do not fit in one batch row.
    """

    higher_is_better = True

    @property
    def names(self) -> tuple[str, ...]:
        return ("entity_precision", "entity_recall", "entity_f1", *(f"f1/{kind}" for kind in kinds(self.labels)))

    def update(self, terms: Terms) -> Counts | None:
        of_kind = {kind: ENTITIES + kind for kind in kinds(self.labels)}
        if not all(name in terms for name in of_kind.values()):
            return None
        return {kind: terms[name].double() for kind, name in of_kind.items()}

    def score(self, context: Context, documents: Sequence[Mapping[str, Any]], indices: Sequence[int]) -> Counts:
        return self.count_long(context, documents, indices)

    def compute(self, state: Counts) -> dict[str, float]:
        sums = {kind: np.asarray(mean.sum, np.float64) * np.ones(3) for kind, mean in state.items()}
        right, found, there = sum(sums.values(), np.zeros(3))
        values = {"entity_precision": right / max(found, 1), "entity_recall": right / max(there, 1)}
        values["entity_f1"] = _f1(right, found, there)
        return {name: float(value) for name, value in values.items()} | {
            f"f1/{kind}": float(_f1(*part)) for kind, part in sums.items()
        }


def _f1(right: float, found: float, there: float) -> float:
    return 2 * right / max(found + there, 1)


class _Spans(NamedTuple):
    """Entities of batch rows as arrays per token, [batch, length]: whether an entity begins at the token (bool), and
    the entity's type and the index of its last word (integers).
    """

    begins: jax.Array
    kind: jax.Array
    end: jax.Array


def _spans(labels: Sequence[str], tags: jax.Array, segments: jax.Array) -> _Spans:
    names = kinds(labels)
    kind_of = jnp.array([names.index(label[2:]) if label != OUTSIDE else -1 for label in labels])
    begins_with = jnp.array([label.startswith(BEGINS) for label in labels])
    ends_with = jnp.array([label.startswith(ENDS) for label in labels])
    kind = jnp.where(segments > 0, kind_of[tags], -1)
    before = jnp.pad(kind[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    apart = jnp.diff(segments, axis=-1, prepend=0) != 0
    ended = jnp.pad(ends_with[tags][:, :-1], ((0, 0), (1, 0)))
    begins = (kind >= 0) & (begins_with[tags] | apart | ended | (before != kind))
    # An entity extends to the word before the next one that begins another, or is in none.
    stops = jnp.pad((begins | (kind < 0) | apart)[:, 1:], ((0, 0), (0, 1)), constant_values=True)
    index = jnp.where(stops, jnp.arange(tags.shape[1]), tags.shape[1])
    return _Spans(begins, kind, jax.lax.cummin(index, axis=1, reverse=True))
