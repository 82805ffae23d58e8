"""Embeddings are the sum of their parts, and begin as their module says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_bert import noisy_params

from jaxformer.layers.embeddings import Embeddings
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.positions import sinusoidal

WIDTH, VOCAB, LONGEST = 8, 20, 11
RNG = np.random.default_rng(0)
TOKENS = RNG.integers(0, VOCAB, (2, 6))
POSITIONS = RNG.integers(0, LONGEST, (2, 6))
TYPES = RNG.integers(0, 3, (2, 6))


def embeddings(**fields):
    return Embeddings(WIDTH, VOCAB, LONGEST, **({"dtype": "float32"} | fields))


def embed(module, params, *inputs, **options):
    return module.apply({"params": params}, *inputs, **options)[0]


@pytest.mark.parametrize("position_ids", [None, POSITIONS], ids=["counted", "given"])
@pytest.mark.parametrize("added", ["learned", "sinusoidal", "none"])
def test_they_are_the_scaled_tokens_plus_positions(added, position_ids):
    module = embeddings(position_embedding=added, scale=3.0)
    params = noisy_params(module, TOKENS)
    places = np.arange(6)[None] if position_ids is None else position_ids
    assert ("position" in params) == (added == "learned")
    expected = 3 * params["token"][TOKENS]
    if added == "learned":
        assert params["position"].shape == (LONGEST, WIDTH)
        expected = expected + params["position"][places]
    elif added == "sinusoidal":
        expected = expected + sinusoidal(places, WIDTH)
    np.testing.assert_allclose(embed(module, params, TOKENS, position_ids), expected, atol=1e-6)


def test_token_types_are_added_and_are_type_zero_by_default():
    module = embeddings(token_types=3, position_embedding="none")
    params = noisy_params(module, TOKENS)
    expected = params["token"][TOKENS] + params["token_type"][TYPES]
    np.testing.assert_allclose(embed(module, params, TOKENS, None, TYPES), expected, atol=1e-6)
    expected = params["token"][TOKENS] + params["token_type"][0]
    np.testing.assert_allclose(embed(module, params, TOKENS), expected, atol=1e-6)


def test_the_sum_is_normalised_where_there_is_a_norm():
    norm, module = LayerNorm(1e-3), embeddings(norm=LayerNorm(1e-3))
    params = noisy_params(module, TOKENS)
    plain = embed(embeddings(), {name: params[name] for name in ("token", "position")}, TOKENS)
    expected = norm.apply({"params": params["norm"]}, plain)
    np.testing.assert_allclose(embed(module, params, TOKENS), expected, atol=1e-6)


def test_the_token_table_comes_back_as_it_is():
    module = embeddings(scale=3.0, dtype="bfloat16")
    params = noisy_params(module, TOKENS)
    x, table = module.apply({"params": params}, TOKENS)
    np.testing.assert_array_equal(table, params["token"])
    assert x.dtype == jnp.bfloat16
    assert table.dtype == jnp.float32


@pytest.mark.slow
def test_gradients_go_to_the_rows_that_were_looked_up():
    module = embeddings(token_types=3, position_embedding="learned", norm=LayerNorm())
    params = noisy_params(module, TOKENS)
    gradient = jax.grad(lambda params: jnp.sin(embed(module, params, TOKENS, POSITIONS, TYPES)).sum())(params)
    for name, rows in (("token", TOKENS), ("position", POSITIONS), ("token_type", TYPES)):
        used = np.zeros(len(params[name]), bool)
        used[rows] = True
        np.testing.assert_array_equal(np.asarray(gradient[name]).any(-1), used)


def test_dropout_acts_in_training():
    module = embeddings(dropout=0.5)
    params = noisy_params(module, TOKENS)
    plain = embed(embeddings(), params, TOKENS)
    np.testing.assert_array_equal(embed(module, params, TOKENS), plain)
    dropped = embed(module, params, TOKENS, train=True, rngs={"dropout": jax.random.key(0)})
    kept = dropped != 0
    assert 0.2 < kept.mean() < 0.8
    np.testing.assert_allclose(dropped[kept], 2 * plain[kept], rtol=1e-5)


@pytest.mark.parametrize("width", [8, 7])
def test_learned_positions_begin_as_sinusoids_and_tokens_at_the_size_that_is_asked_for(width):
    module = Embeddings(width, 5000, LONGEST, token_init_std=0.3)
    boxed = module.init(jax.random.key(0), TOKENS)["params"]
    assert float(boxed["token"].value.std()) == pytest.approx(0.3 * 0.8796, rel=0.03)  # Cut at two deviations.
    expected = 0.1 * sinusoidal(np.arange(LONGEST), width + width % 2)[:, :width]
    np.testing.assert_allclose(boxed["position"].value, expected, atol=1e-6)
    assert (boxed["token"].letters, boxed["position"].letters) == ("vd", "_d")


@pytest.mark.parametrize("position_ids", [None, POSITIONS], ids=["counted", "given"])
def test_rows_before_the_first_position_are_read_by_nothing(position_ids):
    module = embeddings(offset=2)
    params = noisy_params(module, TOKENS)
    assert params["position"].shape == (LONGEST + 2, WIDTH)
    later = params | {"position": params["position"][2:]}
    expected = embed(embeddings(), later, TOKENS, position_ids)
    np.testing.assert_array_equal(embed(module, params, TOKENS, position_ids), expected)
