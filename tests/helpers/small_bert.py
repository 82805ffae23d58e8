"""Helpers for tests of layers, model, objective and step: a small BERT, examples for it, an experiment with it."""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.config import Experiment
from jaxformer.data.pipeline import lanes
from jaxformer.data.pipeline.loader import Data
from jaxformer.data.sources.sources import TextFiles
from jaxformer.data.tasks.masked_lm import MaskedSentencePairs
from jaxformer.data.tokenizers import WordPiece
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.transformer import Transformer
from jaxformer.models.bert import Bert
from jaxformer.objectives.masked_lm import MaskedLM
from jaxformer.training.optimizers import AdamW, Schedule
from jaxformer.training.state import TrainState, parameter_info

VOCAB, LENGTH = 96, 24


def small_transformer(**fields) -> Transformer:
    """Two blocks of width 16, post-norm, float32, no dropout."""
    defaults = {"width": 16, "depth": 2, "heads": 2, "norm": LayerNorm(1e-12), "norm_position": "after"}
    quiet = {"dropout": 0.0, "attention_dropout": 0.0, "dtype": "float32"}
    return Transformer(**(defaults | quiet | fields))


def small_bert(vocab=VOCAB, max_length=LENGTH, **fields) -> Bert:
    """A BERT of a small Transformer, whose `fields` these are."""
    return Bert(small_transformer(**fields), vocab=vocab, max_length=max_length)


def noisy_params(module: nn.Module, *inputs, seed=0, **options):
    """Random parameters around 0, or 1 for scales; none at a special value, which would hide mistakes.

    `inputs` are those of a call, and `options` its keyword arguments.
    """
    static, arrays = _split(options)
    shapes = nn.unbox(jax.eval_shape(functools.partial(_init, module, static), *inputs, **arrays))["params"]
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        return jnp.asarray(rng.normal(path[-1].key == "scale", 0.2, leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _init(module, static, *inputs, **arrays):
    """Jitted, so that a module is traced once, however often its parameters are drawn."""
    return module.init(jax.random.key(0), *inputs, **arrays, **dict(static))


def applied(module: nn.Module, params, *inputs, **options):
    """The output of a module, compiled as a whole, which takes a part of the time of one operation after the other."""
    static, arrays = _split(options)
    return _apply(module, static, params, *inputs, **arrays)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _apply(module, static, params, *inputs, **arrays):
    return module.apply({"params": params}, *inputs, **arrays, **dict(static))


def _split(options):
    """Arguments that determine a program, as a tuple of pairs, and arrays."""
    static = {name: value for name, value in options.items() if isinstance(value, bool | int | str)}
    return tuple(static.items()), {name: value for name, value in options.items() if name not in static}


def bert_params(model: Bert, seed=0):
    """`noisy_params` of a BERT."""
    return noisy_params(model, np.zeros((1, 4), np.int32), seed=seed)


def random_examples(seed: int, lengths: Sequence[int], vocab=VOCAB, predictions=3) -> list[dict[str, np.ndarray]]:
    """Examples such as `MaskedSentencePairs` makes, of random tokens, with weights of many sizes."""
    rng = np.random.default_rng(seed)

    def example(length):
        masked = min(predictions, length)
        return {
            "tokens": rng.integers(1, vocab, length).astype(np.int32),
            "token_types": (np.arange(length) >= length // 2).astype(np.int32),
            "masked_positions": np.sort(rng.choice(length, masked, replace=False)).astype(np.int32),
            "targets": rng.integers(1, vocab, masked).astype(np.int32),
            "weights": rng.uniform(0.5, 2, masked).astype(np.float32),
            "cls_positions": np.zeros(1, np.int32),
            "next_sentence": rng.integers(0, 2, 1).astype(np.int32),
            "next_sentence_weights": rng.uniform(0.5, 2, 1).astype(np.float32),
        }

    return [example(length) for length in lengths]


def lay_out(rows: Sequence[Sequence[dict]], length=LENGTH, predictions=9, examples_per_row=3) -> dict[str, np.ndarray]:
    """A batch with the examples of each row one after another, laid out as the lanes do it."""
    features = MaskedSentencePairs(length, predictions, examples_per_row=examples_per_row).row
    batch = lanes.empty_batch(len(rows), features)
    for number, row in enumerate(rows):
        lanes.write_row(batch, number, row, features)
    return batch


def small_experiment(model: Bert | None = None, batch=4, steps=10, **fields) -> Experiment:
    """An experiment whose data is never read; `fields` are its own."""
    data = Data(TextFiles(("never read",)), MaskedSentencePairs(LENGTH, 9, examples_per_row=3), batch, pack=True)
    defaults = {"objective": MaskedLM(), "tokenizer": WordPiece(), "optimizer": AdamW(Schedule(1e-3))}
    return Experiment(model=model or small_bert(), data=data, steps=steps, **(defaults | fields))


def paths(tree) -> dict[str, jax.Array]:
    """The leaves of a tree by path, such as `transformer/blocks/mlp/up/kernel`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def assert_trees_close(actual, expected, atol: float, rtol: float = 0.0) -> None:
    """Fails with the path of the first leaf that differs; the two trees must have the same paths."""
    actual, expected = paths(actual), paths(expected)
    assert actual.keys() == expected.keys()
    for path in actual:
        np.testing.assert_allclose(actual[path], expected[path], rtol, atol, err_msg=path)


def assert_trees_identical(actual, expected) -> None:
    """Bit for bit; zeros of both signs and not-a-numbers differ as their bits do."""
    actual, expected = paths(actual), paths(expected)
    assert actual.keys() == expected.keys()
    for path in actual:
        assert np.asarray(actual[path]).tobytes() == np.asarray(expected[path]).tobytes(), path


def first_state(experiment: Experiment, params) -> TrainState:
    """The state before the first step, with these parameters."""
    zero = jnp.zeros((), jnp.int32)
    optimizer = experiment.optimizer.transform(experiment.steps, parameter_info(experiment)).init(params)
    average = None if experiment.optimizer.ema is None else params
    return TrainState(zero, params, optimizer, average, zero, zero)
