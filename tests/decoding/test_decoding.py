"""Decoding: token for token what transformers' `generate` gives; however batched, cached, streamed or sharded."""

import re

import jax
import numpy as np
import pytest
import scipy.stats
import torch
import transformers
from decoding_models import (
    LONGEST,
    NEW,
    VOCAB,
    WINDOW,
    assert_same,
    both,
    common_token,
    prompts,
    run,
    run_theirs,
    special,
)
from small_bert import applied

from jaxformer.decoding import generate as generating
from jaxformer.decoding import loops, steps
from jaxformer.decoding.choosing import apply_repetition_penalty, choose
from jaxformer.decoding.generate import CHUNK, bucket, generate, stream
from jaxformer.decoding.settings import Decoding
from jaxformer.errors import InputError
from jaxformer.layers.cache import Cache
from jaxformer.parallel.parameter_shards import state_shardings
from jaxformer.parallel.sharding import Mesh, make_mesh

MODELS = ("gpt2", "llama", "gemma3", "t5", "marian")


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_greedy_is_that_of_transformers(name):
    assert_same(run(name, Decoding(max_new_tokens=NEW)), run_theirs(name))
    ours = run(name, Decoding(max_new_tokens=NEW), common_token(name))
    assert_same(ours, run_theirs(name, common_token(name)))
    lengths = {len(output) for output in ours}
    assert min(lengths) < NEW and max(lengths) == NEW, "some end early and some do not"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_repetition_penalty_is_that_of_transformers(name):
    ours = run(name, Decoding(max_new_tokens=NEW, repetition_penalty=1.8))
    assert_same(ours, run_theirs(name, repetition_penalty=1.8))
    assert [output.tolist() for output in ours] != [
        output.tolist() for output in run(name, Decoding(max_new_tokens=NEW))
    ]


BEAMS = {
    "two": ({"num_beams": 2}, {"num_beams": 2}),
    "until full": ({"num_beams": 3, "early_stopping": True}, {"num_beams": 3, "early_stopping": True}),
    "short ones": (
        {"num_beams": 5, "early_stopping": "never", "length_penalty": -0.7, "repetition_penalty": 1.3},
        {"num_beams": 5, "early_stopping": "never", "length_penalty": -0.7, "repetition_penalty": 1.3},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, settings",
    [*((name, "two") for name in MODELS), *(("gpt2", settings) for settings in BEAMS if settings != "two")],
)
def test_beam_search_is_that_of_transformers(name, settings):
    ours, theirs = BEAMS[settings]
    for end in (None, common_token(name)):
        found = run(name, Decoding(max_new_tokens=NEW, **ours), end)
        assert_same(found, run_theirs(name, end, **theirs))
    assert any(len(output) < NEW for output in found)


@pytest.mark.slow
def test_local_blocks_cache_no_more_tokens_than_their_window(monkeypatch):
    made, room_for = [], Cache.room_for

    def recorded(cache, tokens):
        made.append(room_for(cache, tokens))
        return made[-1]

    monkeypatch.setattr(Cache, "room_for", recorded)
    run("gemma3", Decoding(max_new_tokens=NEW), some=[np.arange(20), np.arange(11)])
    first, second, third = (layer.keys.key.shape[2] for layer in made[0].layers)
    assert first == third == WINDOW and second >= 20 + NEW


@pytest.mark.slow
def test_a_beam_search_continues_while_a_better_hypothesis_is_possible():
    """As in transformers; these end tokens come so that one is found late."""
    likely, possible = (
        Decoding(max_new_tokens=NEW, num_beams=2, length_penalty=1.6, early_stopping=early)
        for early in (False, "never")
    )
    for end in (7, 24, 28):
        found = run("gpt2", possible, end)
        assert_same(found, run_theirs("gpt2", end, num_beams=2, length_penalty=1.6, early_stopping="never"))
        assert [output.tolist() for output in found] != [output.tolist() for output in run("gpt2", likely, end)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, settings",
    [*((name, {}) for name in MODELS), ("llama", {"num_beams": 3}), ("gpt2", {"repetition_penalty": 1.5})],
)
def test_a_ragged_batch_is_its_prompts_one_by_one(name, settings):
    decoding, end = Decoding(max_new_tokens=NEW, **settings), common_token(name)
    alone = [run(name, decoding, end, [prompt])[0] for prompt in prompts()]
    assert_same(run(name, decoding, end), alone)


@pytest.mark.parametrize("name, prefix", [("gpt2", False), ("llama", False), ("gpt2", True)])
def test_each_greedy_token_is_the_likeliest_of_the_full_forward_pass(name, prefix):
    """Also where the tokens of a prompt see each other both ways."""
    _, model, params = both(name)
    outputs = generate(model, params, prompts(), Decoding(max_new_tokens=NEW), prefix=prefix)
    tokens = np.zeros((len(outputs), 12 + NEW), np.int32)
    for row, (prompt, output) in enumerate(zip(prompts(), outputs, strict=True)):
        tokens[row, : len(prompt) + NEW] = np.concatenate([prompt, output])
    given = np.arange(tokens.shape[1]) < np.array(list(map(len, prompts())))[:, None]
    inputs = {"tokens": tokens, "prefix": given} if prefix else {"tokens": tokens}
    likeliest = np.asarray(jax.jit(model.apply)({"params": params}, **inputs).logits.argmax(-1))
    for prompt, output, expected in zip(prompts(), outputs, likeliest, strict=True):
        np.testing.assert_array_equal(output, expected[len(prompt) - 1 : len(prompt) - 1 + NEW])
    plain = run(name, Decoding(max_new_tokens=NEW))
    assert prefix == any(one.tolist() != other.tolist() for one, other in zip(outputs, plain, strict=True))


@pytest.mark.slow
def test_with_more_slots_than_it_needs_a_cache_changes_nothing():
    """In several calls, of prefixes too."""
    _, model, params = both("gpt2")
    tokens, first = prompts()[2][None], 5
    position_ids = np.arange(tokens.shape[1])[None]
    prefix = position_ids < 4
    expected = applied(model, params, tokens, prefix=prefix).logits
    cache = model.new_cache(1, 20)
    cache = cache.replace(segments=np.ones_like(cache.segments))
    one = {"tokens": tokens[:, :first], "position_ids": position_ids[:, :first], "prefix": prefix[:, :first]}
    begun = applied(model, params, **one, cache=cache)
    rest = applied(model, params, tokens[:, first:], position_ids=position_ids[:, first:], cache=begun.cache)
    logits = np.concatenate([begun.logits, rest.logits], axis=1)
    np.testing.assert_allclose(logits, expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, shape, beams",
    [*((name, Mesh(2, 2, 2), 1) for name in MODELS), ("gpt2", Mesh(8), 1), ("t5", Mesh(1, 2, 2), 2)],
    ids=str,
)
def test_on_a_mesh_it_is_the_same(name, shape, beams):
    _, model, params = both(name)
    tokens, mesh = np.zeros((1, 4), np.int32), make_mesh(shape)
    boxed = jax.eval_shape(model.init, jax.random.key(0), *[tokens] * (2 if name in ("t5", "marian") else 1))["params"]
    laid = jax.device_put(params, state_shardings(boxed, mesh))
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(laid)) == (shape == Mesh(8))
    decoding, end = Decoding(max_new_tokens=NEW, num_beams=beams), common_token(name)
    with jax.set_mesh(mesh):
        outputs = generate(model, laid, prompts(), decoding, **special(name, end))
    assert_same(outputs, run(name, decoding, end))


LOGITS = np.array([2.0, 1.5, 1.5, 0.3, 0.0, -0.2, -1.0, -3.0], np.float32)
WARPED = {
    "temperature": {"temperature": 0.7},
    "hot": {"temperature": 1.9},
    "top-k": {"temperature": 1.3, "top_k": 4},
    "top-p": {"temperature": 1.0, "top_p": 0.8},
    "min-p": {"temperature": 1.0, "min_p": 0.15},
    "all": {"temperature": 1.5, "top_k": 6, "top_p": 0.9, "min_p": 0.2},
}


@pytest.mark.parametrize("settings", WARPED.values(), ids=WARPED)
def test_draws_have_the_distribution_of_transformers(settings):
    config = transformers.GenerationConfig(do_sample=True, **({"top_k": 0} | settings))
    theirs = both("gpt2")[0]._get_logits_processor(config, input_ids_seq_length=1)
    expected = theirs(torch.zeros((1, 1), dtype=torch.long), torch.tensor(LOGITS)[None]).softmax(-1)[0].double().numpy()
    count = 20_000
    drawn = choose(np.tile(LOGITS, (count, 1)), Decoding(**settings), jax.random.key(5))
    counts = np.bincount(drawn, minlength=len(LOGITS))
    assert not counts[expected == 0].any(), "what is left out never comes"
    possible = expected > 0
    assert possible.all() == (set(settings) == {"temperature"})
    expected = count * expected[possible] / expected.sum()
    assert scipy.stats.chisquare(counts[possible], expected).pvalue > 0.001


def test_seen_tokens_are_weakened_as_in_transformers():
    seen = np.array([[True, False, True, True, False, True, False, False]])
    tokens = torch.tensor(np.flatnonzero(seen)[None])
    expected = transformers.RepetitionPenaltyLogitsProcessor(1.4)(tokens, torch.tensor(LOGITS)[None])
    np.testing.assert_allclose(apply_repetition_penalty(LOGITS[None], seen, 1.4), expected, rtol=1e-6)


@pytest.mark.slow
def test_draws_follow_the_seed_and_differ_from_step_to_step():
    decoding = Decoding(max_new_tokens=NEW, temperature=5.0)
    outputs = run("gpt2", decoding)
    assert_same(outputs, run("gpt2", decoding))
    assert [output.tolist() for output in outputs] != [
        output.tolist() for output in run("gpt2", Decoding(max_new_tokens=NEW, temperature=5.0, seed=1))
    ]
    assert len({tuple(output) for output in outputs}) == len(outputs)
    assert len(set(outputs[0])) > NEW // 3


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_stream_gives_the_same_tokens_in_pieces(temperature):
    _, model, params = both("llama")
    decoding, end = Decoding(max_new_tokens=NEW, temperature=temperature), common_token("llama")
    lengths = set()
    for prompt in prompts():
        pieces = list(stream(model, params, prompt, decoding, end))
        assert all(0 < len(piece) <= CHUNK for piece in pieces)
        np.testing.assert_array_equal(np.concatenate(pieces), run("llama", decoding, end, [prompt])[0])
        lengths.add(len(pieces))
    assert max(lengths) == 4, "the first token, then up to eight at a time"


def steps_taken(end):
    """Model calls that a batch takes."""
    _, model, params = both("gpt2")
    some = [generating.as_prompt(prompt, model, None) for prompt in prompts()]
    batch = generating._batch(model, some, Decoding(max_new_tokens=NEW), end)
    ready = steps.ready(model, params)
    progress = loops.begin(model, Decoding(), ready, batch, 24, jax.random.key(0))
    return int(loops.advance(model, Decoding(), ready, progress, NEW).count)


def test_the_loop_ends_with_the_last_row():
    outputs = run("gpt2", Decoding(max_new_tokens=NEW))
    assert steps_taken(None) == NEW
    ends = [
        max(list(output).index(token) + 1 if token in output else NEW for output in outputs) for token in range(VOCAB)
    ]
    assert min(ends) < NEW
    for token in (int(np.argmin(ends)), int(np.argmax(ends))):
        assert steps_taken(token) == ends[token]


@pytest.mark.slow
def test_outputs_end_with_the_positions():
    """The last position is used, and its prediction too."""
    _, model, params = both("gpt2")
    for length in (LONGEST, LONGEST - 1, LONGEST - 5):
        prompt = np.arange(length) % VOCAB
        for beams in (1, 2):
            output = generate(model, params, [prompt, prompt[:3]], Decoding(max_new_tokens=NEW, num_beams=beams))
            assert [len(tokens) for tokens in output] == [LONGEST - length + 1, NEW]
    expected = jax.jit(model.apply)({"params": params}, (np.arange(LONGEST) % VOCAB)[None]).logits[0, -1].argmax()
    assert generate(model, params, [np.arange(LONGEST) % VOCAB], Decoding(max_new_tokens=NEW))[0].tolist() == [expected]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_step_copies_no_cache_and_no_weights(name):
    """In the program of the loop, nothing of the size of a matrix or of a cache is moved or converted."""
    _, model, params = both(name)
    fields = special(name)
    some = [generating.as_prompt(prompt, model, fields.get("start")) for prompt in prompts()[:4]]
    batch = generating._batch(model, some, Decoding(max_new_tokens=16), fields.get("end"))
    ready = steps.ready(model, params)
    progress = loops.begin(model, Decoding(), ready, batch, 16, jax.random.key(0))
    program = loops.advance.lower(model, Decoding(), ready, progress, 16).compile().as_text()
    (body,) = re.findall(r"while\(.*body=%([\w.\-]+)", program)
    computations = {text.split(" ", 1)[0]: text for text in re.split(r"\n(?:ENTRY )?%(?=[\w.\-]+ \()", program)}
    reached, waiting = set(), [body]
    while waiting:
        text = computations[waiting.pop()]
        waiting += [name for name in re.findall(r"(?:calls|to_apply)=%([\w.\-]+)", text) if name not in reached]
        reached.update(waiting)
    text = computations[body] + "".join(computations[name] for name in reached)
    moved = re.findall(r"= \w+\[([\d,]+)\]\S* (?:copy|transpose|convert|slice|concatenate)\(", text)
    sizes = [int(np.prod(list(map(int, shape.split(","))))) for shape in moved]
    assert "dynamic-update-slice" in text and len(reached) > 10
    arrays = jax.tree.leaves((progress.cache.layers, progress.cache.memory, ready))
    large = {array.size for array in arrays if array.ndim > 1 and array.size > 200}
    assert not large.intersection(sizes)


def test_buckets_are_few_and_not_much_longer():
    sizes = [bucket(length) for length in range(1, 5000)]
    assert all(size >= length for length, size in enumerate(sizes, 1))
    assert all(size <= 1.5 * length for length, size in enumerate(sizes, 1) if length > 16)
    assert len(set(sizes)) < 20


BAD_PROMPTS = {
    "empty": ([[]], {}, "an empty prompt: expected at least one token"),
    "too long": ([[1] * 49], {}, "a prompt of 49 tokens: the model has positions for 48"),
    "outside": ([[1], [2, 53]], {}, "token 53 in a prompt: the model's vocabulary has 0 to 52"),
    "negative": ([[-1]], {}, "token -1 in a prompt: the model's vocabulary has 0 to 52"),
    "no such end": ([[1]], {"end": 53}, "end=53: the model's vocabulary has 0 to 52"),
}


@pytest.mark.parametrize("some, more, message", BAD_PROMPTS.values(), ids=BAD_PROMPTS)
def test_bad_prompts_are_refused_in_one_line(some, more, message):
    _, model, params = both("gpt2")
    with pytest.raises(InputError) as error:
        generate(model, params, some, **more)
    assert str(error.value) == message


def test_what_cannot_be_decoded_is_refused():
    _, model, params = both("gpt2")
    with pytest.raises(InputError, match=r"decoding\.num_beams=2: beam search cannot be streamed"):
        next(stream(model, params, [1], Decoding(num_beams=2)))
    _, answering, params = both("t5")
    with pytest.raises(InputError, match="start=None: an encoder–decoder needs a decoder start token"):
        generate(answering, params, [[1]])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"num_beams": 0}, "decoding.num_beams=0: expected at least 1"),
        ({"max_new_tokens": 0}, "decoding.max_new_tokens=0: expected at least 1"),
        ({"top_k": 0}, "decoding.top_k=0: expected at least 1"),
        ({"temperature": -0.1}, "decoding.temperature=-0.1: expected at least 0"),
        ({"temperature": float("nan")}, "decoding.temperature=nan: expected at least 0"),
        ({"seed": -1}, "decoding.seed=-1: expected at least 0"),
        ({"top_p": 0.0}, "decoding.top_p=0.0: expected above 0, at most 1"),
        ({"top_p": 1.1}, "decoding.top_p=1.1: expected above 0, at most 1"),
        ({"min_p": 1.5}, "decoding.min_p=1.5: expected 0 to 1"),
        ({"repetition_penalty": 0.0}, "decoding.repetition_penalty=0.0: expected above 0"),
        ({"early_stopping": "soon"}, "early_stopping='soon': expected True or False or never"),
        (
            {"num_beams": 2, "temperature": 0.5},
            "decoding.num_beams=2: beam search does not sample; expected decoding.temperature=0, not 0.5",
        ),
    ],
)
def test_impossible_settings_are_refused_in_one_line(settings, message):
    with pytest.raises(InputError) as error:
        Decoding(**settings)
    assert str(error.value) == message
