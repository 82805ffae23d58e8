"""A Whisper that reads shorter sounds starts from the weights of one that reads longer ones."""

import dataclasses

import jax
import numpy as np
import pytest
from small_bert import noisy_params

from jaxformer.errors import InputError
from jaxformer.models.whisper import Whisper, whisper_stack
from jaxformer.training.warm_start import Weights, check_model, match

STACK = whisper_stack(16, 1, 2)
LONG = Whisper(STACK, STACK, vocab=20, frames=12, mels=4, max_length=10)
SHORT = dataclasses.replace(LONG, frames=8, max_length=6)


def drawn(model, seed):
    """A model and random parameters of it."""
    log_mel, tokens = np.zeros((1, model.frames, model.mels), np.float32), np.zeros((1, 2), np.int32)
    return Weights(model, noisy_params(model, log_mel, tokens, seed=seed))


def test_a_shorter_model_takes_the_first_positions():
    long, short = drawn(LONG, 1), drawn(SHORT, 2)
    check_model("x", LONG, SHORT)
    start = match("x", long, short)
    found, given = start.params, long.params
    np.testing.assert_array_equal(found["audio_positions"]["bias"], given["audio_positions"]["bias"][:4])
    np.testing.assert_array_equal(found["embeddings"]["position"], given["embeddings"]["position"][:6])
    np.testing.assert_array_equal(found["embeddings"]["token"], given["embeddings"]["token"])
    assert "new" not in start.summary
    count = len(jax.tree.leaves(found))
    assert start.summary == f"{count} of {count} parameters are those of x"


def test_a_longer_model_is_refused():
    with pytest.raises(InputError, match=r"init=x: another model: model\.max_length: 6 in the run, 10 now"):
        check_model("x", SHORT, LONG)
