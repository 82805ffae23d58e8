"""GPT-2, LLaMA and Gemma: the same numbers as transformers, in PyTorch, with its weights."""

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

SHORT, LONG = (17, 11, 6), (1100, 1037)
"""Tokens in each row of a batch: the long rows' attention is computed in many blocks, each again going back."""
SMOOTHING = 0.1


def gpt2(heads, head_dim, depth, inner, activation, vocab, epsilon, tied):
    config = transformers.GPT2Config(
        vocab_size=vocab,
        n_positions=max(LONG),
        n_embd=heads * head_dim,
        n_layer=depth,
        n_head=heads,
        n_inner=inner,
        activation_function=activation,
        layer_norm_epsilon=epsilon,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="eager",
    )
    return transformers.GPT2LMHeadModel(config), as_ours


def llama(heads, groups, width, head_dim, depth, inner, activation, vocab, epsilon, tied, bias, **rope):
    config = transformers.LlamaConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=head_dim,
        hidden_act=activation,
        max_position_embeddings=max(LONG),
        rms_norm_eps=epsilon,
        tie_word_embeddings=tied,
        attention_bias=bias,
        mlp_bias=bias,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0} | rope,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="eager",
    )
    return transformers.LlamaForCausalLM(config), as_ours


def gemma3(heads, groups, width, head_dim, depth, inner, vocab, window, tied, **rope):
    config = transformers.Gemma3TextConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=head_dim,
        query_pre_attn_scalar=head_dim + 3,
        max_position_embeddings=max(LONG),
        sliding_window=window,
        layer_types=["full_attention" if number % 3 == 2 else "sliding_attention" for number in range(depth)],
        tie_word_embeddings=tied,
        rope_parameters={"full_attention": {"rope_type": "default", "rope_theta": 1e6} | rope},
        pad_token_id=None,
        attn_implementation="eager",
    )
    return transformers.Gemma3ForCausalLM(config), as_ours


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 5.0,
    "low_freq_factor": 1.5,
    "high_freq_factor": 3.0,
    # So that of five pairs some keep their frequency, one is between, and some shrink.
    "original_max_position_embeddings": 320,
}
CASES = {
    "gpt2-1head": lambda: gpt2(1, 12, 2, None, "gelu_new", 61, 1e-5, True),
    "gpt2-3heads-untied": lambda: gpt2(3, 5, 2, 37, "gelu_pytorch_tanh", 83, 1e-3, False),
    "gpt2-5heads-relu": lambda: gpt2(5, 3, 1, 29, "relu", 70, 1e-6, True),
    "llama-3heads": lambda: llama(3, 3, 18, None, 2, 31, "silu", 67, 1e-6, False, False),
    "llama-6of2-llama3": lambda: llama(6, 2, 30, 10, 2, 41, "silu", 72, 1e-5, False, False, **LLAMA3),
    "llama-5of1-linear": lambda: llama(
        5, 1, 15, 8, 1, 22, "gelu", 59, 1e-3, True, True, rope_type="linear", rope_theta=5_000.0, factor=3.0
    ),
    "gemma3-window-4": lambda: gemma3(6, 2, 18, 8, 5, 31, 67, 4, True, rope_type="linear", factor=8.0),
    "gemma3-window-90": lambda: gemma3(4, 2, 20, 10, 3, 31, 67, 90, False),
}
GRADIENTS = ("gpt2-3heads-untied", "llama-6of2-llama3", "gemma3-window-90")
"""One shape of each family, untied so that both tables are seen."""


@functools.cache
def both(name):
    """Their model, ours, its parameters, and the function that maps theirs."""
    model, convert = CASES[name]()
    model = redraw(model, seed=sorted(CASES).index(name))
    return model, *convert(model), convert


def draw_batch(lengths, vocab):
    """Rows of these lengths, the last padded on the left and the others on the right: tokens, segments, positions."""
    rng, longest = np.random.default_rng(len(lengths)), max(lengths)
    tokens = rng.integers(0, vocab, (len(lengths), longest))
    starts = np.array([0] * (len(lengths) - 1) + [longest - lengths[-1]])[:, None]
    position_ids = np.arange(longest) - starts
    segments = (position_ids >= 0) & (position_ids < np.array(lengths)[:, None])
    return tokens, segments.astype(np.int32), np.where(segments, position_ids, 0)


def run_theirs(model, batch):
    """Logits, the loss, and the loss with smoothed labels."""
    tokens, segments, position_ids = (torch.tensor(array, dtype=torch.long) for array in batch)
    # The first token of a row on the right of its padding is predicted by nothing.
    counted = (segments > 0) & (position_ids > 0)
    labels = torch.where(counted, tokens, -100)
    output = model(tokens, attention_mask=segments, position_ids=position_ids, labels=labels)
    smoothed = torch.nn.functional.cross_entropy(
        output.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), label_smoothing=SMOOTHING
    )
    return output.logits, output.loss, smoothed


def run_ours(model, params, batch):
    """The same for our model."""
    tokens, segments, position_ids = batch
    output = model.apply({"params": params}, tokens, segments, position_ids)
    weights = jnp.float32((segments > 0) & (position_ids > 0))[:, 1:]
    arguments = (output.hidden[:, :-1], output.lm_head, tokens[:, 1:], weights)
    loss, smoothed = (decoded_cross_entropy(*arguments, smoothing).loss.value for smoothing in (0.0, SMOOTHING))
    return output.logits, loss, smoothed


@pytest.mark.slow
@pytest.mark.parametrize(("name", "lengths"), [*((name, SHORT) for name in CASES), ("llama-5of1-linear", LONG)])
def test_logits_and_losses_of_padded_rows(name, lengths):
    theirs, ours, params, _ = both(name)
    batch = draw_batch(lengths, ours.vocab)
    with torch.no_grad():
        expected = run_theirs(theirs, batch)
    assert_same(jax.jit(lambda params, batch: run_ours(ours, params, batch))(params, batch), expected, batch[1])


@pytest.mark.slow
@pytest.mark.parametrize("name", GRADIENTS)
def test_logits_losses_and_every_gradient_of_long_padded_rows(name, monkeypatch):
    monkeypatch.setattr(attention, "BLOCK", 128)
    theirs, ours, params, convert = both(name)
    batch = draw_batch(LONG, ours.vocab)
    theirs.zero_grad()
    results = run_theirs(theirs, batch)
    results[1].backward()
    _, expected = convert(theirs, {name: parameter.grad for name, parameter in theirs.named_parameters()})

    @jax.jit
    def run(params):
        def loss(params):
            results = run_ours(ours, params, batch)
            return results[1], results

        return jax.grad(loss, has_aux=True)(params)

    gradient, actual = run(params)
    assert_same(actual, results, batch[1])
    assert_trees_close(gradient, expected, TOLERANCE)
    # Nothing is equal only because it is zero; keys' biases are: softmax does not see a shift of all scores.
    gradient["transformer"]["blocks"]["attention"]["key"].pop("bias", None)
    sizes = {path: float(jnp.abs(leaf).max()) for path, leaf in paths(gradient).items()}
    assert min(sizes.values()) > 10 * TOLERANCE, sizes
