"""FastSpeech 2: the length regulator, padding, given and predicted durations, and bad sizes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.errors import InputError
from jaxformer.layers.conv_mlp import ConvMlp
from jaxformer.layers.masks import Tokens
from jaxformer.models.fast_speech import FastSpeech2, expand, fast_speech_stack

STACK = fast_speech_stack(16, 1, 2, mlp=ConvMlp(16, 3), dropout=0.0, attention_dropout=0.0)
MODEL = FastSpeech2(STACK, STACK, vocab=8, max_length=6, frames=12, mels=5, predictor_width=8, bins=4)
TOKENS = np.array([[2, 3, 4, 5], [4, 2, 0, 0]], np.int32)
SEGMENTS = (TOKENS > 0).astype(np.int32)
DURATIONS = np.array([[3, 0, 4, 2], [5, 2, 9, 9]], np.int32)


@pytest.fixture(scope="module")
def computed():
    """Outputs with given durations, of all rows and of the second one alone, and with predicted durations."""
    params = nn.unbox(jax.jit(MODEL.init)(jax.random.key(0), TOKENS))["params"]

    @jax.jit
    def run(params):
        numbers = jnp.zeros(TOKENS.shape)
        given = {"durations": DURATIONS, "pitch": numbers, "energy": numbers}
        both = MODEL.apply({"params": params}, TOKENS, SEGMENTS, **given)
        alone = MODEL.apply(
            {"params": params}, TOKENS[1:, :2], **{name: array[1:, :2] for name, array in given.items()}
        )
        long = MODEL.apply({"params": params}, TOKENS, SEGMENTS, 0.1, method="speak")
        return both, alone, MODEL.apply({"params": params}, TOKENS, SEGMENTS), long

    return jax.device_get(run(params))


def test_vectors_are_repeated_for_each_frame():
    x = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    durations = DURATIONS * SEGMENTS
    found, lengths = jax.jit(expand, static_argnums=2)(x, durations, 8)
    assert lengths.tolist() == [9, 7]
    for row in range(2):
        expected = np.repeat(x[row], durations[row], axis=0)[:8]
        np.testing.assert_allclose(found[row, : len(expected)], expected, atol=1e-6)
        assert not found[row, len(expected) :].any()


def test_padding_does_not_change_the_speech(computed):
    both, alone, _, _ = computed
    assert both.lengths.tolist() == [9, 7] and alone.lengths.tolist() == [7] and both.log_mel.shape == (2, 12, 5)
    np.testing.assert_allclose(both.log_mel[1, :7], alone.log_mel[0, :7], atol=1e-5)
    np.testing.assert_allclose(both.pitch[1, :2], alone.pitch[0], atol=1e-5)


def test_durations_are_predicted_unless_they_are_given(computed):
    both, _, predicted, long = computed
    assert (both.durations == DURATIONS * SEGMENTS).all()
    expected = np.floor(np.maximum(np.exp(predicted.log_durations) - 1, 0) + 0.5) * SEGMENTS
    np.testing.assert_array_equal(predicted.durations, expected)
    assert (long.durations.sum(1) >= predicted.durations.sum(1)).all() and not predicted.durations[1, 2:].any()


def test_a_convolution_reads_padding_as_zeros():
    x = np.random.default_rng(0).normal(size=(1, 4, 6)).astype(np.float32)
    mlp, segments = ConvMlp(8, 3), jnp.array([[1, 1, 1, 0]])
    params = mlp.init(jax.random.key(0), x)
    whole, _ = mlp.apply(params, x, tokens=Tokens(segments))
    cut, _ = mlp.apply(params, x[:, :3])
    np.testing.assert_allclose(whole[:, :3], cut, atol=1e-6)
    with pytest.raises(InputError, match="combines neighboring positions"):
        mlp.apply(params, x, tokens=Tokens(segments, jnp.array([[0]])))


@pytest.mark.parametrize(
    "sizes, said",
    [
        ({"frames": 0}, "model.frames=0: expected at least 1"),
        ({"predictor_taps": 4}, "model.predictor_taps=4: expected an odd number"),
        ({"pitch_range": (1.0, -1.0)}, "model.pitch_range=.*expected the lower end first"),
        ({"decoder": fast_speech_stack(32, 1, 2)}, "model.decoder.width=32: expected the encoder's width, 16"),
    ],
)
def test_bad_sizes_get_a_line(sizes, said):
    with pytest.raises(InputError, match=said):
        FastSpeech2(**{"encoder": STACK, "decoder": STACK, "vocab": 8} | sizes)
    with pytest.raises(InputError, match=r"mlp\.taps=2: expected an odd number"):
        ConvMlp(8, 2)
