"""Orders in which the documents of a source are read: shuffled without end for training, or once from first to last."""

import functools
import sys
from collections.abc import Sequence
from typing import Any

import grain
import numpy as np

from jaxformer.data.sources.sources import Mixed

# Grain mixes in a fixed pattern, and each lane takes every B-th document. Without shuffling the pattern, a lane could
# see only one component.
_MIXING_WINDOW = 4096
# Grain shuffles by stepping through at least 65,536 numbers until one is below the count: with ten documents, a look-up
# takes 2 ms. Up to this number of documents, a permutation is computed at once instead.
_FEW = 65_536


def shuffled(documents: Sequence, seed: int) -> grain.MapDataset:
    """Returns the endless random order in which training reads documents, as a dataset of indices into `documents`.

    Each source of a mixture is reshuffled every time that all its documents have been read.
    """
    if not isinstance(documents, Mixed):
        return _shuffled_range(len(documents), _seed(seed, 0))
    parts = [
        shuffled(part, _seed(seed, number)).map(lambda index, start=int(start): start + index)
        for number, (part, start) in enumerate(zip(documents.parts, documents.starts[:-1], strict=True), 1)
    ]
    mixed = grain.MapDataset.mix(parts, documents.weights)
    return grain.experimental.WindowShuffleMapDataset(mixed, window_size=_MIXING_WINDOW, seed=_seed(seed, 0) % 2**31)


def _shuffled_range(count: int, seed: int) -> grain.MapDataset:
    if count > _FEW:
        return grain.MapDataset.range(count).shuffle(seed=seed).repeat()
    visits = grain.MapDataset.range(sys.maxsize)
    return visits.map(lambda visit: _permutation(count, seed, visit // count)[visit % count])


@functools.lru_cache(maxsize=64)
def _permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


def in_order(documents: Sequence) -> grain.MapDataset:
    """Returns an order that contains every document once, from first to last, as a dataset of indices into `documents`.

    The documents of each source of a mixture keep their order, and are spread evenly over the whole order.
    """
    if not isinstance(documents, Mixed):
        return grain.MapDataset.range(len(documents))
    orders = [
        start + np.array([*in_order(part)]) for part, start in zip(documents.parts, documents.starts[:-1], strict=True)
    ]
    places = [(np.arange(len(order)) + 0.5) / len(order) for order in orders]
    indices: Any = np.concatenate(orders)[np.argsort(np.concatenate(places), kind="stable")]
    return grain.MapDataset.source(indices)


def _seed(seed: int, number: int) -> int:
    return int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
