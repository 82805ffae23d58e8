"""T5: an encoder–decoder with relative position biases (Raffel et al. 2020)."""

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
    """Returns a stack of T5 blocks: pre-norm with RMS norms, no biases, unscaled attention scores, and relative
    positions.

    Args:
      width: width of the residual stream.
      depth: number of blocks.
      heads: number of attention heads. Their total size, heads · head_dim, may differ from the width.
      mlp: size of the hidden layer of the MLP.
      head_dim: size of each attention head.
      gated: True for a gated GELU MLP, as in T5 version 1.1, False for a ReLU MLP.
      bidirectional: whether relative positions distinguish earlier and later keys: True for an encoder, False for a
        decoder.
      fields: values of other fields of `Transformer`.
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
    """T5 model. The defaults are those of T5 base, version 1.0. For version 1.1, use stacks with gated MLPs and
    `tie_embeddings=False`.
    """

    encoder: Transformer = t5_stack(768, 12, 12, 3072)
    """Transformer blocks of the encoder."""
    decoder: Transformer = t5_stack(768, 12, 12, 3072, bidirectional=False)
    """Transformer blocks of the decoder. Each block also attends to the output of the encoder."""
    vocab: int | None = 32_128
    """Vocabulary size including sentinel tokens, at least the size of the tokenizer's vocabulary. If None, it is equal
    to that size.
    """
    position_embedding: AddedPositions = "none"
    """How positions are added to token embeddings. T5 uses `none`, because its attention layers use relative positions.
    """
    scale_embeddings: bool = False
    """Whether to multiply token embeddings by the square root of the width."""

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
