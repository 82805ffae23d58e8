"""BART: an encoder–decoder with learned positions, whose embeddings are normalized (Lewis et al. 2020)."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer.layers.dropout import Dropout
from jaxformer.layers.embeddings import AddedPositions, initial_positions
from jaxformer.layers.linear import DType, compute_dtype
from jaxformer.layers.mlp import Mlp
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.transformer import Transformer, fresh
from jaxformer.models.encoder_decoder import EncoderDecoder
from jaxformer.parallel import metadata, sharding

BASE = Transformer(768, 6, 12, mlp=Mlp(), norm=LayerNorm(1e-5), norm_position="after")
"""Stack of Transformer blocks with the sizes of BART base, for the encoder and for the decoder."""


class PositionsAndNorm(nn.Module):
    """Layers between the token embeddings and the Transformer blocks of BART: learned positions, a norm and dropout.

    Maps [batch, length, embed] to [batch, length, embed].
    """

    max_length: int
    """Maximum input length in tokens."""
    offset: int
    """Number of unused rows at the beginning of the position embedding table."""
    norm: nn.Module
    """Normalization of the sum of embeddings and positions."""
    dropout: float
    """Dropout rate after the normalization."""
    dtype: DType
    """Data type of the computation."""

    @nn.compact
    def __call__(self, x: jax.Array, position_ids: jax.Array | None, train: bool) -> jax.Array:
        shape = (self.offset + self.max_length, x.shape[-1])
        table = self.param("position", metadata.with_axes(initial_positions, "_d"), shape)
        places = jnp.arange(x.shape[1]) if position_ids is None else position_ids
        x = self.norm(x.astype(jnp.float32) + table[places + self.offset])
        x = Dropout(self.dropout)(x.astype(compute_dtype(self.dtype)), train)
        return sharding.constrain(x, "brd")


class Bart(EncoderDecoder):
    """BART model: an encoder–decoder in which the encoder and the decoder each have their own learned positions, and
    normalize their embeddings.
    """

    encoder: Transformer = BASE
    """Transformer blocks of the encoder."""
    decoder: Transformer = BASE
    """Transformer blocks of the decoder. Each block also attends to the output of the encoder."""
    vocab: int | None = 50_265
    """Vocabulary size of inputs and outputs, at least the size of the tokenizer's vocabulary. If None, it is equal to
    that size.
    """
    max_length: int = 1024
    """Maximum length of inputs and of outputs in tokens."""
    position_embedding: AddedPositions = "none"
    """How positions are added to the token embeddings that encoder and decoder share. BART uses `none`, because the
    encoder and the decoder each add their own learned positions.
    """
    scale_embeddings: bool = False
    """Whether to multiply token embeddings by the square root of the width."""
    head_bias: bool = True
    """Whether the output layer has a bias."""
    position_offset: int = 2
    """Number of unused rows at the beginning of the position embedding tables."""

    def setup(self):
        super().setup()

        def entry(stack):
            norm = fresh(stack.norm)
            return PositionsAndNorm(self.max_length, self.position_offset, norm, stack.dropout, stack.dtype)

        self.encoder_entry, self.decoder_entry = entry(self.encoder), entry(self.decoder)

    def _embed(self, tokens, position_ids, train: bool, side: Literal["encoder", "decoder"]):
        x, table = super()._embed(tokens, position_ids, False, side)  # Dropout is applied once, at the end.
        entry = self.encoder_entry if side == "encoder" else self.decoder_entry
        return entry(x, position_ids, train), table
