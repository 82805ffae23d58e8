"""Embeddings of tokens and positions, which are the input of a stack of Transformer blocks."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer.errors import InputError
from jaxformer.layers.dropout import Dropout
from jaxformer.layers.linear import DType, compute_dtype, truncated_normal
from jaxformer.layers.lookup import lookup
from jaxformer.layers.positions import sinusoidal
from jaxformer.parallel import metadata, sharding

AddedPositions = Literal["learned", "sinusoidal", "none"]
"""How position embeddings are added to token embeddings: as a learned table, as sinusoids, or not at all."""


class Embeddings(nn.Module):
    """Input embeddings: the sum of token, position and token-type embeddings, optionally normalized. Maps token ids
    [batch, length] to vectors [batch, length, embed].
    """

    width: int
    """Size of the embeddings."""
    vocab: int | None
    """Vocabulary size. If None, it is set to the vocabulary size of the tokenizer when a training run builds the model.
    """
    max_length: int
    """Maximum number of tokens in an input sequence. The learned position table has this number of rows, plus `offset`.
    """
    position_embedding: AddedPositions = "learned"
    """How position embeddings are added to token embeddings: `learned` (a table), `sinusoidal`, or `none`."""
    token_types: int = 0
    """Number of token types, such as 2 for sentence pairs. 0 disables token-type embeddings."""
    scale: float = 1.0
    """Number by which token embeddings are multiplied, before other embeddings are added."""
    token_init_std: float = 0.02
    """Standard deviation of the initial token embeddings."""
    norm: nn.Module | None = None
    """Normalization of the sum of embeddings. None for no normalization."""
    dropout: float = 0.0
    """Dropout rate of the embeddings, after normalization."""
    dtype: DType = "auto"
    """Data type of the returned embeddings."""
    offset: int = 0
    """Number of unused rows at the beginning of the position table: position 0 has the row with this index. RoBERTa and
    BART have two unused rows.
    """

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        position_ids: jax.Array | None = None,
        token_types: jax.Array | None = None,
        train: bool = False,
        blank: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Embeds tokens. Returns the embeddings [batch, length, embed] in the type `dtype`, and the token embedding
        table, float32 [vocab, embed], with which an output layer may be tied.

        Args:
          tokens: token ids, integers [batch, length].
          position_ids: positions, integers [batch, length]. Defaults to 0, 1, 2, ...
          token_types: token types, integers [batch, length]. Defaults to 0.
          train: whether to apply dropout. Requires the rng stream `dropout`.
          blank: tokens to embed as zero vectors, boolean [batch, length]. Defaults to no tokens.
        """
        tokens_vd = self._table("token", "vd", vocabulary(self.vocab), self.token_init_std)
        x = lookup(tokens_vd, tokens) * self.scale
        if blank is not None:
            x = jnp.where(blank[..., None], 0.0, x)
        if self.position_embedding == "sinusoidal":
            places = jnp.arange(tokens.shape[1]) if position_ids is None else position_ids
            x = x + sinusoidal(places, self.width)
        elif self.position_embedding == "learned":
            init = metadata.with_axes(initial_positions, "_d")
            positions_td = self.param("position", init, (self.offset + self.max_length, self.width))
            first = slice(self.offset, self.offset + tokens.shape[1])
            x = x + (positions_td[first] if position_ids is None else positions_td[position_ids + self.offset])
        if self.token_types:
            # The table has few rows, so it is multiplied by one-hot types: the gradient of a gather would be a slow
            # scatter.
            types = jax.nn.one_hot(jnp.zeros_like(tokens) if token_types is None else token_types, self.token_types)
            x = x + jnp.einsum("btc,cd->btd", types, self._table("token_type", "cd", self.token_types))
        if self.norm is not None:
            x = self.norm(x)
        x = Dropout(self.dropout)(x.astype(compute_dtype(self.dtype)), train)
        return sharding.constrain(x, "brd"), tokens_vd

    def _table(self, name: str, axes: str, rows: int, size: float = 0.02) -> jax.Array:
        return self.param(name, metadata.with_axes(truncated_normal(size), axes), (rows, self.width))


def vocabulary(size: int | None) -> int:
    """Returns the vocabulary size of a model. Raises an error if it is not set.

    Raises:
      InputError: If `size` is None. A training run sets it to the vocabulary size of its tokenizer before it builds the
        model, so this happens only outside of a run.
    """
    if size is None:
        raise InputError("model.vocab=None: a run takes the tokenizer's size; without a run, expected a number")
    return size


def initial_positions(key: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Initializer of learned position embeddings: sinusoids that are larger than the initial token embeddings. `key` is
    not used.

    Neighboring positions then differ from the first training step on. At first, the loss of a small BERT stays at the
    level of predicting token frequencies; with this initializer it improves after half as many updates as with random
    position embeddings.
    """
    del key
    longest, width = shape
    return 0.1 * sinusoidal(jnp.arange(longest), width + width % 2)[:, :width]
