"""The pretraining objective: its terms, its report."""

import math

import jax
import numpy as np
import pytest
from reports import report as report_of
from small_bert import VOCAB, bert_params, lay_out, random_examples, small_bert

from jaxformer.metrics.means import Mean, merge
from jaxformer.objectives.masked_lm import MaskedLM

MODEL = small_bert()
PARAMS = bert_params(MODEL)
BATCH = lay_out([random_examples(0, (9, 5, 8)), random_examples(1, (12,)), []])
TRAINED = {"masked_lm_loss", "masked_lm_accuracy", "next_sentence_loss", "next_sentence_accuracy"}


def means(objective=MaskedLM(), batch=BATCH, key=None):
    """The means of a batch, on the host."""
    return merge([jax.jit(lambda batch: objective(MODEL, PARAMS, batch, key))(batch)])


@pytest.mark.slow
def test_the_terms_are_weighted_sums_over_predictions_and_pairs():
    output = jax.jit(MODEL.apply)({"params": PARAMS}, **MaskedLM().inputs(BATCH))
    actual = means()
    for name, logits, targets, weights in [
        ("masked_lm", output.logits, BATCH["targets"], BATCH["weights"]),
        ("next_sentence", output.next_sentence_logits, BATCH["next_sentence"], BATCH["next_sentence_weights"]),
    ]:
        losses = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits)), targets[..., None], -1)[..., 0]
        hits = np.asarray(logits).argmax(-1) == targets
        assert actual[f"{name}_loss"].sum == pytest.approx((weights * losses).sum(), abs=1e-4)
        assert actual[f"{name}_accuracy"].sum == pytest.approx((weights * hits).sum(), abs=1e-5)
        assert actual[f"{name}_loss"].weight == pytest.approx(weights.sum(), abs=1e-5)
        assert actual[f"{name}_accuracy"].weight == pytest.approx(weights.sum(), abs=1e-5)


def test_evaluation_counts_the_targets_and_training_does_not():
    assert set(means(key=jax.random.key(0))) == TRAINED
    evaluated = means()
    assert set(evaluated) == TRAINED | {"target_counts"}
    expected = np.bincount(BATCH["targets"].ravel(), BATCH["weights"].ravel(), VOCAB)
    np.testing.assert_allclose(evaluated["target_counts"].sum, expected, atol=1e-5)


def test_without_next_sentence_it_needs_and_gives_nothing_of_it():
    objective = MaskedLM(next_sentence=0)
    batch = {name: array for name, array in BATCH.items() if "next_sentence" not in name and name != "cls_positions"}
    alone = means(objective, batch)
    assert set(alone) == {"masked_lm_loss", "masked_lm_accuracy", "target_counts"}
    assert objective.loss_weights == {"masked_lm_loss": 1.0}
    assert alone["masked_lm_loss"].sum == pytest.approx(means()["masked_lm_loss"].sum, abs=1e-5)
    report = report_of(objective, MODEL, alone)
    assert report["loss"] == report["masked_lm_loss"]
    assert "next_sentence_loss" not in report


def test_the_next_sentence_loss_has_its_weight_in_the_loss():
    assert MaskedLM(0.3).loss_weights == {"masked_lm_loss": 1.0, "next_sentence_loss": 0.3}
    report = report_of(MaskedLM(0.3), MODEL, means())
    assert report["loss"] == pytest.approx(report["masked_lm_loss"] + 0.3 * report["next_sentence_loss"])


def test_the_report_has_perplexity_and_the_accuracy_of_guessing_the_commonest_target():
    counts = Mean(np.array([1.0, 6.0, 3.0]), 10.0)
    report = report_of(
        MaskedLM(),
        MODEL,
        {
            "masked_lm_loss": Mean(20.0, 10.0),
            "masked_lm_accuracy": Mean(4.0, 10.0),
            "next_sentence_loss": Mean(1.0, 2.0),
            "next_sentence_accuracy": Mean(1.5, 2.0),
            "target_counts": counts,
            "gradient_norm": Mean(3.0, 1.0),
        },
    )
    assert report == {
        "loss": 2.5,
        "masked_lm_loss": 2.0,
        "masked_lm_accuracy": 0.4,
        "masked_lm_perplexity": math.exp(2),
        "masked_lm_unigram_accuracy": 0.6,
        "next_sentence_loss": 0.5,
        "next_sentence_accuracy": 0.75,
    }


@pytest.mark.parametrize(("loss", "perplexity"), [(1e5, math.exp(700)), (math.nan, math.nan)])
def test_a_hopeless_loss_has_a_perplexity_and_no_overflow(loss, perplexity):
    nothing = Mean(0.0, 0.0)
    others = dict.fromkeys(("masked_lm_accuracy", "next_sentence_loss", "next_sentence_accuracy"), nothing)
    report = report_of(MaskedLM(), MODEL, {"masked_lm_loss": Mean(loss, 1.0)} | others)
    assert report["masked_lm_perplexity"] == pytest.approx(perplexity, nan_ok=True)


def test_dropout_follows_the_key():
    model = small_bert(dropout=0.3)
    loss = jax.jit(lambda key: MaskedLM()(model, PARAMS, BATCH, key)["masked_lm_loss"].sum)
    one, same, other = loss(jax.random.key(1)), loss(jax.random.key(1)), loss(jax.random.key(2))
    assert one == same
    assert one != other
