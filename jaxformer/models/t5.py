"""T5: an encoder–decoder with relative positions (Raffel et al. 2020)."""

import jax

from jaxformer.layers.attention import Attention
from jaxformer.layers.dropout import Dropout
from jaxformer.layers.embeddings import AddedPositions
from jaxformer.layers.linear import LMHead
from jaxformer.layers.mlp import GatedMlp, Mlp
from jaxformer.layers.norms import RMSNorm
from jaxformer.layers.positions import RelativePositions
from jaxformer.layers.transformer import Transformer
from jaxformer.models.encoder_decoder import EncoderDecoder


def t5_stack(
    width: int,
    depth: int,
    heads: int,
    mlp: int,
    head_dim: int = 64,
    gated: bool = False,
    bidirectional: bool = True,
    **fields,
) -> Transformer:
    """Returns a T5 stack: pre-norm with RMS norms, no biases, unscaled attention scores, relative positions.

    Args:
      width: width of the residual stream.
      depth: number of blocks.
      heads: number of attention heads of size `head_dim`, which need not divide the width.
      mlp: inner width of the MLP.
      head_dim: size of a head.
      gated: whether to use a gated GELU, as in v1.1, instead of a ReLU.
      bidirectional: True for an encoder, False for a decoder.
      fields: other fields of `Transformer`.
    """
    return Transformer(
        width,
        depth,
        heads,
        attention=Attention(head_dim=head_dim, bias=False, scale_scores=False),
        mlp=GatedMlp(mlp, "gelu_tanh") if gated else Mlp(mlp, "relu", bias=False),
        norm=RMSNorm(1e-6),
        position_embedding=RelativePositions(bidirectional=bidirectional),
        **fields,
    )


class T5(EncoderDecoder):
    """T5 model. The defaults are those of T5 base, version 1.0. Version 1.1 has gated stacks and
    `tie_embeddings=False`.
    """

    encoder: Transformer = t5_stack(768, 12, 12, 3072)
    """Transformer blocks of the encoder."""
    decoder: Transformer = t5_stack(768, 12, 12, 3072, bidirectional=False)
    """Transformer blocks of the decoder. Each block also attends to the output of the encoder."""
    vocab: int | None = 32_128
    """Vocabulary size including sentinels, at least the size of the tokenizer's vocabulary. If None, it is equal to
    that size.
    """
    position_embedding: AddedPositions = "none"
    """How positions are added to token embeddings. T5 adds none, because its stacks have relative positions."""
    scale_embeddings: bool = False
    """Whether to multiply embeddings by the square root of the width."""

    def setup(self):
        super().setup()
        self.drop = Dropout(self.encoder.dropout)

    def _token_init_std(self) -> float:
        return 1.0

    def _end(self, hidden: jax.Array, train: bool) -> jax.Array:
        return self.drop(hidden, train)

    def _head(self, hidden: jax.Array, table: jax.Array, train: bool) -> tuple[jax.Array, LMHead]:
        hidden, decoder = super()._head(hidden, table, train)
        # Unscaled embeddings are initialized with standard deviation 1, which is too large for an output layer.
        return hidden * hidden.shape[-1] ** -0.5 if self.tie_embeddings else hidden, decoder
