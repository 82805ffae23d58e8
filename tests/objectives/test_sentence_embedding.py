"""The contrastive loss: its formula, the same packed or on any mesh, with the texts of the whole batch against it."""

import dataclasses

import jax
import numpy as np
import pytest
from reports import report
from small_bert import bert_params, small_bert

from jaxformer.data.pipeline import lanes
from jaxformer.data.tasks.pairs import TextPairs
from jaxformer.errors import InputError
from jaxformer.layers.experts import ExpertMlp
from jaxformer.metrics.means import auxiliary_name
from jaxformer.models.gpt import Gpt
from jaxformer.objectives.sentence_embedding import SentenceEmbedding
from jaxformer.parallel import sharding
from jaxformer.parallel.sharding import Mesh

MODEL = dataclasses.replace(small_bert(depth=1), prediction_heads=("pooler",))
PARAMS = bert_params(MODEL)
OBJECTIVE = SentenceEmbedding(temperature=0.3)
RNG = np.random.default_rng(0)
PAIRS = [tuple(RNG.integers(5, 96, size).astype(np.int32) for size in RNG.integers(3, 8, 2)) for _ in range(8)]


def batch_of(rows, length=24, examples_per_row=1):
    task = TextPairs(length, examples_per_row=examples_per_row)
    batch = lanes.empty_batch(len(rows), task.row)
    for number, row in enumerate(rows):
        some = [dict(zip(("inputs", "tokens"), PAIRS[pair], strict=True)) | {"weights": np.ones(1)} for pair in row]
        lanes.write_row(batch, number, some, task.row)
    return batch


apply = jax.jit(lambda tokens: MODEL.apply({"params": PARAMS}, tokens))


def measured(batch, objective=OBJECTIVE):
    """The metrics of a batch."""
    return report(objective, MODEL, jax.jit(lambda batch: objective(MODEL, PARAMS, batch))(batch))


def vector(tokens, pooling):
    output = apply(tokens[None])
    found = {"mean": output.hidden[0].mean(0), "first": output.hidden[0, 0], "pooler": output.pooled[0, 0]}[pooling]
    return np.asarray(found, np.float64) / np.linalg.norm(found)


@pytest.mark.parametrize("pooling", ["mean", "first", "pooler"])
def test_the_loss_is_its_formula(pooling):
    """−log of the softmax over all second texts, of cosines divided by the temperature, at the right one."""
    firsts, seconds = (np.array([vector(pair[side], pooling) for pair in PAIRS[:4]]) for side in (0, 1))
    scores = np.exp(firsts @ seconds.T / 0.3)
    expected = -np.log(np.diag(scores) / scores.sum(1)).mean()
    objective = dataclasses.replace(OBJECTIVE, pooling=pooling)
    found = measured(batch_of([[0], [1], [2], [3]]), objective)
    assert found["loss"] == pytest.approx(expected, abs=1e-5)
    assert found["accuracy"] == (scores.argmax(1) == np.arange(4)).mean()


@pytest.mark.slow
def test_packing_padding_and_empty_rows_change_nothing():
    plain = measured(batch_of([[0], [1], [2], [3]]))
    for rows, length, room in (([[0, 1, 2], [3]], 24, 3), ([[0], [], [1], [2], [3], []], 17, 1)):
        batch = batch_of(rows, length, room)
        assert measured(batch) == pytest.approx(plain, abs=1e-5)


@pytest.mark.slow
def test_empty_rows_have_a_gradient_of_numbers():
    batch = batch_of([[0], [1], []])
    gradient = jax.jit(jax.grad(lambda params: OBJECTIVE(MODEL, params, batch)["loss"].value))(PARAMS)
    leaves = jax.tree.leaves(gradient)
    assert all(np.isfinite(leaf).all() for leaf in leaves) and max(np.abs(leaf).max() for leaf in leaves) > 0


@pytest.mark.slow
def test_the_second_texts_of_all_devices_are_there():
    """Eight devices with a pair each give the loss, and the gradient, of one device with all eight."""
    batch = batch_of([[number] for number in range(8)])

    def loss(params, batch):
        return OBJECTIVE(MODEL, params, batch)["loss"].value

    results = []
    for mesh in (Mesh(1), Mesh(data=8), Mesh(data=2, fsdp=4)):
        made = sharding.make_mesh(mesh)
        with jax.set_mesh(made):
            results.append(jax.jit(jax.value_and_grad(loss))(PARAMS, sharding.global_batch(batch, range(8), 8, made)))
    one = results[0]
    assert float(one[0]) > 0.5
    for value, gradient in results[1:]:
        assert float(value) == pytest.approx(float(one[0]), abs=1e-5)
        for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(one[1]), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)


@pytest.mark.slow
def test_dropout_makes_two_of_one_text():
    """The same text twice has a cosine of one, apart from dropout."""
    model = dataclasses.replace(MODEL, transformer=dataclasses.replace(MODEL.transformer, dropout=0.3))
    batch = batch_of([[0], [1]])
    for name, other in (("tokens", "inputs"), ("segments", "input_segments"), ("position_ids", "input_position_ids")):
        batch[name] = batch[other]
    keys = (None, *map(jax.random.key, (0, 1)))
    same, *different = (list(OBJECTIVE.vectors(model, PARAMS, batch, key).values()) for key in keys)
    np.testing.assert_allclose(same[0], same[1], atol=1e-6)
    for firsts, seconds in different:
        assert np.abs(firsts - seconds).max() > 1e-2


@pytest.mark.slow
def test_the_balance_of_experts_is_averaged_over_both_texts():
    mlp = ExpertMlp(experts=4, top_k=2, width=5)
    model = dataclasses.replace(MODEL, transformer=dataclasses.replace(MODEL.transformer, mlp=mlp))
    params, batch = bert_params(model), batch_of([[0], [1], [2]])
    terms = jax.jit(lambda batch: OBJECTIVE(model, params, batch))(batch)
    apply = jax.jit(lambda tokens, segments: model.apply({"params": params}, tokens, segments=segments).means)
    first, second = apply(batch["inputs"], batch["input_segments"]), apply(batch["tokens"], batch["segments"])
    assert first.keys() == second.keys() >= {"load_balance", "router_z"}
    for name in first:
        expected = (first[name].sum + second[name].sum) / (first[name].weight + second[name].weight)
        np.testing.assert_allclose(terms[auxiliary_name(name)].value, expected, rtol=1e-5)
    assert float(terms["auxiliary/load_balance"].value) > 0
    reported = {name for metric in OBJECTIVE.all_metrics(model) for name in metric.names}
    assert reported >= {auxiliary_name(name) for name in first}


def test_what_cannot_be_is_refused():
    rows = TextPairs().row
    OBJECTIVE.check(MODEL, rows)
    with pytest.raises(InputError, match="needs a Bert or another encoder; the model is a Gpt"):
        OBJECTIVE.check(Gpt(MODEL.transformer, 96, 24), rows)
    with pytest.raises(InputError, match="the task's rows have no inputs; use TextPairs"):
        OBJECTIVE.check(MODEL, {"tokens": None})
    with pytest.raises(InputError, match="for an encoder-decoder; use TextPairs"):
        OBJECTIVE.check(MODEL, dict.fromkeys(("inputs", "tokens", "weights", "targets")))
    with pytest.raises(InputError, match=r"objective.pooling=pooler: the model has none"):
        SentenceEmbedding("pooler").check(dataclasses.replace(MODEL, prediction_heads=()), rows)
    with pytest.raises(InputError, match=r"objective.temperature=0: expected above 0"):
        SentenceEmbedding(temperature=0)
