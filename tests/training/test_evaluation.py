"""Metrics on held-out data are exact, whatever the batches and the mesh."""

import collections

import numpy as np
import pytest
import tiny

from jaxformer.config import override
from jaxformer.data.pipeline.loader import evaluation_batches
from jaxformer.errors import InputError
from jaxformer.parallel import sharding
from jaxformer.parallel.sharding import Mesh
from jaxformer.training.evaluation import Evaluator
from jaxformer.training.state import abstract_params, abstract_state, init_state


@pytest.fixture(scope="module")
def experiment(tiny_config):
    return tiny.load(tiny_config)


@pytest.fixture(scope="module")
def tokenizer(experiment, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
    return experiment.tokenizer.build(experiment.data.train.open, str(folder))


@pytest.fixture(scope="module")
def evaluate(experiment, tokenizer):
    """Evaluates the parameters of seed 0 with some fields overridden."""

    def run(shape=Mesh(), stopped=lambda: False, **overrides):
        now = override(experiment, {name.replace("__", "."): value for name, value in overrides.items()})
        mesh = sharding.make_mesh(shape)
        params = init_state(experiment, abstract_state(experiment, mesh)).params
        return Evaluator(now, tokenizer, mesh)(params, stopped)

    return run


@pytest.fixture(scope="module")
def plain(evaluate):
    return evaluate(Mesh(1, 1, 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape, batch",
    [(Mesh(1, 1, 1), 1), (Mesh(1, 1, 1), 64), (Mesh(1, 1, 1), 5), (Mesh(8), 16), (Mesh(2, 2, 2), 8), (Mesh(1, 8), 24)],
    ids=str,
)
def test_batch_size_and_mesh_change_nothing(shape, batch, evaluate, plain):
    assert evaluate(shape, data__batch=batch) == pytest.approx(plain, rel=1e-5)


def test_the_same_evaluation_gives_the_same_numbers(evaluate, plain):
    assert evaluate(Mesh(1, 1, 1)) == plain


def test_accuracy_and_unigram_baseline_are_over_all_masked_tokens(experiment, tokenizer, plain):
    data, counts, pairs = experiment.data, collections.Counter(), 0
    for batch in evaluation_batches(data.validation, data, tokenizer, experiment.seed, range(data.batch)):
        counts.update(batch["targets"][batch["weights"] > 0].tolist())
        pairs += int(batch["next_sentence_weights"].sum())
    total = sum(counts.values())
    assert plain["masked_lm_unigram_accuracy"] == pytest.approx(counts.most_common(1)[0][1] / total)
    # An accuracy over n is a whole number of them.
    assert plain["masked_lm_accuracy"] * total == pytest.approx(round(plain["masked_lm_accuracy"] * total), abs=1e-3)
    assert plain["next_sentence_accuracy"] * pairs == pytest.approx(round(plain["next_sentence_accuracy"] * pairs))
    assert plain["masked_lm_perplexity"] == pytest.approx(np.exp(plain["masked_lm_loss"]))
    assert plain["loss"] == pytest.approx(plain["masked_lm_loss"] + plain["next_sentence_loss"])
    assert plain["masked_lm_loss"] == pytest.approx(np.log(experiment.model.vocab), abs=0.3), "it has learned nothing"


@pytest.mark.slow
def test_fewer_batches_are_a_part_of_the_held_out_data(evaluate, plain):
    few = evaluate(Mesh(1, 1, 1), evaluation__batches=1)
    assert few["loss"] != plain["loss"]
    assert evaluate(Mesh(1, 1, 1), evaluation__batches=1000) == plain


@pytest.mark.slow
def test_an_interrupted_evaluation_has_no_result(evaluate):
    asked = []

    def stopped():
        asked.append(True)
        return len(asked) == 2

    assert evaluate(data__batch=8, stopped=stopped) is None
    assert len(asked) == 2


@pytest.mark.slow
def test_what_the_best_checkpoint_is_chosen_by_must_be_a_metric(experiment, evaluate, plain):
    for name in set(plain) - {"loss"}:
        now = override(experiment, {"checkpoint.best": name})
        assert now.best_metric.higher_is_better == name.endswith("accuracy") and evaluate(checkpoint__best=name)
    with pytest.raises(InputError, match=r"checkpoint.best=validation/f1: .* loss, masked_lm_accuracy"):
        override(experiment, {"checkpoint.best": "validation/f1"})


def test_a_best_checkpoint_without_held_out_data_is_refused(experiment):
    with pytest.raises(InputError, match=r"checkpoint.best=loss: .*data.validation"):
        override(experiment, {"data.validation": None, "checkpoint.best": "loss"})


def test_parameters_are_planned_as_the_state_plans_them(experiment):
    mesh = sharding.make_mesh(Mesh(2, 2, 2))
    assert abstract_params(experiment, mesh) == abstract_state(experiment, mesh).params
