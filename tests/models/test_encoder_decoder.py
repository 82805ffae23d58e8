"""Encoder–decoders and T5: what an output may see, what packing, padding and caching may not change, their defaults."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_bert import noisy_params, small_transformer

from jaxformer.errors import InputError
from jaxformer.layers.masks import Mask
from jaxformer.layers.positions import RelativePositions
from jaxformer.layers.transformer import Transformer
from jaxformer.models.encoder_decoder import EncoderDecoder
from jaxformer.models.t5 import T5, t5_stack

VOCAB, LONGEST, WIDTH = 60, 16, 16
QUIET = {"dropout": 0.0, "attention_dropout": 0.0, "dtype": "float32"}


def small_t5(**fields):
    """A T5 with few buckets, so that short rows use several."""

    def stack(bidirectional):
        relative = RelativePositions(8, 10, bidirectional)
        return t5_stack(16, 2, 2, 24, 5, bidirectional=bidirectional, **QUIET | fields).copy(
            position_embedding=relative
        )

    return T5(stack(True), stack(False), vocab=VOCAB, max_length=LONGEST)


SIZES = {"vocab": VOCAB, "max_length": LONGEST}
MODELS = {
    "vaswani": EncoderDecoder(small_transformer(), small_transformer(depth=1), **SIZES, head_bias=True),
    "learned": EncoderDecoder(
        *[small_transformer(norm_position="before")] * 2,
        **SIZES,
        position_embedding="learned",
        scale_embeddings=False,
        tie_embeddings=False,
    ),
    "t5": small_t5(),
}
each_model = pytest.mark.parametrize("name", MODELS)

# Three pairs in a row, and padding. Every token is another, so that each has an embedding of its own.
INPUTS, TOKENS = np.split(np.random.default_rng(0).permutation(VOCAB)[None, :26], [14], axis=1)
INPUT_LENGTHS, LENGTHS = (4, 6, 2), (3, 2, 5)


def segments_of(lengths, padding):
    return np.repeat([1, 2, 3, 0], [*lengths, padding])[None]


def positions_of(lengths, padding):
    return np.concatenate([np.arange(count) for count in (*lengths, padding)])[None]


INPUT_SEGMENTS, SEGMENTS = segments_of(INPUT_LENGTHS, 2), segments_of(LENGTHS, 2)
INPUT_POSITIONS, POSITIONS = positions_of(INPUT_LENGTHS, 2), positions_of(LENGTHS, 2)
PACKED = {
    "inputs": INPUTS,
    "tokens": TOKENS,
    "input_segments": INPUT_SEGMENTS,
    "segments": SEGMENTS,
    "input_position_ids": INPUT_POSITIONS,
    "position_ids": POSITIONS,
}
PARAMS = {name: noisy_params(model, INPUTS, TOKENS) for name, model in MODELS.items()}


@functools.partial(jax.jit, static_argnums=0)
def run(name, batch):
    output = MODELS[name].apply({"params": PARAMS[name]}, **batch)
    return output, output.logits


@functools.partial(jax.jit, static_argnums=0)
def influence(name, batch):
    """How strongly each token acts on each output, [t, v]: gradients by the embeddings."""

    def sums(table):
        params = PARAMS[name] | {"embeddings": PARAMS[name]["embeddings"] | {"token": table}}
        output = MODELS[name].apply({"params": params}, **batch)
        # T5 ends with a norm, which a plain sum would hardly depend on.
        return jnp.sin(output.hidden[0]).sum(-1)

    return jnp.abs(jax.jacrev(sums)(PARAMS[name]["embeddings"]["token"])).max(-1)


@pytest.mark.slow
@each_model
def test_an_output_depends_on_all_inputs_and_on_no_later_token(name):
    found = np.asarray(influence(name, {"inputs": INPUTS, "tokens": TOKENS}) > 0)
    np.testing.assert_array_equal(found[:, TOKENS[0]], np.tri(12, dtype=bool))
    assert found[:, INPUTS[0]].all()
    assert found.sum() == 12 * 13 / 2 + 12 * 14


@pytest.mark.slow
@each_model
def test_in_a_packed_row_it_depends_on_its_own_pair_alone(name):
    found = np.asarray(influence(name, PACKED) > 0)
    np.testing.assert_array_equal(found[:, TOKENS[0]], Mask.causal(12, SEGMENTS).dense()[0, 0])
    seen = Mask.of_segments(SEGMENTS, INPUT_SEGMENTS).dense()[0, 0]
    np.testing.assert_array_equal(found[:, INPUTS[0]], seen)


def apart(array, lengths):
    """The pairs of a packed row, each in a row of its own."""
    rows = np.zeros((3, max(lengths), *array.shape[2:]), array.dtype)
    for row, (start, count) in enumerate(zip(np.cumsum((0, *lengths)), lengths, strict=False)):
        rows[row, :count] = array[0, start : start + count]
    return rows


@pytest.mark.slow
@each_model
def test_packed_pairs_get_the_outputs_of_rows_of_their_own(name):
    batch = {
        "inputs": apart(INPUTS, INPUT_LENGTHS),
        "tokens": apart(TOKENS, LENGTHS),
        "input_segments": np.minimum(apart(INPUT_SEGMENTS, INPUT_LENGTHS), 1),
        "segments": np.minimum(apart(SEGMENTS, LENGTHS), 1),
    }
    together, alone = run(name, PACKED)[1], run(name, batch)[1]
    real = batch["segments"] > 0
    np.testing.assert_allclose(apart(np.asarray(together), LENGTHS)[real], alone[real], atol=1e-5)


@each_model
def test_the_content_of_padding_changes_no_bit(name):
    batch = PACKED | {
        "inputs": np.where(INPUT_SEGMENTS == 0, INPUTS[:, ::-1], INPUTS),
        "tokens": np.where(SEGMENTS == 0, TOKENS[:, ::-1], TOKENS),
    }
    (output, logits), (same, same_logits) = run(name, PACKED), run(name, batch)
    np.testing.assert_array_equal(logits[SEGMENTS > 0], same_logits[SEGMENTS > 0])
    assert (np.asarray(output.encoded) != np.asarray(same.encoded)).any(), "the padding did change"
    np.testing.assert_array_equal(output.encoded[INPUT_SEGMENTS > 0], same.encoded[INPUT_SEGMENTS > 0])


@each_model
def test_defaults_are_one_segment_from_position_zero(name):
    _, bare = run(name, {"inputs": INPUTS, "tokens": TOKENS})
    ones = {"input_segments": np.ones_like(INPUTS), "segments": np.ones_like(TOKENS)}
    counted = {"input_position_ids": np.arange(14)[None], "position_ids": np.arange(12)[None]}
    _, full = run(name, {"inputs": INPUTS, "tokens": TOKENS} | ones | counted)
    np.testing.assert_allclose(bare, full, atol=1e-6)
    assert bare.shape == (1, 12, VOCAB)


@pytest.mark.slow
def test_outputs_without_segments_see_all_inputs_but_padding():
    some = {"input_segments": np.minimum(INPUT_SEGMENTS, 1)}
    _, padded = run("learned", {"inputs": INPUTS, "tokens": TOKENS} | some)
    _, short = run("learned", {"inputs": INPUTS[:, :12], "tokens": TOKENS})
    np.testing.assert_allclose(padded, short, atol=1e-5)


@pytest.mark.slow
@each_model
def test_decoding_with_a_cache_is_the_full_forward_pass(name):
    model, params = MODELS[name], {"params": PARAMS[name]}
    inputs, tokens = (np.concatenate([array, array[:, ::-1]]) for array in (INPUTS, TOKENS))
    input_segments = np.array([[1] * 14, [1] * 9 + [0] * 5])
    output, expected = run(name, {"inputs": inputs, "tokens": tokens, "input_segments": input_segments})
    encoded = jax.jit(functools.partial(model.apply, method="encode"))(params, inputs, input_segments)
    np.testing.assert_allclose(encoded, output.encoded, atol=1e-6)
    cache = model.new_cache(2, 15)
    cache = cache.replace(segments=jnp.ones_like(cache.segments), memory_segments=input_segments)
    step = jax.jit(functools.partial(model.apply, method="decode"))
    start = 0
    for count in (1, 1, 5, 5):
        position_ids = np.tile(np.arange(start, start + count), (2, 1))
        output = step(params, tokens[:, start : start + count], position_ids, cache, None if start else encoded)
        np.testing.assert_allclose(output.logits, expected[:, start : start + count], atol=1e-5)
        cache, start = output.cache, start + count
        assert int(cache.used) == start


@pytest.mark.slow
def test_the_stacks_have_weights_of_their_own_though_one_was_given_twice():
    params = jax.tree.map(jnp.shape, PARAMS["learned"])
    encoder, decoder = params["encoder"], params["decoder"]
    assert encoder["norm"] == decoder["norm"]
    cross = {name: decoder["blocks"].pop(name) for name in ("cross_attention", "cross_attention_norm")}
    assert cross["cross_attention"] == decoder["blocks"]["attention"]
    assert encoder["blocks"] == decoder["blocks"]
    boxed = jax.jit(MODELS["learned"].init)(jax.random.key(0), INPUTS, TOKENS)["params"]
    one, other = (boxed[side]["blocks"]["mlp"]["up"]["kernel"].value for side in ("encoder", "decoder"))
    assert np.abs(one - other).max() > 0.01, "and begin different"


@pytest.mark.slow
def test_the_head_is_the_token_table_unless_it_has_its_own_and_t5_makes_it_smaller():
    for name, (model, params) in {name: (MODELS[name], PARAMS[name]) for name in MODELS}.items():
        assert ("head" in params) == (not model.tie_embeddings)
        output, logits = run(name, PACKED)
        table = params["embeddings"]["token"] if model.tie_embeddings else params["head"]
        np.testing.assert_allclose(output.hidden @ table.T + params.get("bias", 0), logits, atol=1e-5)
    assert set(PARAMS["vaswani"]) == {"encoder", "decoder", "embeddings", "bias"}
    # The same weights as of T5, but untied: its output is as large as the norm leaves it.
    untied = MODELS["t5"].copy(tie_embeddings=False)
    params = PARAMS["t5"] | {"head": PARAMS["t5"]["embeddings"]["token"]}
    whole = jax.jit(untied.apply)({"params": params}, **PACKED).hidden
    np.testing.assert_allclose(run("t5", PACKED)[0].hidden, whole / WIDTH**0.5, atol=1e-6)


def test_token_embeddings_begin_so_that_they_enter_the_stacks_at_the_size_of_one():
    for name in ("vaswani", "t5"):
        model = MODELS[name].copy(vocab=3000)
        begin = jax.jit(lambda key: model.init(key, INPUTS, TOKENS)["params"]["embeddings"]["token"])  # noqa: B023
        scale = WIDTH**0.5 if model.scale_embeddings else 1
        # Cutting at two deviations takes an eighth.
        assert float(begin(jax.random.key(0)).value.std()) * scale == pytest.approx(0.8796, rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vaswani", "t5"])
def test_dropout_acts_in_training(name):
    dropping = {"dropout": 0.3, "attention_dropout": 0.3}
    if name == "t5":
        model = small_t5(**dropping)
    else:
        stacks = (small_transformer(**dropping), small_transformer(depth=1, **dropping))
        model = EncoderDecoder(*stacks, **SIZES, head_bias=True)

    @jax.jit
    def outputs(key):
        output = model.apply({"params": PARAMS[name]}, INPUTS, TOKENS, train=True, rngs={"dropout": key})
        return output.encoded, output.hidden

    for one, other in zip(outputs(jax.random.key(0)), outputs(jax.random.key(1)), strict=True):
        assert np.abs(one - other).max() > 0.01
        # T5 drops some of what comes out of the last norm, too.
        assert (0.2 < (np.asarray(one) == 0).mean() < 0.4) == (name == "t5")


def test_what_cannot_be_is_refused():
    with pytest.raises(
        InputError, match=r"model\.decoder\.width=32: the embeddings are shared; expected the encoder's"
    ):
        EncoderDecoder(small_transformer(), small_transformer(width=32))
    for which in ("inputs", "tokens"):
        with pytest.raises(ValueError, match="17 tokens: the model has positions for 16"):
            run("vaswani", {"inputs": INPUTS, "tokens": TOKENS} | {which: np.zeros((1, 17), int)})


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        # The base model of Vaswani et al. 2017: embeddings, and six blocks a side.
        (EncoderDecoder(), 37_000 * 512 + 6 * (3_152_384 + 4_204_032)),
        (T5(), 222_903_552),
        (
            T5(
                t5_stack(768, 12, 12, 2048, gated=True),
                t5_stack(768, 12, 12, 2048, gated=True, bidirectional=False),
                tie_embeddings=False,
            ),
            247_577_856,
        ),
    ],
    ids=["base", "t5-base", "t5-1.1-base"],
)
def test_defaults_have_as_many_parameters_as_the_published_models(model, parameters):
    tokens = np.zeros((1, 2), int)
    shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), tokens, tokens))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters


def test_a_default_transformer_serves_as_either_stack():
    model = EncoderDecoder(Transformer(16, 1, 2), Transformer(16, 1, 2), **SIZES)
    assert "norm" in noisy_params(model, INPUTS, TOKENS)["decoder"]
