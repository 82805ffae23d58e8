"""From tokens to the vectors that enter a stack."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer.errors import InputError
from jaxformer.layers.dropout import Dropout
from jaxformer.layers.linear import DType, compute_dtype, truncated_normal
from jaxformer.layers.positions import sinusoidal
from jaxformer.parallel import metadata, sharding

AddedPositions = Literal["learned", "sinusoidal", "none"]
"""How positions are added to embeddings."""


class Embeddings(nn.Module):
    """The sum of token, position and token-type embeddings, normalised where there is a norm: [b, t] → [b, t, d]."""

    width: int
    """Size of the embeddings."""
    vocab: int | None
    """Size of the vocabulary; None stands for the tokenizer's, until a run has one."""
    max_length: int
    """The longest input, in tokens."""
    position_embedding: AddedPositions = "learned"
    """How positions are added."""
    token_types: int = 0
    """Kinds of sentence; 0 for none."""
    scale: float = 1.0
    """Factor of token embeddings."""
    token_init_std: float = 0.02
    """Standard deviation of the initial token embeddings."""
    norm: nn.Module | None = None
    """The norm of the sum."""
    dropout: float = 0.0
    """Rate of dropout on the result."""
    dtype: DType = "auto"
    """The type of the result."""
    offset: int = 0
    """Rows of a table of positions before that of position 0, which nothing reads; RoBERTa and BART have two."""

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        position_ids: jax.Array | None = None,
        token_types: jax.Array | None = None,
        train: bool = False,
        blank: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the embeddings in the compute dtype, and the token table, float32 [v, d].

        Args:
          tokens: integers [b, t].
          position_ids: integers [b, t]. Default: 0, 1, 2, ...
          token_types: integers [b, t]. Default: 0.
          train: whether to drop out; needs the rng stream `dropout`.
          blank: boolean [b, t]: where the token counts as a vector of zeros. Default: nowhere.
        """
        if self.vocab is None:
            raise InputError("model.vocab=None: a run takes the tokenizer's size; without a run, expected a number")
        tokens_vd = self._table("token", "vd", self.vocab, self.token_init_std)
        # The lookup needs whole rows: gathering them from a table split over the width would make the compiler
        # rebuild the table for every use. The tensor axis keeps the vocabulary.
        x = sharding.constrain(jnp.take(sharding.constrain(tokens_vd, "v_"), tokens, axis=0), "btd") * self.scale
        if blank is not None:
            x = jnp.where(blank[..., None], 0.0, x)
        if self.position_embedding == "sinusoidal":
            places = jnp.arange(tokens.shape[1]) if position_ids is None else position_ids
            x = x + sinusoidal(places, self.width)
        elif self.position_embedding == "learned":
            init = metadata.with_axes(first_positions, "td")
            positions_td = self.param("position", init, (self.offset + self.max_length, self.width))
            first = slice(self.offset, self.offset + tokens.shape[1])
            x = x + (positions_td[first] if position_ids is None else positions_td[position_ids + self.offset])
        if self.token_types:
            # Few rows: a product with one-hot types, as a gather's gradient would be a slow scatter into them.
            types = jax.nn.one_hot(jnp.zeros_like(tokens) if token_types is None else token_types, self.token_types)
            x = x + jnp.einsum("btc,cd->btd", types, self._table("token_type", "cd", self.token_types))
        if self.norm is not None:
            x = self.norm(x)
        x = Dropout(self.dropout)(x.astype(compute_dtype(self.dtype)), train)
        return sharding.constrain(x, "btd"), tokens_vd

    def _table(self, name: str, axes: str, rows: int, size: float = 0.02) -> jax.Array:
        return self.param(name, metadata.with_axes(truncated_normal(size), axes), (rows, self.width))


def first_positions(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Initialises learned positions as sinusoids larger than tokens.

    Neighbours then differ from the first step: a small BERT leaves the plateau of guessing by frequency in
    half the updates that it takes from random positions.
    """
    del key
    longest, width = shape
    return 0.1 * sinusoidal(jnp.arange(longest), width + width % 2)[:, :width]
