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
    """A stack of T5: pre-norm, RMS norms, no biases, scores without scale, relative positions.

    Args:
      width: of the residual stream.
      depth: blocks.
      heads: attention heads, of `head_dim` each, whatever the width.
      mlp: inner width.
      head_dim: size of a head.
      gated: a gated GELU, as in v1.1, instead of a ReLU.
      bidirectional: of an encoder; False of a decoder.
      fields: others of `Transformer`.
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
    """T5: v1.0 with the default fields, v1.1 with gated stacks and `tie_embeddings=False`."""

    encoder: Transformer = t5_stack(768, 12, 12, 3072)
    """The stack over the inputs."""
    decoder: Transformer = t5_stack(768, 12, 12, 3072, bidirectional=False)
    """The stack over the outputs; each block attends to the encoder's output too."""
    vocab: int | None = 32_128
    """Size of the vocabulary, sentinels included; at least the tokenizer's. None: the tokenizer's."""
    position_embedding: AddedPositions = "none"
    """How positions are added to embeddings."""
    scale_embeddings: bool = False
    """Whether embeddings are multiplied by the square root of the width."""

    def setup(self):
        super().setup()
        self.drop = Dropout(self.encoder.dropout)

    def _token_init_std(self) -> float:
        return 1.0

    def _end(self, hidden: jax.Array, train: bool) -> jax.Array:
        return self.drop(hidden, train)

    def _head(self, hidden: jax.Array, table: jax.Array, train: bool) -> tuple[jax.Array, LMHead]:
        hidden, decoder = super()._head(hidden, table, train)
        # Embeddings begin at the size of one where they are not scaled; as a head they would be too large.
        return hidden * hidden.shape[-1] ** -0.5 if self.tie_embeddings else hidden, decoder
