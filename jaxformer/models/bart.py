"""BART: an encoder–decoder with learned positions and normalised embeddings (Lewis et al. 2020)."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer.layers.dropout import Dropout
from jaxformer.layers.embeddings import AddedPositions, first_positions
from jaxformer.layers.linear import DType, compute_dtype
from jaxformer.layers.mlp import Mlp
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.transformer import Transformer, fresh
from jaxformer.models.encoder_decoder import EncoderDecoder
from jaxformer.parallel import metadata, sharding

BASE = Transformer(768, 6, 12, mlp=Mlp(), norm=LayerNorm(1e-5), norm_position="after")
"""Each stack of the paper's base model."""


class Entry(nn.Module):
    """Adds learned positions, a norm and dropout to the embeddings before a stack; [b, t, d] → [b, t, d]."""

    max_length: int
    """The longest input, in tokens."""
    offset: int
    """Rows of the table before that of position 0."""
    norm: nn.Module
    """The norm of the sum."""
    dropout: float
    """Rate of dropout on the result."""
    dtype: DType
    """The type of the result."""

    @nn.compact
    def __call__(self, x: jax.Array, position_ids: jax.Array | None, train: bool) -> jax.Array:
        shape = (self.offset + self.max_length, x.shape[-1])
        table = self.param("position", metadata.with_axes(first_positions, "td"), shape)
        places = jnp.arange(x.shape[1]) if position_ids is None else position_ids
        x = self.norm(x.astype(jnp.float32) + table[places + self.offset])
        x = Dropout(self.dropout)(x.astype(compute_dtype(self.dtype)), train)
        return sharding.constrain(x, "btd")


class Bart(EncoderDecoder):
    """The encoder–decoder whose stacks each have positions of their own, and a norm of the embeddings."""

    encoder: Transformer = BASE
    """The stack over the inputs."""
    decoder: Transformer = BASE
    """The stack over the outputs; each block attends to the encoder's output too."""
    vocab: int | None = 50_265
    """Size of the vocabulary, one for inputs and outputs; at least the tokenizer's. None: the tokenizer's."""
    max_length: int = 1024
    """The longest input and output, in tokens."""
    position_embedding: AddedPositions = "none"
    """Positions added to the embeddings that both stacks share; each stack adds its own positions after them."""
    scale_embeddings: bool = False
    """Whether embeddings are multiplied by the square root of the width."""
    head_bias: bool = True
    """Whether the head has a bias."""
    position_offset: int = 2
    """Rows of the tables of positions before that of position 0."""

    def setup(self):
        super().setup()

        def entry(stack):
            norm = fresh(stack.norm)
            return Entry(self.max_length, self.position_offset, norm, stack.dropout, stack.dtype)

        self.encoder_entry, self.decoder_entry = entry(self.encoder), entry(self.decoder)

    def _embed(self, tokens, position_ids, train: bool, side: Literal["encoder", "decoder"]):
        x, table = super()._embed(tokens, position_ids, False, side)  # Dropout comes once, at the end.
        entry = self.encoder_entry if side == "encoder" else self.decoder_entry
        return entry(x, position_ids, train), table
