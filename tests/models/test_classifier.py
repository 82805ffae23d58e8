"""The classifier's head: what it reads of each example of a row, and what it refuses."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_bert import applied, assert_trees_close, noisy_params, small_bert, small_transformer

from jaxformer.errors import InputError
from jaxformer.layers.mlp import HeadLayer
from jaxformer.layers.norms import LayerNorm
from jaxformer.models.bert import Bert
from jaxformer.models.classifier import Classifier
from jaxformer.models.gpt import Gpt
from jaxformer.models.t5 import T5
from jaxformer.training.warm_start import Weights, match

LABELS = ("negative", "neutral", "positive")
ROWS = np.array([[5, 6, 7, 8, 9, 10, 0, 0]], np.int32)
SEGMENTS = np.array([[1, 1, 1, 1, 2, 2, 0, 0]], np.int32)
POSITIONS = np.array([[0, 1, 2, 3, 0, 1, 0, 0]], np.int32)


def bert():
    return dataclasses.replace(small_bert(), prediction_heads=("pooler",))


BACKBONES = {"bert": bert(), "gpt": Gpt(small_transformer(), 96, 24)}
PARTS = {"bert": ("pooler", "first", "mean", "last"), "gpt": ("first", "mean", "last")}  # A decoder has no pooler.


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "reads"), [(name, part) for name, parts in PARTS.items() for part in parts])
def test_packed_examples_have_the_logits_that_they_have_alone(backbone, reads):
    model = Classifier(BACKBONES[backbone], LABELS, reads)
    params = noisy_params(model, ROWS)
    packed = applied(model, params, ROWS, SEGMENTS, POSITIONS, cls_positions=np.array([[0, 4]])).logits
    for example, (start, stop) in enumerate([(0, 4), (4, 6)]):
        alone = applied(model, params, ROWS[:, start:stop]).logits
        np.testing.assert_allclose(packed[0, example], alone[0, 0], atol=1e-5)
    assert np.abs(packed[0, 0] - packed[0, 1]).max() > 1e-3


def test_each_token_is_classified_by_its_own_vector():
    model = Classifier(bert(), LABELS, "none")
    params = noisy_params(model, ROWS)
    output = applied(model, params, ROWS, SEGMENTS, POSITIONS)
    hidden = applied(model.backbone, params["backbone"], ROWS, SEGMENTS, POSITIONS).hidden
    expected = hidden @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(output.logits, expected, atol=1e-5)
    assert output.logits.dtype == jnp.float32


def test_a_layer_before_the_head_reads_pooled_vectors():
    layer = HeadLayer("gelu", LayerNorm(1e-5), bias=False)
    model = Classifier(BACKBONES["bert"], LABELS, "mean", transform=layer)
    params = noisy_params(model, ROWS)
    assert {*params["transform"]["dense"]} == {"kernel"} and {*params["transform"]["norm"]} == {"scale", "bias"}
    output = applied(model, params, ROWS, SEGMENTS, POSITIONS)
    plain = Classifier(BACKBONES["bert"], LABELS, "mean")
    pooled = applied(plain, {"backbone": params["backbone"], "head": params["head"]}, ROWS, SEGMENTS, POSITIONS)
    vectors = jax.nn.gelu(pooled.vectors @ params["transform"]["dense"]["kernel"], approximate=False)
    vectors = LayerNorm(1e-5).apply({"params": params["transform"]["norm"]}, vectors)
    np.testing.assert_allclose(output.vectors, vectors, atol=1e-5)
    np.testing.assert_allclose(output.logits, vectors @ params["head"]["kernel"] + params["head"]["bias"], atol=1e-5)
    sizes = {"b": 2, "t": 8}
    assert model.flops(sizes) - plain.flops(sizes) == 2 * 2 * 16 * 16


def test_the_norm_of_that_layer_shares_no_parameters_with_the_backbone():
    """Linen shares the parameters of one instance among its users."""
    backbone = BACKBONES["bert"]
    model = Classifier(backbone, LABELS, transform=HeadLayer(norm=backbone.transformer.norm))
    assert {*noisy_params(model, ROWS)["transform"]} == {"dense", "norm"}


def test_that_layer_starts_from_the_one_of_a_masked_lm_head():
    model, layer = small_bert(), HeadLayer("gelu", LayerNorm(1e-12))
    wanted = Classifier(dataclasses.replace(model, prediction_heads=("pooler",)), LABELS, transform=layer)
    theirs, ours = noisy_params(model, ROWS), noisy_params(wanted, ROWS, seed=1)
    start = match("x", Weights(model, theirs), Weights(wanted, ours))
    assert start.summary.endswith("are those of x; new: head; unused: masked_lm, next_sentence")
    for name in ("dense", "norm"):
        assert_trees_close(start.params["transform"][name], theirs["masked_lm"][name], 0)
    again = match("x", Weights(wanted, start.params), Weights(wanted, ours))
    assert_trees_close(again.params, start.params, 0)


@pytest.mark.slow
def test_it_drops_out_only_in_training():
    model = Classifier(bert(), LABELS, dropout=0.5)
    params = noisy_params(model, ROWS)

    @functools.partial(jax.jit, static_argnums=0)
    def logits(train, key):
        return model.apply({"params": params}, ROWS, train=train, rngs={"dropout": key}).logits

    outputs = [logits(train, jax.random.key(seed)) for train in (False, True) for seed in (0, 1)]
    assert (outputs[0] == outputs[1]).all() and (outputs[2] != outputs[3]).any()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Classifier(T5(), LABELS), "model.backbone=T5: expected a Bert or a Gpt"),
        (
            lambda: Classifier(Bert(prediction_heads=()), LABELS),
            "model.pooling=pooler: the backbone has none",
        ),
        (lambda: Classifier(bert(), ("a", "a")), "expected at least one name, without duplicates"),
        (lambda: Classifier(bert(), ()), "expected at least one name"),
        (lambda: Classifier(bert(), LABELS, dropout=1.0), "model.dropout=1.0"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(make, message):
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        make()
