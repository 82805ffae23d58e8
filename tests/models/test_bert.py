"""BERT: what it may not see, what packing and padding may not change, and its defaults."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_bert import LENGTH, VOCAB, applied, assert_trees_close, bert_params, lay_out, random_examples, small_bert

from jaxformer.metrics.means import merge
from jaxformer.objectives.masked_lm import MaskedLM

MODEL, OBJECTIVE = small_bert(), MaskedLM()
PARAMS = bert_params(MODEL)
EXAMPLES = random_examples(0, (9, 5, 8))


@functools.partial(jax.jit, static_argnames=("model", "return_attention"))
def run(params, batch, model=MODEL, return_attention=False):
    """BERT's output at some positions, with the hidden vectors of all, and the logits."""
    inputs = OBJECTIVE.inputs(batch)
    output = model.apply({"params": params}, **inputs, return_attention=return_attention)
    everywhere = model.apply(
        {"params": params}, **{name: inputs[name] for name in inputs if name != "masked_positions"}
    )
    return output.replace(hidden=everywhere.hidden), output.logits


def example_outputs(output, logits, row, place, example, start):
    """The model's output for one example, which is example `place` of its row and begins there at `start`."""
    first = sum(len(other["targets"]) for other in EXAMPLES[:place]) if start else 0
    tokens, predictions = slice(start, start + len(example["tokens"])), slice(first, first + len(example["targets"]))
    return {
        "hidden": output.hidden[row, tokens],
        "logits": logits[row, predictions],
        "pooled": output.pooled[row, place if start else 0],
        "next_sentence": output.next_sentence_logits[row, place if start else 0],
    }


@pytest.mark.slow
def test_packed_examples_get_the_predictions_of_rows_of_their_own():
    packed, alone = run(PARAMS, lay_out([EXAMPLES])), run(PARAMS, lay_out([[example] for example in EXAMPLES]))
    start = 0
    for place, example in enumerate(EXAMPLES):
        together = example_outputs(*packed, 0, place, example, start)
        apart = example_outputs(*alone, place, place, example, 0)
        assert_trees_close(together, apart, 1e-5)
        start += len(example["tokens"])


@pytest.mark.slow
def test_packed_examples_add_up_to_the_sums_and_gradients_of_rows_of_their_own():
    @jax.jit
    def sums(params, batch):
        def loss(params):
            means = OBJECTIVE(MODEL, params, batch)
            return means["masked_lm_loss"].sum + means["next_sentence_loss"].sum, means

        (_, means), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return {name: {"sum": mean.sum, "weight": mean.weight} for name, mean in means.items()}, gradient

    means, gradient = sums(PARAMS, lay_out([EXAMPLES]))
    assert set(means) > {"masked_lm_loss", "masked_lm_accuracy", "next_sentence_loss", "next_sentence_accuracy"}
    expected_means, expected_gradient = sums(PARAMS, lay_out([[example] for example in EXAMPLES]))
    assert_trees_close(means, expected_means, 2e-5)
    assert_trees_close(gradient, expected_gradient, 3e-5)


@pytest.mark.slow
def test_a_segments_outputs_have_no_gradient_in_another_segments_embeddings():
    """Every token has an embedding of its own here, so a gradient in the table shows which tokens were seen."""
    batch = lay_out([EXAMPLES]) | {"tokens": np.arange(1, LENGTH + 1)[None]}

    @jax.jit
    def influence(params, tokens, predictions, pairs):
        def weighed(params):
            output, _ = run(params, batch)
            parts = (output.hidden, tokens), (output.prediction, predictions), (output.next_sentence_logits, pairs)
            return sum(jnp.sum(jnp.sin(values) * chosen[..., None]) for values, chosen in parts)

        return jax.grad(weighed)(params)["embeddings"]["token"]

    predicted = np.where(batch["weights"] > 0, np.take_along_axis(batch["segments"], batch["masked_positions"], 1), -1)
    for segment in range(4):
        pairs = (np.arange(3) + 1 == segment)[None]
        gradient = np.asarray(influence(PARAMS, batch["segments"] == segment, predicted == segment, pairs))
        inside = np.zeros(VOCAB, bool)
        inside[batch["tokens"][batch["segments"] == segment]] = True
        assert not gradient[~inside].any(), "exactly zero"
        assert np.abs(gradient[inside]).max(-1).all(), "every token of the segment counts"


@pytest.mark.slow
def test_predictions_at_some_positions_are_those_of_all_positions():
    """The last block leaves out what no head reads; nothing else may change by it, attention asked for or not."""
    batch = lay_out([EXAMPLES])
    everywhere = applied(MODEL, PARAMS, **(OBJECTIVE.inputs(batch) | {"masked_positions": None}))
    expected = np.take_along_axis(np.asarray(everywhere.logits), batch["masked_positions"][..., None], 1)
    for return_attention in (False, True):
        output, logits = run(PARAMS, batch, return_attention=return_attention)
        np.testing.assert_allclose(logits, expected, atol=1e-5)
        np.testing.assert_allclose(output.pooled, everywhere.pooled, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("more", [1, 8])
def test_padding_changes_nothing(more):
    short, long = (lay_out([[EXAMPLES[0]], [EXAMPLES[1]]], length) for length in (9, 9 + more))
    (output, logits), (padded, padded_logits) = run(PARAMS, short), run(PARAMS, long)
    real = short["segments"] > 0
    np.testing.assert_allclose(padded.hidden[:, :9][real], output.hidden[real], atol=1e-5)
    used = short["weights"] > 0
    np.testing.assert_allclose(padded_logits[used], logits[used], atol=1e-5)
    np.testing.assert_allclose(padded.pooled[:, 0], output.pooled[:, 0], atol=1e-5)


def test_the_content_of_padding_changes_no_bit():
    batch = lay_out([[EXAMPLES[0]], [EXAMPLES[1]]])
    padding = batch["segments"] == 0
    other = batch | {"tokens": np.where(padding, 77, batch["tokens"]), "token_types": batch["token_types"] | padding}
    (output, logits), (same, same_logits) = run(PARAMS, batch), run(PARAMS, other)
    np.testing.assert_array_equal(output.hidden[~padding], same.hidden[~padding])
    used = batch["weights"] > 0
    np.testing.assert_array_equal(logits[used], same_logits[used])
    assert (np.asarray(output.hidden)[padding] != np.asarray(same.hidden)[padding]).any(), "the padding did change"


@pytest.mark.slow
def test_defaults_are_one_segment_from_position_zero_of_type_zero_with_predictions_everywhere():
    tokens = np.random.default_rng(0).integers(0, VOCAB, (2, 7))
    zeros, count = np.zeros_like(tokens), np.tile(np.arange(7), (2, 1))
    named = {"segments": zeros + 1, "position_ids": count, "token_types": zeros}
    places = {"masked_positions": count, "cls_positions": zeros[:, :1]}
    bare, bare_logits = run(PARAMS, {"tokens": tokens})
    full, full_logits = run(PARAMS, {"tokens": tokens} | named | places)
    np.testing.assert_allclose(bare.hidden, full.hidden, atol=1e-6)
    np.testing.assert_allclose(bare_logits, full_logits, atol=1e-6)
    np.testing.assert_allclose(bare.next_sentence_logits, full.next_sentence_logits, atol=1e-6)
    assert bare_logits.shape == (2, 7, VOCAB)
    assert bare.pooled.shape == (2, 1, 16)
    assert bare.attention is None


def test_attention_weights_on_request():
    batch = lay_out([EXAMPLES])
    output, _ = run(PARAMS, batch, return_attention=True)
    assert output.attention.shape == (2, 1, 2, LENGTH, LENGTH)
    np.testing.assert_allclose(output.attention.sum(-1), 1, atol=1e-6)
    apart = batch["segments"][:, :, None] != batch["segments"][:, None, :]
    assert not np.asarray(output.attention)[:, 0, :, apart[0]].any()


def test_the_decoder_is_the_token_table():
    table = PARAMS["embeddings"]["token"].at[42].add(1)
    changed = PARAMS | {"embeddings": PARAMS["embeddings"] | {"token": table}}
    batch = {"tokens": np.array([[1, 2, 3]])}  # 42 is not among them: only its logit moves.
    (_, logits), (_, other) = run(PARAMS, batch), run(changed, batch)
    moved = np.abs(np.asarray(logits) - other).max((0, 1)) > 1e-6
    np.testing.assert_array_equal(np.flatnonzero(moved), [42])


@pytest.mark.slow
def test_dropout_falls_on_embeddings_layers_and_attention():
    tokens = np.arange(1, 9)[None]

    def spread(**fields):
        model = small_bert(**fields)

        @jax.jit
        def hidden(key):
            return model.apply({"params": PARAMS}, tokens, train=True, rngs={"dropout": key}).hidden

        return np.abs(hidden(jax.random.key(0)) - hidden(jax.random.key(1))).max()

    assert spread() == 0
    assert spread(dropout=0.3) > 0.01
    assert spread(attention_dropout=0.3) > 0.01


@pytest.mark.slow
def test_bfloat16_is_close_to_float32_with_float32_parameters_and_logits():
    model, batch = small_bert(dtype="bfloat16"), lay_out([EXAMPLES])
    abstract = jax.eval_shape(model.init, jax.random.key(0), batch["tokens"])
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract)} == {jnp.dtype("float32")}
    (output, logits), (exact, exact_logits) = run(PARAMS, batch, model), run(PARAMS, batch)
    assert output.hidden.dtype == output.prediction.dtype == jnp.bfloat16
    assert logits.dtype == output.next_sentence_logits.dtype == jnp.float32
    assert 0 < np.abs(np.float32(output.hidden) - exact.hidden).max() < 0.15
    used = batch["weights"] > 0
    assert 0 < np.abs(logits - exact_logits)[used].max() < 0.3
    loss, expected = (
        float(merge([jax.jit(lambda: OBJECTIVE(bert, PARAMS, batch))()])["masked_lm_loss"].value)  # noqa: B023
        for bert in (model, MODEL)
    )
    assert loss == pytest.approx(expected, rel=0.01)
