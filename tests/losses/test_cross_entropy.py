"""The chunked cross-entropy against a plain log-softmax of all logits."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.layers.linear import LMHead
from jaxformer.losses import cross_entropy
from jaxformer.losses.cross_entropy import class_cross_entropy, decoded_cross_entropy

ROWS, POSITIONS, WIDTH, VOCAB = 3, 7, 5, 37


def case(rows=ROWS, positions=POSITIONS, vocab=VOCAB, seed=0):
    rng = np.random.default_rng(seed)
    x, table = (rng.normal(size=shape).astype(np.float32) for shape in ((rows, positions, WIDTH), (vocab, WIDTH)))
    bias, weights = rng.normal(size=vocab).astype(np.float32), rng.random((rows, positions)).astype(np.float32)
    weights[rng.random(weights.shape) < 0.4] = 0
    return x, LMHead(table, bias), rng.integers(0, vocab, (rows, positions)).astype(np.int32), weights


def plain(x, decoder, targets, weights, label_smoothing=0.0, z_loss=0.0):
    """The definition: sums of loss, cross-entropy and hits."""
    logits = jnp.einsum("bmd,vd->bmv", x, decoder.table) + (0 if decoder.bias is None else decoder.bias)
    log_probabilities = jax.nn.log_softmax(logits)
    entropies = -jnp.take_along_axis(log_probabilities, targets[..., None], -1)[..., 0]
    losses = (1 - label_smoothing) * entropies - label_smoothing * log_probabilities.mean(-1)
    losses += z_loss * jnp.square(jax.nn.logsumexp(logits, -1))
    hits = logits.argmax(-1) == targets
    return tuple(jnp.sum(weights * values) for values in (losses, entropies, hits))


@functools.partial(jax.jit, static_argnames=("label_smoothing", "z_loss"))
def reference(x, decoder, targets, weights, **terms):
    """((loss, others), gradients) of the definition."""

    def loss(x, decoder):
        loss, *others = plain(x, decoder, targets, weights, **terms)
        return loss, others

    return jax.value_and_grad(loss, (0, 1), has_aux=True)(x, decoder)


def value_and_gradients(x, decoder, targets, weights, scale=1.0, **terms):
    """(means, gradients of `scale` times the sum of the losses) under a jit of its own."""

    @jax.jit
    def run(x, decoder):
        def loss(x, decoder):
            means = decoded_cross_entropy(x, decoder, targets, weights, **terms)
            return scale * means.loss.sum, means

        (_, means), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(x, decoder)
        return means, gradients

    return run(x, decoder)


def chunk_into(monkeypatch, chunks, rows=ROWS, positions=POSITIONS, vocab=VOCAB):
    monkeypatch.setattr(cross_entropy, "CHUNK_ELEMENTS", -(-rows * positions * vocab // chunks))
    assert cross_entropy.num_chunks(rows, positions, vocab) == min(chunks, positions)


def close(actual, expected, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=1e-5), actual, expected)


@pytest.mark.parametrize("chunks", [1, 2, 3, 7, 1000])
def test_value_and_all_gradients_are_those_of_a_log_softmax(chunks, monkeypatch):
    arguments = case()
    chunk_into(monkeypatch, chunks)
    means, gradients = value_and_gradients(*arguments)
    (loss, others), expected = reference(*arguments)
    close([mean.sum for mean in means], [loss, *others])
    assert [float(mean.weight) for mean in means] == [pytest.approx(float(arguments[3].sum()))] * 3
    close(gradients, expected)


@pytest.mark.parametrize("chunks", [1, 3])
@pytest.mark.parametrize(
    "terms", [{"label_smoothing": 0.1}, {"z_loss": 0.01}, {"label_smoothing": 0.2, "z_loss": 1e-3}]
)
def test_label_smoothing_and_z_loss_are_in_the_loss_and_nowhere_else(terms, chunks, monkeypatch):
    x, decoder, targets, weights = case()
    chunk_into(monkeypatch, chunks)
    for bias in (decoder.bias, None):
        arguments = x, LMHead(decoder.table, bias), targets, weights
        means, gradients = value_and_gradients(*arguments, **terms)
        (loss, others), expected = reference(*arguments, **terms)
        close([mean.sum for mean in means], [loss, *others])
        close(gradients, expected)
        assert abs(means.loss.value - means.cross_entropy.value) > 1e-3


def test_label_smoothing_is_torchs():
    torch = pytest.importorskip("torch")

    x, decoder, targets, weights = case()
    weights = np.ones_like(weights)
    logits = torch.tensor(np.einsum("bmd,vd->bmv", x, decoder.table) + decoder.bias).reshape(-1, VOCAB)
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(targets).reshape(-1).long(), label_smoothing=0.1)
    actual = decoded_cross_entropy(x, decoder, targets, weights, label_smoothing=0.1).loss.value
    assert float(actual) == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("shape", [(1, 1, 2), (2, 1, 5), (1, 5, 3)], ids=str)
def test_small_and_odd_sizes(shape, monkeypatch):
    arguments = case(*shape)
    chunk_into(monkeypatch, 2, *shape)
    means, gradients = value_and_gradients(*arguments)
    (loss, others), expected = reference(*arguments)
    close([mean.sum for mean in means], [loss, *others])
    close(gradients, expected)


@pytest.mark.parametrize("chunks", [1, 3])
def test_evaluation_gives_what_training_gives(chunks, monkeypatch):
    arguments = case()
    chunk_into(monkeypatch, chunks)
    trained, _ = value_and_gradients(*arguments)
    close(jax.jit(decoded_cross_entropy)(*arguments), trained, atol=1e-6)
    close(decoded_cross_entropy(*arguments), trained, atol=1e-6)


@pytest.mark.parametrize("chunks", [1, 3])
def test_its_gradient_is_linear_in_what_follows_it(chunks, monkeypatch):
    arguments = case()
    chunk_into(monkeypatch, chunks)
    _, once = value_and_gradients(*arguments)
    _, scaled = value_and_gradients(*arguments, scale=-2.5)
    close(scaled, jax.tree.map(lambda leaf: -2.5 * leaf, once))


@pytest.mark.parametrize("name", ["cross_entropy", "accuracy"])
def test_only_the_loss_has_a_gradient(name):
    x, decoder, targets, weights = case()

    def other(x, decoder):
        return getattr(decoded_cross_entropy(x, decoder, targets, weights), name).sum

    assert not any(leaf.any() for leaf in jax.tree.leaves(jax.grad(other, (0, 1))(x, decoder)))


@pytest.mark.parametrize("chunks", [1, 3])
def test_what_weighs_nothing_counts_for_nothing(chunks, monkeypatch):
    """No bit depends on vectors and targets where the weight is 0, and their gradient is exactly 0."""
    x, decoder, targets, weights = case()
    chunk_into(monkeypatch, chunks)
    nothing = weights == 0
    others = np.where(nothing[..., None], 100 * case(seed=1)[0], x), decoder, np.where(nothing, 0, targets), weights
    one, other = value_and_gradients(x, decoder, targets, weights), value_and_gradients(*others)
    jax.tree.map(np.testing.assert_array_equal, one[0], other[0])
    assert not np.asarray(other[1][0])[nothing].any()
    close(one[1], other[1])


def test_nothing_to_predict_is_zero_with_zero_gradients():
    x, decoder, targets, weights = case()
    means, gradients = value_and_gradients(x, decoder, targets, 0 * weights)
    assert all(float(mean.value) == 0 for mean in means)
    assert not any(leaf.any() for leaf in jax.tree.leaves(gradients))


def test_great_logits_do_not_overflow():
    x, decoder, targets, weights = case()
    arguments = (np.float32(1e4) * x, decoder, targets, weights)
    (loss, *_), gradients = value_and_gradients(*arguments)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((loss, gradients)))
    assert float(loss.sum) == pytest.approx(float(reference(*arguments)[0][0]), rel=1e-5)


def test_bfloat16_vectors_give_float32_losses_and_table_gradients():
    x, decoder, targets, weights = case()
    (loss, *_), (dx, ddecoder) = value_and_gradients(jnp.bfloat16(x), decoder, targets, weights)
    (expected, _), (expected_dx, expected_decoder) = reference(x, decoder, targets, weights)
    assert loss.sum.dtype == jnp.float32
    assert dx.dtype == jnp.bfloat16
    assert ddecoder.table.dtype == ddecoder.bias.dtype == jnp.float32
    assert float(loss.sum) == pytest.approx(float(expected), rel=0.01)
    close((np.float32(dx), ddecoder), (expected_dx, expected_decoder), atol=0.05)


def test_all_logits_never_exist_at_once(monkeypatch):
    """Eight chunks need a fraction of the memory of one."""
    rows, positions, vocab = 4, 64, 2000
    arguments = case(rows, positions, vocab)

    def temporaries():
        gradient = jax.grad(lambda *a: decoded_cross_entropy(*a)[0].sum, (0, 1), allow_int=True)
        return jax.jit(gradient).lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    whole = temporaries()
    assert whole > 4 * rows * positions * vocab
    chunk_into(monkeypatch, 8, rows, positions, vocab)
    assert temporaries() < whole / 4


class TestClassCrossEntropy:
    def test_it_is_torchs_weighted_sum(self):
        torch = pytest.importorskip("torch")

        rng = np.random.default_rng(0)
        logits, targets = rng.normal(size=(4, 3, 2)).astype(np.float32), rng.integers(0, 2, (4, 3))
        weights = rng.random((4, 3)).astype(np.float32) * (rng.random((4, 3)) < 0.7)
        loss, accuracy = class_cross_entropy(logits, targets, weights)
        losses = torch.nn.functional.cross_entropy(
            torch.tensor(logits).reshape(-1, 2), torch.tensor(targets).reshape(-1), reduction="none"
        )
        assert float(loss.sum) == pytest.approx(float((losses * torch.tensor(weights).reshape(-1)).sum()), abs=1e-5)
        hits = (logits.argmax(-1) == targets) * weights
        assert float(accuracy.value) == pytest.approx(hits.sum() / weights.sum(), abs=1e-6)
        assert float(loss.weight) == pytest.approx(weights.sum())

    def test_bfloat16_logits_are_summed_in_float32(self):
        logits = jnp.asarray(np.random.default_rng(0).normal(size=(64, 3)), jnp.bfloat16)
        targets, weights = np.zeros(64, np.int32), np.ones(64, np.float32)
        loss, _ = class_cross_entropy(logits, targets, weights)
        expected, _ = class_cross_entropy(np.float32(logits), targets, weights)
        assert loss.sum.dtype == jnp.float32
        assert float(loss.sum) == float(expected.sum)
