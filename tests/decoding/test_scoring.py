"""How likely given continuations are: against transformers, in parts, and what is refused."""

import jax
import numpy as np
import pytest
import torch
from decoding_models import NEW, START, VOCAB, both, prompts, run, special
from test_decoding import MODELS

from jaxformer.decoding import scoring
from jaxformer.decoding.generate import generate
from jaxformer.decoding.scoring import score
from jaxformer.decoding.settings import Decoding
from jaxformer.errors import InputError


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_scores_are_the_log_probabilities_of_transformers(name):
    theirs, model, params = both(name)
    greedy, rng = run(name, Decoding(max_new_tokens=NEW)), np.random.default_rng(1)
    continuations = [greedy[0][:5], greedy[1], rng.integers(0, VOCAB, 4), greedy[3][:1], rng.integers(0, VOCAB, 9)]
    scores = score(model, params, prompts(), continuations, special(name)["start"])
    assert [found.greedy for found in scores] == [True, True, False, True, False]
    for prompt, continuation, found in zip(prompts(), continuations, scores, strict=True):
        answer = torch.tensor([START, *continuation[:-1]])[None]
        with torch.no_grad():
            if theirs.config.is_encoder_decoder:
                logits = theirs(input_ids=torch.tensor(prompt)[None], decoder_input_ids=answer).logits[0]
            else:
                logits = theirs(torch.tensor([*prompt, *continuation])[None]).logits[0, len(prompt) - 1 : -1]
        expected = float(logits.log_softmax(-1)[torch.arange(len(continuation)), continuation.copy()].sum())
        assert found.log_probability == pytest.approx(expected, abs=1e-4)
        assert found.tokens == len(continuation)
        assert found.per_token == pytest.approx(expected / len(continuation), abs=1e-4)


@pytest.mark.slow
def test_ids_without_a_piece_are_not_the_likeliest():
    """So that greedy decoding, which never takes them, gives what is said to be greedy."""
    _, model, params = both("gpt2")
    pieces = 30
    some = [prompt % pieces for prompt in prompts()]
    written = generate(model, params, some, Decoding(max_new_tokens=NEW), pieces=pieces)
    assert all(found.greedy for found in score(model, params, some, written, pieces=pieces))
    assert not all(found.greedy for found in score(model, params, some, written))


def test_long_scores_are_computed_in_parts(monkeypatch):
    _, model, params = both("llama")
    pairs = prompts(), [np.arange(9) + row for row in range(5)]
    whole = score(model, params, *pairs)
    monkeypatch.setattr(scoring, "CHUNK", 8 * VOCAB * 5)
    scoring._score.clear_cache()
    parts = score(model, params, *pairs)
    scoring._score.clear_cache()
    assert [one.log_probability for one in parts] == pytest.approx([one.log_probability for one in whole], abs=1e-4)


@pytest.mark.slow
def test_the_tokens_of_a_prefix_see_each_other_both_ways():
    """As in the full forward pass with that prefix."""
    _, model, params = both("gpt2")
    prompt, continuation = prompts()[0], np.arange(6)
    (found,) = score(model, params, [prompt], [continuation], prefix=True)
    tokens = np.concatenate([prompt, continuation])[None]
    logits = model.apply({"params": params}, tokens, prefix=np.arange(tokens.shape[1])[None] < len(prompt)).logits[0]
    expected = jax.nn.log_softmax(logits)[len(prompt) - 1 : -1][np.arange(6), continuation].sum()
    assert found.log_probability == pytest.approx(float(expected), abs=1e-4)
    assert found.log_probability != pytest.approx(
        score(model, params, [prompt], [continuation])[0].log_probability, abs=1e-3
    )


def test_what_cannot_be_scored_is_refused():
    _, model, params = both("gpt2")
    with pytest.raises(InputError, match="a prompt and a continuation of 50 tokens: the model has positions for 48"):
        score(model, params, [[1] * 40], [[1] * 10])
    assert score(model, params, [[1] * 39], [[1] * 10])[0].tokens == 10, "the last token needs no position"
    with pytest.raises(InputError, match="an empty continuation: expected at least one token"):
        score(model, params, [[1]], [[]])
    _, answering, params = both("t5")
    with pytest.raises(InputError, match="start=None: an encoder–decoder needs a decoder start token"):
        score(answering, params, [[1]], [[1]])
