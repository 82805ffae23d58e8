"""Retrieval against a sort of every query's candidates."""

import numpy as np

from jaxformer.metrics.base import MetricStates
from jaxformer.metrics.retrieval import Retrieval

RNG = np.random.default_rng(0)
KEYS = np.array([[1, 2], [3, -1], [1, 2], [4, 4], [5, 6], [3, -1], [7, 8]])


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


OF_TEXT = {tuple(key): unit(RNG.normal(size=3)) for key in KEYS}
TEXTS = np.array([OF_TEXT[tuple(key)] for key in KEYS], np.float32)
IMAGES = unit(TEXTS + 0.7 * RNG.normal(size=TEXTS.shape)).astype(np.float32)


def measured(*parts, at=(1, 2)):
    """The metric of the pairs in batches, each with a row that is padding."""
    states = MetricStates([Retrieval(at)])
    for part in parts:
        rows = [*part, 0]
        weights = np.array([1] * len(part) + [0], np.float32)
        arrays = {"image_vectors": IMAGES[rows], "text_vectors": TEXTS[rows], "text_keys": KEYS[rows]}
        states.add({**arrays, "pair_weights": weights})
    return states.compute()


def by_sorting(k):
    different = list(OF_TEXT)
    candidates = np.array([OF_TEXT[key] for key in different])
    best = np.argsort(-IMAGES @ candidates.T, axis=1)[:, :k]
    images = [tuple(key) in [different[i] for i in row] for key, row in zip(KEYS, best, strict=True)]
    best = np.argsort(-candidates @ IMAGES.T, axis=1)[:, :k]
    texts = [key in [tuple(KEYS[i]) for i in row] for key, row in zip(different, best, strict=True)]
    return np.mean(images), np.mean(texts)


def test_it_is_the_share_of_queries_with_a_right_candidate_among_the_best():
    found = measured(range(7))
    for k in (1, 2):
        assert (found[f"image_to_text_{k}"], found[f"text_to_image_{k}"]) == by_sorting(k)
        assert found[f"chance_{k}"] == k / 5
    assert 0 < found["image_to_text_1"] < 1


def test_batches_change_nothing():
    assert measured(range(7)) == measured([0, 1], [2], [], [3, 4, 5, 6])


def test_a_model_that_gives_all_the_same_vector_finds_nothing():
    arrays = dict.fromkeys(("image_vectors", "text_vectors"), np.tile(TEXTS[:1], (7, 1)))
    metric = Retrieval()
    found = metric.compute(metric.update({**arrays, "text_keys": KEYS, "pair_weights": np.ones(7)}))
    assert found["image_to_text_1"] == found["text_to_image_1"] == 0.0


def test_the_terms_of_a_training_step_have_no_vectors():
    assert Retrieval().update({"loss": 1.0}) is None
