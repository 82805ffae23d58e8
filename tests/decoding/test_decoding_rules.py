"""Settings of generation that change scores are those of transformers, step by step and in `generate`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from decoding_models import NEW, START, VOCAB, assert_same, both, common_token, prompts, run, run_theirs

from jaxformer.decoding import rules
from jaxformer.decoding.choosing import apply_sampling_filters
from jaxformer.decoding.generate import generate, stream
from jaxformer.decoding.rules import Rules
from jaxformer.decoding.settings import Decoding
from jaxformer.errors import InputError
from jaxformer.interop.huggingface.generation_config import generation_fields

ENDS, LIMIT = (3, 7), 6
SETTINGS = {
    "ngrams": {"no_repeat_ngram_size": 2},
    "single tokens": {"no_repeat_ngram_size": 1},
    "long ngrams": {"no_repeat_ngram_size": 4},
    "encoder ngrams": {"encoder_no_repeat_ngram_size": 2},
    "encoder tokens": {"encoder_no_repeat_ngram_size": 1},
    "encoder penalty": {"encoder_repetition_penalty": 1.7},
    "min_new_tokens": {"min_new_tokens": 3},
    "min_length": {"min_length": 6},
    "both minima": {"min_new_tokens": 2, "min_length": 9},
    "words": {"bad_words_ids": ((5,), (3,), (1, 2), (0, 1), (2, 0, 1), (4, 4, 4, 4, 4, 4, 1))},
    "suppressed": {"suppress_tokens": (4, 7)},
    "suppressed first": {"begin_suppress_tokens": (4, 7)},
    "forced first": {"forced_bos_token_id": 6},
    "suppressed after a forced one": {"forced_bos_token_id": 6, "begin_suppress_tokens": (4, 7)},
    "forced last": {"forced_eos_token_ids": (3,)},
    "one of two last": {"forced_eos_token_ids": (3, 7), "no_repeat_ngram_size": 1},
    "decay": {"exponential_decay_length_penalty": (2, 1.3)},
    "decay of what is suppressed": {"exponential_decay_length_penalty": (0, 1.3), "min_new_tokens": 4},
    "all": {
        "no_repeat_ngram_size": 3,
        "encoder_no_repeat_ngram_size": 3,
        "repetition_penalty": 1.3,
        "encoder_repetition_penalty": 0.8,
        "bad_words_ids": ((6,), (1, 1)),
        "min_new_tokens": 2,
        "forced_eos_token_ids": (7,),
        "exponential_decay_length_penalty": (3, 0.9),
        "begin_suppress_tokens": (0,),
    },
}


def draw_case(count, seed):
    """Prompts of several lengths over few tokens, the new tokens of each and scores."""
    rng = np.random.default_rng(seed)
    given = [rng.integers(0, 3, length).astype(np.int32) for length in (1, 4, 9)]
    return given, rng.integers(0, 3, (3, count)), rng.normal(0, 2, (3, 9)).astype(np.float32)


def processed(decoding, given, output, scores, answers):
    """The scores of a row as transformers changes them."""
    before = np.array([2]) if answers else given
    fields = generation_fields(decoding) | {"max_length": len(before) + LIMIT}
    if decoding.min_new_tokens:  # As `generate` prepares it.
        fields["min_length"] = len(before) + decoding.min_new_tokens
    config = transformers.GenerationConfig(**fields)
    config._eos_token_tensor = torch.tensor(ENDS)
    model = both("t5" if answers else "gpt2")[0]
    read = torch.tensor(given, dtype=torch.long)[None]
    processors = model._get_logits_processor(config, len(before), encoder_input_ids=read)
    tokens = torch.tensor(np.concatenate([before, output]), dtype=torch.long)[None]
    return processors(tokens, torch.tensor(scores)[None].clone())[0].numpy()


@pytest.mark.slow
@pytest.mark.parametrize("answers", [False, True])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_scores_are_those_of_the_logits_processors(settings, answers):
    decoding, changed = Decoding(**settings), 0
    words = tuple(word for word in decoding.bad_words_ids if word not in [(end,) for end in ENDS])
    ours = Decoding(**settings | {"bad_words_ids": words})
    for count in range(LIMIT):
        for seed in range(4):
            given, output, scores = draw_case(count, seed)
            followed = [np.array([2])] * len(given) if answers else None
            applied = Rules.of(ours, given, np.full(3, LIMIT), ENDS, followed)
            seen = None
            if decoding.repetition_penalty != 1:
                before = [[2]] * 3 if answers else given
                parts = [np.concatenate(pair).astype(int) for pair in zip(before, output, strict=True)]
                seen = np.array([np.isin(np.arange(9), part) for part in parts])
            padded = np.pad(output, [(0, 0), (0, LIMIT - count)], constant_values=1)  # Not there yet.
            found = np.asarray(rules.apply(jnp.array(scores), seen, jnp.array(padded), count, applied, ours))
            for row in range(3):
                expected = processed(decoding, given[row], output[row], scores[row], answers)
                np.testing.assert_allclose(found[row], expected, rtol=1e-5, err_msg=f"{count} {seed} {row}")
            changed += (found != scores).any()
    assert changed, "the setting does something"


def test_settings_at_their_defaults_add_nothing():
    scores = jnp.ones((2, 9))
    applied = Rules.of(Decoding(), [np.array([1])], np.array([4, 0]), (3,))
    assert rules.apply(scores, None, jnp.zeros((2, 4), jnp.int32), 0, applied, Decoding()) is scores
    assert applied.mask_unused_ids(scores) is scores
    assert len(jax.tree.leaves(applied)) == 2


DRAWS = {
    "typical": {"typical_p": 0.6},
    "epsilon": {"epsilon_cutoff": 0.08},
    "eta": {"eta_cutoff": 0.3},
    "all": {"top_k": 7, "top_p": 0.95, "min_p": 0.02, "typical_p": 0.8, "epsilon_cutoff": 0.05, "eta_cutoff": 0.1},
}


@pytest.mark.parametrize("settings", DRAWS.values(), ids=DRAWS)
def test_what_is_drawn_from_is_that_of_transformers(settings):
    rng = np.random.default_rng(1)
    config = transformers.GenerationConfig(do_sample=True, **({"top_k": 0} | settings | {"temperature": 1.2}))
    config._eos_token_tensor = None
    theirs = both("gpt2")[0]._get_logits_processor(config, input_ids_seq_length=1)
    left = 0
    for size in (0.2, 1, 3):
        logits = rng.normal(0, size, (5, 9)).astype(np.float32)
        expected = theirs(torch.zeros((5, 1), dtype=torch.long), torch.tensor(logits)).numpy()
        given = logits
        if "top_k" in settings:  # `choose` takes them before it warps.
            given = np.where(logits < np.sort(logits)[:, -settings["top_k"]][:, None], -np.inf, logits)
        np.testing.assert_allclose(
            apply_sampling_filters(jnp.array(given), Decoding(temperature=1.2, **settings)), expected, rtol=1e-5
        )
        left += np.isfinite(expected).sum()
    assert 15 <= left < 15 * 9


WORDS = ((START - 2,), (START - 3, START - 4), (5, 6))


def bundle(name):
    """Settings that all act on what a model writes, with two end tokens."""
    end = common_token(name)
    return {"no_repeat_ngram_size": 2, "min_new_tokens": 4, "forced_eos_token_ids": (9,), "eos_token_ids": (end, 9)}


@pytest.mark.slow
@pytest.mark.parametrize("name, beams", [("gpt2", 1), ("t5", 1), ("llama", 3), ("bart", 3)])
def test_several_settings_write_what_transformers_writes(name, beams):
    settings = bundle(name)
    if name in ("t5", "bart"):
        settings |= {"encoder_repetition_penalty": 1.4, "forced_bos_token_id": 8, "begin_suppress_tokens": (1, 2)}
    else:
        settings |= {"bad_words_ids": WORDS, "suppress_tokens": (1, 4), "encoder_no_repeat_ngram_size": 2}
    settings |= {"repetition_penalty": 1.2, "exponential_decay_length_penalty": (8, 1.1)}
    decoding = Decoding(max_new_tokens=NEW, num_beams=beams, **settings, renormalize_logits=beams > 1)
    ours = run(name, decoding)
    fields = generation_fields(decoding)
    assert_same(ours, run_theirs(name, fields.pop("eos_token_id"), fields.pop("max_new_tokens"), **fields))
    assert {tokens[-1] for tokens in ours} <= {9, common_token(name)}, "each ends, as it is made to"
    plain = run(name, Decoding(max_new_tokens=NEW, num_beams=beams), common_token(name))
    assert [tokens.tolist() for tokens in ours] != [tokens.tolist() for tokens in plain]


@pytest.mark.slow
@pytest.mark.parametrize("name, settings", [("gpt2", {"max_length": 15, "min_length": 14}), ("t5", {"max_length": 6})])
def test_lengths_count_the_prompt_of_a_decoder_and_the_start_token(name, settings):
    end = common_token(name)
    ours = run(name, Decoding(max_new_tokens=None, **settings), end)
    assert_same(ours, run_theirs(name, end, None, **settings))
    lengths = [len(tokens) for tokens in ours]
    assert max(lengths) == (14 if name == "gpt2" else 5)


def test_a_prompt_as_long_as_the_limit_is_refused():
    message = (
        "decoding.max_length=12: leaves no room for new tokens after 12 tokens; expected a larger value, or "
        "decoding.max_new_tokens"
    )
    with pytest.raises(InputError, match=message):
        run("gpt2", Decoding(max_new_tokens=None, max_length=12))


@pytest.mark.slow
def test_ids_without_a_piece_are_never_written():
    """In all ways to write; the first four tokens are likely enough to come where they may."""
    _, model, params = both("gpt2")
    plain = run("gpt2", Decoding(max_new_tokens=NEW))
    pieces = int(np.median([token for output in plain for token in output]))
    some = [prompt % pieces for prompt in prompts()]
    assert any((output >= pieces).any() for output in generate(model, params, some, Decoding(max_new_tokens=NEW)))
    for decoding in (
        Decoding(max_new_tokens=NEW),
        Decoding(max_new_tokens=NEW, num_beams=2),
        Decoding(max_new_tokens=NEW, temperature=2.0),
    ):
        outputs = generate(model, params, some, decoding, pieces=pieces)
        assert all((output < pieces).all() and len(output) == NEW for output in outputs)
    greedy = generate(model, params, some[:1], Decoding(max_new_tokens=NEW), pieces=pieces)[0]
    streamed = np.concatenate(list(stream(model, params, some[0], Decoding(max_new_tokens=NEW), pieces=pieces)))
    np.testing.assert_array_equal(streamed, greedy)


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            {"max_new_tokens": None},
            "decoding.max_new_tokens=None: expected a number of tokens, or a value for decoding.max_length",
        ),
        ({"min_new_tokens": -1}, "decoding.min_new_tokens=-1: expected at least 0"),
        ({"typical_p": 0.0}, "decoding.typical_p=0.0: expected above 0, at most 1"),
        ({"eta_cutoff": 1.0}, "decoding.eta_cutoff=1.0: expected 0 to 1, below 1"),
        ({"encoder_repetition_penalty": -1.0}, "decoding.encoder_repetition_penalty=-1.0: expected above 0"),
        ({"suppress_tokens": (3, -1)}, "decoding.suppress_tokens=(3, -1): expected ids of tokens, 0 or above"),
        ({"bad_words_ids": ((),)}, "decoding.bad_words_ids=((),): expected one id or more in each"),
        (
            {"forced_eos_token_ids": (3,), "suppress_tokens": (3, 4)},
            "decoding.forced_eos_token_ids=(3,): decoding.suppress_tokens bans all; expected at least one "
            "allowed token",
        ),
        ({"eos_token_ids": ()}, "decoding.eos_token_ids=(): expected one id or more, or None"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(settings, message):
    with pytest.raises(InputError) as error:
        Decoding(**settings)
    assert str(error.value) == message


def test_tokens_outside_of_the_vocabulary_are_refused():
    _, model, params = both("gpt2")
    for settings, field in (
        ({"forced_bos_token_id": VOCAB}, "forced_bos_token_id"),
        ({"eos_token_ids": (VOCAB,)}, "eos"),
    ):
        with pytest.raises(InputError, match=rf"decoding.{field}\w*=53: the model's vocabulary has 0 to 52"):
            generate(model, params, [[1]], Decoding(**settings))
