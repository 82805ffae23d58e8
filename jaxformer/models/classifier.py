"""A pretrained encoder or decoder with a linear head: classes of texts or of tokens (Devlin et al. 2019, §4)."""

from typing import Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxformer.errors import InputError
from jaxformer.layers.dropout import Dropout
from jaxformer.layers.linear import Linear
from jaxformer.layers.transformer import take
from jaxformer.models.bert import Bert
from jaxformer.models.gpt import Gpt

Pooling = Literal["pooler", "first", "mean", "last", "tokens"]
"""What the head reads of an example: BERT's pooler, the first token, the mean of all, the last one, or each."""


@flax.struct.dataclass
class ClassifierOutput:
    """What a classifier computed."""

    logits: jax.Array
    """float32 [b, c, n]: of each example in a row, for n labels; [b, t, n] where it reads tokens."""
    vectors: jax.Array
    """What the head read, [b, c, d] or [b, t, d]."""

    @property
    def features(self) -> jax.Array:
        """What the head reads."""
        return self.vectors


class Classifier(nn.Module):
    """A model of text with one linear head; its parameters are `backbone`, those of the model alone, and `head`."""

    backbone: nn.Module
    """A `Bert` or a `Gpt`; what was pretrained."""
    labels: tuple[str, ...]
    """The name of each class, in the order of their numbers; of a regression, the name of what is predicted."""
    pooling: Pooling = "pooler"
    """What the head reads; a decoder's `last` token alone has read the whole text."""
    dropout: float = 0.1
    """Rate of dropout on what the head reads."""
    bias: bool = True
    """Whether the head has a bias."""

    def __post_init__(self):
        super().__post_init__()
        if not isinstance(self.backbone, Bert | Gpt):
            kind = type(self.backbone).__name__
            raise InputError(f"model.backbone={kind}: expected a Bert or a Gpt; an encoder-decoder answers in text")
        if self.pooling == "pooler" and "pooler" not in getattr(self.backbone, "prediction_heads", ()):
            raise InputError("model.pooling=pooler: the backbone has none; expected first, mean, last or tokens")
        if not self.labels or len(set(self.labels)) < len(self.labels):
            raise InputError(f"model.labels={self.labels}: expected one name or more, each once")
        if not 0 <= self.dropout < 1:
            raise InputError(f"model.dropout={self.dropout}: expected 0 or more, below 1")

    @property
    def vocab(self) -> int:
        """The backbone's."""
        return self.backbone.vocab

    @property
    def max_length(self) -> int:
        """The backbone's."""
        return self.backbone.max_length

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        segments: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        token_types: jax.Array | None = None,
        cls_positions: jax.Array | None = None,
        train: bool = False,
    ) -> ClassifierOutput:
        """Classifies each example of each row, or each token.

        Args:
          tokens: integers [b, t].
          segments: integers [b, t]: the c-th example of a row has number c + 1, 0 is padding. Default: one example.
          position_ids: integers [b, t]. Default: 0, 1, 2, ...
          token_types: integers [b, t], for a Bert with several types: 0 in sentence A, 1 in B. Default: 0.
          cls_positions: integers [b, c]: the first token of each example. Default: 0.
          train: whether to drop out; needs the rng stream `dropout`.
        """
        segments = jnp.ones_like(tokens) if segments is None else segments
        cls_positions = jnp.zeros_like(tokens[:, :1]) if cls_positions is None else cls_positions
        inputs = {"tokens": tokens, "segments": segments, "position_ids": position_ids, "train": train}
        if isinstance(self.backbone, Bert):
            inputs |= {"cls_positions": cls_positions}
            # RoBERTa has one type: it tells two texts apart by the tokens between them.
            inputs |= {"token_types": token_types} if self.backbone.token_types > 1 else {}
        if self.pooling == "pooler":
            # No tokens are asked for: the last block computes the first ones alone.
            vectors = self.backbone(**inputs, masked_positions=tokens[:, :0]).pooled
        else:
            vectors = self._read(self.backbone(**inputs).hidden, segments, cls_positions)
        vectors = Dropout(self.dropout)(vectors, train)
        shape = (vectors.shape[-1], len(self.labels))
        head = Linear("bmd,dc->bmc", shape, self.bias, self.backbone.transformer.dtype, name="head")
        return ClassifierOutput(head(vectors).astype(jnp.float32), vectors)

    def _read(self, hidden, segments, cls_positions):
        if self.pooling == "tokens":
            return hidden
        if self.pooling == "first":
            return take(hidden, cls_positions)
        examples = jnp.arange(1, cls_positions.shape[1] + 1)
        belongs = segments[:, None] == examples[:, None]  # [b, c, t]
        if self.pooling == "last":
            index = jnp.arange(segments.shape[1])
            return take(hidden, jnp.max(jnp.where(belongs, index, 0), axis=-1))
        share = belongs / jnp.maximum(belongs.sum(-1, keepdims=True), 1)
        return jnp.einsum("bct,btd->bcd", share.astype(hidden.dtype), hidden)
