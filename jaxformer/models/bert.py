"""BERT: a bidirectional Transformer encoder with masked-LM and next-sentence heads (Devlin et al. 2019).

With rotary positions, local attention and gated MLPs, it is ModernBERT (Warner et al. 2024).
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxformer.errors import InputError
from jaxformer.layers.block import BlockInputs, take
from jaxformer.layers.embeddings import Embeddings, vocabulary
from jaxformer.layers.linear import DType, Linear, LMHead, decoded
from jaxformer.layers.masks import Mask
from jaxformer.layers.mlp import Activation, activation
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.transformer import Transformer, fresh
from jaxformer.models.base import POSITION_IDS, SEGMENTS, TOKENS, InputSpec, Model, ModelOutput, TokenInput
from jaxformer.models.flops import linear_flops, stack_flops
from jaxformer.parallel import metadata

Head = Literal["masked_lm", "pooler", "next_sentence"]
"""Name of a head of BERT: `masked_lm` predicts masked tokens, `pooler` computes one vector per sentence pair, and
`next_sentence` classifies this vector.
"""


@flax.struct.dataclass
class BertOutput(ModelOutput):
    """Output of BERT.

    `pooled` is computed from the first token of each sentence pair by a linear layer and tanh, [batch, pairs, embed]. A
    row has one pair, unless several pairs are packed into it. `hidden` is None if the call has `masked_positions` and
    does not request attention weights, because the last block then computes only the positions that the heads need.
    """

    prediction: jax.Array | None = None
    """Hidden vectors of the masked-LM head, [batch, predictions, embed]: one for each of the `masked_positions` of the
    call or, without them, one for each token.
    """
    lm_head: LMHead | None = None
    """Output layer that maps `prediction` to logits. Its kernel is the token embedding table, and it has a bias."""
    next_sentence_logits: jax.Array | None = None
    """Next-sentence logits, float32 [batch, pairs, 2]. Class 0: the second sentence follows the first. Class 1: it is
    from another document.
    """

    exported: ClassVar[tuple[str, ...]] = (*ModelOutput.exported, "next_sentence_logits")

    @property
    def logits(self) -> jax.Array | None:
        """Masked-LM logits, float32 [batch, predictions, vocab]. Computed on access, so that a loss can avoid storing
        all of them.
        """
        return decoded(self.lm_head, self.prediction, "bmv")


class PredictionHead(nn.Module):
    """Layers of the masked-LM head before the output layer: a linear layer, an activation and a norm.

    Also contains the bias of the output layer. The kernel of the output layer is the token embedding table.
    """

    vocab: int
    activation: Activation
    norm: nn.Module
    dense_bias: bool
    dtype: DType

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Transforms the vectors at masked positions, [batch, predictions, embed].

        Returns the transformed vectors, of the same shape, and the bias of the output layer, [vocab].
        """
        dense = Linear("bmi,id->bmd", (x.shape[-1], x.shape[-1]), self.dense_bias, self.dtype, name="dense")
        x = self.norm(activation(self.activation)(dense(x)))
        return x, self.param("bias", metadata.with_axes(nn.initializers.zeros, "v"), (self.vocab,))


class Bert(Model):
    """BERT model: an encoder with heads. By default, it has the two pretraining heads, for masked tokens and for the
    next sentence, and the pooler.
    """

    transformer: Transformer = Transformer(norm=LayerNorm(1e-12), norm_position="after")
    """Stack of Transformer blocks. Learned positions are added to the embeddings, unless the stack has a position
    scheme such as `Rotary`.
    """
    vocab: int | None = 30_522
    """Vocabulary size, at least the size of the tokenizer's vocabulary. If None, it is equal to that size."""
    max_length: int = 512
    """Maximum input length in tokens."""
    token_types: int = 2
    """Number of token types: 2 to distinguish the sentences A and B of a pair. 0 disables token-type embeddings."""
    position_offset: int = 0
    """Number of unused rows at the beginning of the position embedding table. RoBERTa has two."""
    prediction_heads: tuple[Head, ...] = ("masked_lm", "pooler", "next_sentence")
    """Heads of the model. `next_sentence` requires `pooler`, whose vector it classifies."""
    head_bias: bool = True
    """Whether the hidden linear layer of the masked-LM head has a bias. Its output layer always has one."""

    def __post_init__(self):
        super().__post_init__()
        if "next_sentence" in self.prediction_heads and "pooler" not in self.prediction_heads:
            raise InputError(
                f"model.prediction_heads={self.prediction_heads}: next_sentence reads the pooler; expected both"
            )

    def inputs(self) -> dict[str, InputSpec]:
        """Returns a dict that maps input names to the specifications of the arrays. It includes `token_types` only if
        there are several.
        """
        types = InputSpec("bt", "0 in sentence A, 1 in sentence B", optional=True)
        positions = InputSpec("bm", "positions of the tokens to predict", optional=True, exported=False)
        firsts = InputSpec("bc", "position of the first token of each example", optional=True, exported=False)
        return {
            "tokens": TOKENS,
            "segments": SEGMENTS,
            "position_ids": POSITION_IDS,
            **({"token_types": types} if self.token_types > 1 else {}),
            "masked_positions": positions,
            "cls_positions": firsts,
        }

    def stacks(self) -> dict[str, Transformer]:
        """Returns the stack of encoder blocks, keyed by the path of its parameters."""
        return {"transformer": self.transformer}

    def token_inputs(self) -> dict[str, TokenInput]:
        """Returns a dict that maps the input name `tokens` to its vocabulary size and maximum length."""
        return {"tokens": TokenInput(vocabulary(self.vocab), self.max_length)}

    def flops(self, sizes: Mapping[str, int]) -> float:
        """Returns the FLOPs of a forward pass.

        Args:
          sizes: number of rows `b`, of tokens per row `t`, of predicted tokens per row `m` (default t) and of sentence
            pairs per row `c` (default 1), keyed by these letters.
        """
        tokens, pairs, width = sizes["t"], sizes.get("c", 1), self.transformer.width
        outputs = sizes["m"] + pairs if "m" in sizes else None
        flops = stack_flops(self.transformer, tokens, outputs)
        if "masked_lm" in self.prediction_heads:
            predictions = sizes.get("m", tokens)
            flops += linear_flops(predictions, width, width) + linear_flops(predictions, width, vocabulary(self.vocab))
        if self.has_pooler:
            flops += linear_flops(pairs, width, width)
        if "next_sentence" in self.prediction_heads:
            flops += linear_flops(pairs, width, 2)
        return sizes["b"] * flops

    @property
    def head_fields(self) -> tuple[str, ...]:
        """Names of the fields that affect only the heads. A warm start may use a pretrained model with other values in
        these fields.
        """
        return "prediction_heads", "head_bias"

    def comparable(self) -> Self:
        """Returns a copy for comparing two models. Without a masked-LM head, its setting `head_bias` has the default,
        so that it does not count as a difference.
        """
        return self if "masked_lm" in self.prediction_heads else dataclasses.replace(self, head_bias=True)

    @property
    def has_pooler(self) -> bool:
        """Whether the model has the head `pooler`."""
        return "pooler" in self.prediction_heads

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        segments: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        token_types: jax.Array | None = None,
        masked_positions: jax.Array | None = None,
        cls_positions: jax.Array | None = None,
        train: bool = False,
        return_attention: bool = False,
    ) -> BertOutput:
        """Encodes tokens and applies the heads.

        Args:
          tokens: token ids, integers [batch, length].
          segments: integers [batch, length]. Tokens attend only to tokens with the same number, and 0 is padding.
            Defaults to one segment per row, without padding.
          position_ids: positions, integers [batch, length]. Defaults to 0, 1, 2, ...
          token_types: token types, integers [batch, length]: 0 in sentence A, 1 in B. Defaults to 0.
          masked_positions: indices of the tokens to predict, integers [batch, predictions]. Defaults to all tokens.
          cls_positions: index of the first token of each sentence pair, integers [batch, pairs]. Defaults to one pair
            per row, which starts at 0.
          train: whether to apply dropout. Requires the rng stream `dropout`.
          return_attention: whether to return the attention weights.
        """
        if tokens.shape[1] > self.max_length:
            raise ValueError(f"{tokens.shape[1]} tokens: the model has positions for {self.max_length}")
        x, table = self._embed(tokens, position_ids, token_types, train)
        mask = None if segments is None else Mask.of_segments(segments, segments)
        inputs = BlockInputs(mask=mask, position_ids=position_ids, train=train)
        cls_positions = jnp.zeros_like(tokens[:, :1]) if cls_positions is None else cls_positions
        if masked_positions is None or return_attention:
            output = self.transformer(x, dataclasses.replace(inputs, return_attention=return_attention))
            hidden = output.hidden
            firsts, masked = take(hidden, cls_positions), take(hidden, masked_positions)
        else:
            # The last block computes only the positions that the heads read.
            at, pairs = jnp.concatenate([cls_positions, masked_positions], axis=1), cls_positions.shape[1]
            output = self.transformer(x, dataclasses.replace(inputs, at=at))
            firsts, masked, hidden = output.hidden[:, :pairs], output.hidden[:, pairs:], None
        prediction, lm_head = self._predict(masked, table)
        pooled, next_sentence_logits = self._pool(firsts)
        return BertOutput(
            hidden=hidden,
            pooled=pooled,
            attention=output.attention,
            means=output.means,
            prediction=prediction,
            lm_head=lm_head,
            next_sentence_logits=next_sentence_logits,
        )

    def _embed(self, tokens, position_ids, token_types, train: bool) -> tuple[jax.Array, jax.Array]:
        """Embeds the tokens. Returns the embeddings, [batch, length, embed], and the token embedding table,
        [vocab, embed].
        """
        config = self.transformer
        embeddings = Embeddings(
            config.width,
            self.vocab,
            self.max_length,
            position_embedding="learned" if config.variant(0).position_embedding is None else "none",
            token_types=self.token_types,
            norm=fresh(config.norm),
            dropout=config.dropout,
            dtype=config.dtype,
            offset=self.position_offset,
            name="embeddings",
        )
        return embeddings(tokens, position_ids, token_types, train)

    def _predict(self, masked: jax.Array, table: jax.Array) -> tuple[jax.Array | None, LMHead | None]:
        """Applies the masked-LM head, except for its output layer, to the vectors at masked positions.

        Returns the transformed vectors, [batch, predictions, embed], and the output layer, whose kernel is `table`.
        Both are None if the model does not have this head.
        """
        if "masked_lm" not in self.prediction_heads:
            return None, None
        config, vocab = self.transformer, vocabulary(self.vocab)
        head = PredictionHead(
            vocab, config.mlp.activation, fresh(config.norm), self.head_bias, config.dtype, name="masked_lm"
        )
        prediction, bias = head(masked)
        return prediction, LMHead(table, bias, config.dtype)

    def _pool(self, firsts: jax.Array) -> tuple[jax.Array | None, jax.Array | None]:
        """Applies the pooler and the next-sentence head to the first vector of each sentence pair.

        Returns the pooled vectors, [batch, pairs, embed], and the next-sentence logits, float32 [batch, pairs, 2]. Each
        is None if the model does not have this head.
        """
        if not self.has_pooler:
            return None, None
        width, dtype = self.transformer.width, self.transformer.dtype
        pooled = jnp.tanh(Linear("bmi,id->bmd", (width, width), dtype=dtype, name="pooler")(firsts))
        if "next_sentence" not in self.prediction_heads:
            return pooled, None
        next_sentence = Linear("bmd,dc->bmc", (width, 2), dtype=dtype, name="next_sentence")
        return pooled, next_sentence(pooled).astype(jnp.float32)
