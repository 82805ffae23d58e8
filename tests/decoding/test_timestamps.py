"""Rules for timestamps are those of the transformers library, step by step."""

import functools

import jax
import numpy as np
import pytest

from jaxformer.decoding import rules
from jaxformer.decoding.rules import Rules
from jaxformer.decoding.settings import Decoding, TimestampRules
from jaxformer.errors import InputError

VOCAB, END, FIRST, PREFIX = 40, 20, 26, 3


def processed(scores, output, latest):
    """The scores of the next tokens with our rules."""
    decoding = Decoding(timestamps=TimestampRules(FIRST, latest))
    data = Rules(limits=np.full(len(scores), 12, np.int32), ends=np.array([END], np.int32))
    room = np.zeros((len(scores), 12), np.int32)
    room[:, : output.shape[1]] = output
    apply = jax.jit(functools.partial(rules.apply, rules=data, decoding=decoding, seen=None))
    return np.asarray(apply(scores, output=room, count=output.shape[1]))


@pytest.mark.parametrize("latest", [None, 3])
def test_scores_are_those_of_transformers(latest):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    settings = {"no_timestamps_token_id": FIRST - 1, "max_initial_timestamp_index": latest, "eos_token_id": END}
    config = transformers.GenerationConfig(**settings)
    process = transformers.generation.logits_process.WhisperTimeStampLogitsProcessor(config, begin_index=PREFIX)
    rng, seen = np.random.default_rng(0), 0
    for count in range(6):
        # Outputs in which timestamps do not decrease, as the rules ensure.
        output = rng.integers(0, END, (32, count))
        times = np.sort(rng.integers(FIRST, VOCAB - 2, (32, count)), axis=1)
        output = np.where(rng.random((32, count)) < 0.6, times, output).astype(np.int32)
        scores = rng.normal(0, 2, (32, VOCAB)).astype(np.float32)
        ids = torch.tensor(np.concatenate([np.zeros((32, PREFIX), np.int32), output], axis=1))
        expected = process(ids, torch.tensor(scores)).numpy()
        found = processed(scores, output, latest)
        np.testing.assert_array_equal(np.isinf(found), np.isinf(expected))
        np.testing.assert_array_equal(found[np.isfinite(found)], expected[np.isfinite(expected)])
        seen += np.isinf(expected).sum()
    assert seen > 1000


def test_invalid_rules_are_refused():
    with pytest.raises(InputError, match=r"decoding\.timestamps.first=0: expected at least 1"):
        TimestampRules(0)
