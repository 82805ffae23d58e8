"""GPT, LLaMA and Gemma: what a token may see, what packing, padding and caching may not change, and their defaults."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_bert import applied, noisy_params, small_transformer

from jaxformer.layers.attention import Attention
from jaxformer.layers.masks import Mask
from jaxformer.layers.mlp import GatedMlp
from jaxformer.layers.norms import HeadRMSNorm, RMSNorm
from jaxformer.layers.positions import RelativePositions, Rotary
from jaxformer.layers.transformer import Transformer, Variant
from jaxformer.models.gpt import Gpt

VOCAB, LENGTH = 40, 14
HEADS = {"kv_heads": 2, "bias": False, "head_norm": HeadRMSNorm(zero_centered=True)}
LOCAL = Variant(Attention(window=3, **HEADS), position_embedding=Rotary(100.0))
GEMMA = {"mlp": GatedMlp(24, "gelu_tanh"), "norm": RMSNorm(zero_centered=True), "attention": Attention(**HEADS)}
GEMMA |= {"heads": 4, "norm_position": "both", "period": (LOCAL, Variant())}
LLAMA = {"mlp": GatedMlp(24), "norm": RMSNorm(), "attention": Attention(kv_heads=2, bias=False), "heads": 4}


def small_gpt(tie_embeddings=True, **fields) -> Gpt:
    return Gpt(
        small_transformer(**({"norm_position": "before"} | fields)),
        vocab=VOCAB,
        max_length=LENGTH,
        tie_embeddings=tie_embeddings,
    )


MODELS = {
    "gpt": small_gpt(),
    "llama": small_gpt(tie_embeddings=False, position_embedding=Rotary(100.0), **LLAMA),
    "relative": small_gpt(position_embedding=RelativePositions(8, 12, bidirectional=False)),
    "gemma": small_gpt(position_embedding=Rotary(1000.0), **GEMMA).copy(scale_embeddings=True),
}
each_model = pytest.mark.parametrize("name", MODELS)

# A row of three documents and padding. Every token of it is another, so that each has an embedding of its own.
TOKENS = np.random.default_rng(0).permutation(VOCAB)[None, :LENGTH]
LENGTHS = (5, 3, 4)
SEGMENTS = np.repeat([1, 2, 3, 0], [*LENGTHS, 2])[None]
POSITIONS = np.concatenate([np.arange(count) for count in (*LENGTHS, 2)])[None]
PREFIX = (POSITIONS < 2) & (SEGMENTS > 0)

PARAMS = {name: noisy_params(model, TOKENS) for name, model in MODELS.items()}
# Zero-centred norms store their scales less 1.
PARAMS["gemma"] = jax.tree_util.tree_map_with_path(lambda path, leaf: leaf - (path[-1].key == "scale"), PARAMS["gemma"])


@functools.partial(jax.jit, static_argnums=0)
def run(name, tokens, *inputs, **options):
    output = MODELS[name].apply({"params": PARAMS[name]}, tokens, *inputs, **options)
    return output, output.logits


@functools.partial(jax.jit, static_argnums=0)
def influence(name, segments=None, prefix=None):
    """How strongly each token acts on each output, [t, t]: gradients by the embeddings."""

    def sums(table):
        params = PARAMS[name]
        params = params | {"embeddings": params["embeddings"] | {"token": table}}
        output = MODELS[name].apply({"params": params}, TOKENS, segments, prefix=prefix)
        return jnp.sin(output.hidden[0]).sum(-1)

    gradients = jax.jacrev(sums)(PARAMS[name]["embeddings"]["token"])
    return jnp.abs(gradients[:, TOKENS[0]]).max(-1)


@pytest.mark.slow
@each_model
def test_an_output_depends_on_its_own_token_and_on_those_before_and_on_no_other(name):
    np.testing.assert_array_equal(influence(name) > 0, np.tri(LENGTH, dtype=bool))


@pytest.mark.slow
@each_model
def test_in_a_packed_row_it_depends_on_its_own_document_alone(name):
    expected = Mask.causal(LENGTH, SEGMENTS).dense()[0, 0]
    np.testing.assert_array_equal(influence(name, SEGMENTS) > 0, expected)


@pytest.mark.slow
@each_model
def test_a_prefix_is_seen_both_ways(name):
    found = np.asarray(influence(name, SEGMENTS, PREFIX) > 0)
    np.testing.assert_array_equal(found, Mask.prefix(PREFIX, SEGMENTS).dense()[0, 0])
    assert found[0, 1] and not found[0, 2] and not found[2, 3], "both ways in the prefix, and nothing behind it"


def apart(array):
    """The documents of a packed row, each in a row of its own."""
    rows = np.zeros((len(LENGTHS), max(LENGTHS), *array.shape[2:]), array.dtype)
    for row, (start, count) in enumerate(zip(np.cumsum((0, *LENGTHS)), LENGTHS, strict=False)):
        rows[row, :count] = array[0, start : start + count]
    return rows


@each_model
@pytest.mark.parametrize("prefix", [None, PREFIX], ids=["causal", "prefix"])
def test_packed_documents_get_the_outputs_of_rows_of_their_own(name, prefix):
    _, together = run(name, TOKENS, SEGMENTS, POSITIONS, prefix)
    segments = np.minimum(apart(SEGMENTS), 1)
    _, alone = run(name, apart(TOKENS), segments, None, None if prefix is None else apart(prefix))
    np.testing.assert_allclose(apart(np.asarray(together))[segments > 0], alone[segments > 0], atol=1e-5)


@each_model
def test_the_content_of_padding_changes_no_bit(name):
    others = np.where(SEGMENTS == 0, 1 + TOKENS[:, :1] % (VOCAB - 1), TOKENS)
    output, same = (run(name, tokens, SEGMENTS, POSITIONS)[0].hidden for tokens in (TOKENS, others))
    np.testing.assert_array_equal(output[SEGMENTS > 0], same[SEGMENTS > 0])
    assert (np.asarray(output) != np.asarray(same)).any(), "the padding did change"


@each_model
def test_defaults_are_one_segment_from_position_zero_without_a_prefix(name):
    ones, nothing = np.ones_like(TOKENS), np.zeros_like(TOKENS, bool)
    _, bare = run(name, TOKENS)
    _, full = run(name, TOKENS, ones, np.arange(LENGTH)[None], nothing)
    np.testing.assert_allclose(bare, full, atol=1e-6)
    assert bare.shape == (1, LENGTH, VOCAB)


@pytest.mark.slow
@each_model
def test_decoding_with_a_cache_is_the_full_forward_pass(name):
    model, tokens = MODELS[name], np.concatenate([TOKENS, TOKENS[:, ::-1]])
    _, expected = run(name, tokens)
    cache = model.new_cache(2, LENGTH + 3)
    cache = cache.replace(segments=jnp.ones_like(cache.segments))
    step = jax.jit(
        lambda params, tokens, position_ids, cache: model.apply(
            {"params": params}, tokens, position_ids=position_ids, cache=cache
        )
    )
    start = 0
    for count in (1, 1, 6, 6):
        some = slice(start, start + count)
        position_ids = np.tile(np.arange(LENGTH)[some], (2, 1))
        output = step(PARAMS[name], tokens[:, some], position_ids, cache)
        np.testing.assert_allclose(output.logits, expected[:, some], atol=1e-5)
        cache, start = output.cache, start + count
        assert int(cache.used) == start


def test_attention_weights_on_request_are_those_of_the_mask():
    output, _ = run("llama", TOKENS, SEGMENTS)
    assert output.attention is None
    model = MODELS["llama"]
    run_with = jax.jit(functools.partial(model.apply, return_attention=True))
    weights = run_with({"params": PARAMS["llama"]}, TOKENS, SEGMENTS).attention
    assert weights.shape == (2, 1, 4, LENGTH, LENGTH)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-6)
    seen = np.broadcast_to(Mask.causal(LENGTH, SEGMENTS).dense(), weights.shape)
    assert not np.asarray(weights)[~seen].any()


@pytest.mark.slow
def test_the_decoder_is_the_token_table_where_they_are_tied_and_a_table_of_its_own_elsewhere():
    tokens = np.array([[1, 2, 3]])  # 30 is not among them: only its logit can move.
    for name, path in (("gpt", ("embeddings", "token")), ("llama", ("head",))):
        params = PARAMS[name]
        changed = jax.tree.map(lambda leaf: leaf, params)
        table = changed
        for key in path[:-1]:
            table = table[key]
        table[path[-1]] = table[path[-1]].at[30].add(1)
        run = jax.jit(lambda params: MODELS[name].apply({"params": params}, tokens).logits)  # noqa: B023
        logits, other = run(params), run(changed)
        moved = np.abs(np.asarray(logits) - other).max((0, 1)) > 1e-6
        np.testing.assert_array_equal(np.flatnonzero(moved), [30])
    assert "head" not in PARAMS["gpt"]


def test_learned_positions_are_there_unless_the_stack_has_a_scheme():
    assert {name: "position" in PARAMS[name]["embeddings"] for name in MODELS} == {
        "gpt": True,
        "llama": False,
        "relative": False,
        "gemma": False,
    }


@pytest.mark.slow
def test_scaled_embeddings_are_larger_by_the_square_root_of_the_width():
    model = small_gpt(position_embedding=Rotary(100.0))
    params = PARAMS["gpt"] | {"embeddings": {"token": PARAMS["gpt"]["embeddings"]["token"]}}
    scaled = params | {
        "embeddings": {"token": params["embeddings"]["token"] / np.float32(model.transformer.width**0.5)}
    }
    expected = applied(model, params, TOKENS).hidden
    actual = applied(model.copy(scale_embeddings=True), scaled, TOKENS).hidden
    np.testing.assert_allclose(actual, expected, atol=1e-6)
    assert np.abs(applied(model, scaled, TOKENS).hidden - expected).max() > 0.1


@pytest.mark.slow
def test_dropout_falls_on_embeddings_layers_and_attention():
    def spread(**fields):
        model = small_gpt(**fields)

        @jax.jit
        def hidden(key):
            return model.apply({"params": PARAMS["gpt"]}, TOKENS, train=True, rngs={"dropout": key}).hidden

        return np.abs(hidden(jax.random.key(0)) - hidden(jax.random.key(1))).max()

    assert spread() == 0
    assert spread(dropout=0.3) > 0.01
    assert spread(attention_dropout=0.3) > 0.01


@each_model
def test_bfloat16_is_close_to_float32_with_float32_parameters_and_logits(name):
    exact, exact_logits = run(name, TOKENS, SEGMENTS, POSITIONS)
    model = MODELS[name].copy(transformer=MODELS[name].transformer.copy(dtype="bfloat16", parent=None))
    abstract = jax.eval_shape(model.init, jax.random.key(0), TOKENS)
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract)} == {jnp.dtype("float32")}
    output = jax.jit(model.apply)({"params": PARAMS[name]}, TOKENS, SEGMENTS, POSITIONS)
    assert output.hidden.dtype == jnp.bfloat16
    assert output.logits.dtype == jnp.float32
    assert 0 < np.abs(np.float32(output.hidden) - exact.hidden).max() < 0.15
    assert 0 < np.abs(output.logits - exact_logits).max() < 0.3


def test_more_tokens_than_positions_are_refused():
    with pytest.raises(ValueError, match="15 tokens: the model has positions for 14"):
        run("llama", np.zeros((1, LENGTH + 1), int))


@pytest.mark.slow
def test_by_default_it_is_gpt2_and_llama_is_a_few_fields():
    def parameters(model):
        shapes = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 2), int)))
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    assert parameters(Gpt()) == 124_439_808
    llama = Transformer(
        4096, 32, 32, attention=Attention(bias=False), mlp=GatedMlp(11008), norm=RMSNorm(), position_embedding=Rotary()
    )
    assert parameters(Gpt(llama, vocab=32_000, max_length=4096, tie_embeddings=False)) == 6_738_415_616
