"""T5 and Marian: the same numbers as transformers, an independent implementation in PyTorch, with its weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from hf_weights import TOLERANCE, as_ours, assert_same, redraw
from small_bert import assert_trees_close, paths

from jaxformer.layers import attention
from jaxformer.losses.cross_entropy import decoded_cross_entropy

SHORT = ((13, 16, 5), (11, 4, 9))
LONG = ((1030, 611), (977, 1100))
"""Inputs and outputs in each row of a batch: the long rows' attention is computed in many blocks, each again going
back."""
SMOOTHING = 0.1


def t5(heads, head_dim, width, depths, inner, vocab, buckets=32, longest=128, kind="relu", untied=False):
    config = transformers.T5Config(
        vocab_size=vocab,
        d_model=width,
        d_kv=head_dim,
        d_ff=inner,
        num_layers=depths[0],
        num_decoder_layers=depths[1],
        num_heads=heads,
        relative_attention_num_buckets=buckets,
        relative_attention_max_distance=longest,
        feed_forward_proj=kind,
        layer_norm_epsilon=1e-5,
        tie_word_embeddings=not untied,
        attn_implementation="eager",
    )
    model = transformers.T5ForConditionalGeneration(config)
    if untied:
        # As loading a checkpoint of v1.1 would: the class itself ties the head always.
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    return model, as_ours


def marian(heads, width, depths, inner, activation, vocab, scaled):
    config = transformers.MarianConfig(
        vocab_size=vocab,
        d_model=width,
        encoder_layers=depths[0],
        decoder_layers=depths[1],
        encoder_attention_heads=heads[0],
        decoder_attention_heads=heads[1],
        encoder_ffn_dim=inner[0],
        decoder_ffn_dim=inner[1],
        activation_function=activation,
        max_position_embeddings=max(map(max, LONG)),
        scale_embedding=scaled,
        # Marian's padding has no gradient, and begins each output: here the tokens are others.
        pad_token_id=vocab - 1,
        decoder_start_token_id=0,
        attn_implementation="eager",
    )
    return transformers.MarianMTModel(config), as_ours


CASES = {
    "t5-1head": lambda: t5(1, 7, 10, (1, 2), 21, 47),
    "t5-5heads-8buckets": lambda: t5(5, 4, 14, (2, 1), 33, 66, buckets=8, longest=20),
    "t5-1.1": lambda: t5(3, 3, 12, (1, 2), 19, 51, kind="gated-gelu", untied=True),
    "t5-gated-12buckets": lambda: t5(2, 6, 9, (1, 1), 27, 44, buckets=12, longest=500, kind="gated-silu"),
    "marian-relu": lambda: marian((1, 1), 14, (1, 2), (23, 23), "relu", 58, True),
    "marian-swish": lambda: marian((3, 5), 30, (2, 1), (31, 44), "swish", 63, True),
    "marian-unscaled-gelu": lambda: marian((5, 2), 20, (2, 2), (25, 26), "gelu", 49, False),
}
GRADIENTS = ("t5-1.1", "marian-swish")
"""One shape of each family."""


@functools.cache
def both(name):
    """Their model, ours, its parameters, and the function that maps theirs."""
    model, convert = CASES[name]()
    model = redraw(model, seed=sorted(CASES).index(name))
    return model, *convert(model), convert


def draw_batch(lengths, vocab, left):
    """Inputs and outputs of these lengths, padded on the right, the last inputs on the left where asked."""
    rng, batch = np.random.default_rng(0), {}
    for name, counts in zip(("inputs", "tokens", "targets"), (*lengths, lengths[1]), strict=True):
        batch[name] = rng.integers(0, vocab - 1, (len(counts), max(counts)))
        batch[f"{name}_segments"] = np.int32(np.arange(max(counts)) < np.array(counts)[:, None])
    if left:
        batch["inputs_segments"][-1] = batch["inputs_segments"][-1, ::-1]
    return batch


def run_theirs(model, batch):
    """Logits, the loss, and the loss with smoothed labels."""
    batch = {name: torch.tensor(array, dtype=torch.long) for name, array in batch.items()}
    labels = torch.where(batch["tokens_segments"] > 0, batch["targets"], -100)
    output = model(
        input_ids=batch["inputs"],
        attention_mask=batch["inputs_segments"],
        decoder_input_ids=batch["tokens"],
        decoder_attention_mask=batch["tokens_segments"],
        labels=labels,
        use_cache=False,
    )
    arguments = (output.logits.flatten(0, 1), labels.flatten())
    return output.logits, output.loss, torch.nn.functional.cross_entropy(*arguments, label_smoothing=SMOOTHING)


def run_ours(model, params, batch):
    """The same for our model."""
    names = ("inputs", "tokens", "inputs_segments", "tokens_segments")
    output = model.apply({"params": params}, *(batch[name] for name in names))
    arguments = (output.hidden, output.lm_head, batch["targets"], jnp.float32(batch["tokens_segments"]))
    loss, smoothed = (decoded_cross_entropy(*arguments, smoothing).loss.value for smoothing in (0.0, SMOOTHING))
    return output.logits, loss, smoothed


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_logits_and_losses_of_padded_rows(name):
    theirs, ours, params, _ = both(name)
    # Sinusoids are counted from the left in theirs, padding or not; distances are the same anywhere.
    batch = draw_batch(SHORT, ours.vocab, left=name.startswith("t5"))
    with torch.no_grad():
        expected = run_theirs(theirs, batch)
    actual = jax.jit(lambda params, batch: run_ours(ours, params, batch))(params, batch)
    assert_same(actual, expected, batch["tokens_segments"])


@pytest.mark.slow
@pytest.mark.parametrize("name", GRADIENTS)
def test_logits_losses_and_every_gradient_of_long_padded_rows(name, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", 128)
    theirs, ours, params, convert = both(name)
    batch = draw_batch(LONG, ours.vocab, left=False)
    theirs.zero_grad()
    results = run_theirs(theirs, batch)
    results[1].backward()
    gradients = {name: tensor.grad for name, tensor in theirs.named_parameters() if tensor.requires_grad}
    if ours.head_bias:  # A buffer in theirs, a constant in ours.
        gradients["final_logits_bias"] = torch.zeros_like(theirs.final_logits_bias)
    _, expected = convert(theirs, gradients)

    @jax.jit
    def run(params):
        def loss(params):
            results = run_ours(ours, params, batch)
            return results[1], results

        return jax.grad(loss, has_aux=True)(params)

    gradient, actual = run(params)
    assert_same(actual, results, batch["tokens_segments"])
    assert_trees_close(gradient, expected, TOLERANCE)
    # Nothing is equal only because it is zero; keys' biases are: softmax does not see a shift of all scores.
    sizes = {path: float(jnp.abs(leaf).max()) for path, leaf in paths(gradient).items() if "key/bias" not in path}
    assert sizes.pop("bias", 0.0) == 0
    assert min(sizes.values()) > 10 * TOLERANCE, sizes
