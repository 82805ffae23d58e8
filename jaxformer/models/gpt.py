"""GPT: a causal Transformer decoder (Radford et al. 2019), which also covers LLaMA and Gemma 3.

With rotary positions, RMS norms and gated MLPs, it is LLaMA (Touvron et al. 2023). If blocks with local and with global
attention alternate in addition, it is Gemma 3 (Gemma Team 2025).
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import flax.struct
import jax

from jaxformer.layers.block import BlockInputs
from jaxformer.layers.cache import Cache
from jaxformer.layers.embeddings import Embeddings, vocabulary
from jaxformer.layers.linear import LMHead, truncated_normal
from jaxformer.layers.masks import Mask
from jaxformer.layers.mlp import Mlp
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.transformer import Transformer
from jaxformer.models.base import POSITION_IDS, SEGMENTS, TOKENS, InputSpec, LMOutput, Model, TokenInput
from jaxformer.models.flops import linear_flops, stack_flops
from jaxformer.parallel import metadata


@flax.struct.dataclass
class GptOutput(LMOutput):
    """Output of GPT: hidden vectors, output layer, cache if one was given, and attention weights if requested."""


class Gpt(Model):
    """Causal language model. `Gpt()` is GPT-2. With rotary positions, RMS norms and gated MLPs in its stack, it is
    LLaMA.
    """

    transformer: Transformer = Transformer(mlp=Mlp(activation="gelu_tanh"), norm=LayerNorm(1e-5))
    """Stack of Transformer blocks. Learned positions are added to the embeddings, unless the stack has a position
    scheme such as `Rotary`.
    """
    vocab: int | None = 50_257
    """Vocabulary size, at least the size of the tokenizer's vocabulary. If None, it is equal to that size."""
    max_length: int = 1024
    """Maximum input length in tokens."""
    tie_embeddings: bool = True
    """Whether the kernel of the output layer is the token embedding table."""
    scale_embeddings: bool = False
    """Whether to multiply token embeddings by the square root of the width, as in Gemma."""

    is_generative: ClassVar[bool] = True

    def inputs(self) -> dict[str, InputSpec]:
        """Returns a dict that maps input names to the specifications of the arrays: axes, data type and meaning."""
        prefix = InputSpec("bt", "True for tokens that attend to each other in both directions", "bool", True, False)
        return {"tokens": TOKENS, "segments": SEGMENTS, "position_ids": POSITION_IDS, "prefix": prefix}

    def stacks(self) -> dict[str, Transformer]:
        """Returns the stack of decoder blocks, keyed by the path of its parameters."""
        return {"transformer": self.transformer}

    def token_inputs(self) -> dict[str, TokenInput]:
        """Returns a dict that maps the input name `tokens` to its vocabulary size and maximum length."""
        return {"tokens": TokenInput(vocabulary(self.vocab), self.max_length)}

    def flops(self, sizes: Mapping[str, int]) -> float:
        """Returns the FLOPs of a forward pass. `sizes["b"]` is the number of rows, and `sizes["t"]` the number of
        tokens per row.
        """
        head = linear_flops(sizes["t"], self.transformer.width, vocabulary(self.vocab))
        return sizes["b"] * (stack_flops(self.transformer, sizes["t"], causal=True) + head)

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        segments: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        prefix: jax.Array | None = None,
        cache: Cache | None = None,
        train: bool = False,
        return_attention: bool = False,
    ) -> GptOutput:
        """Predicts the next token after each token.

        Args:
          tokens: token ids, integers [batch, length].
          segments: integers [batch, length]. Tokens attend only to tokens with the same number, and 0 is padding.
            Defaults to one segment per row, without padding.
          position_ids: positions, integers [batch, length]. Defaults to 0, 1, 2, ...
          prefix: True for tokens that attend to each other in both directions, boolean [batch, length]. If None, all
            attention is causal.
          cache: keys and values of earlier tokens, for decoding. With a cache, `position_ids` is required, and
            `segments` is not used, because the cache contains the segments.
          train: whether to apply dropout. Requires the rng stream `dropout`.
          return_attention: whether to return the attention weights.
        """
        if tokens.shape[1] > self.max_length:
            raise ValueError(f"{tokens.shape[1]} tokens: the model has positions for {self.max_length}")
        config = self.transformer
        added = "learned" if config.position_embedding is None else "none"
        embeddings = Embeddings(
            config.width,
            self.vocab,
            self.max_length,
            position_embedding=added,
            scale=config.width**0.5 if self.scale_embeddings else 1.0,
            dropout=config.dropout,
            dtype=config.dtype,
            name="embeddings",
        )
        x, table = embeddings(tokens, position_ids, train=train)
        mask = Mask.causal(tokens.shape[1], segments) if prefix is None else Mask.prefix(prefix, segments)
        inputs = BlockInputs(mask=mask, position_ids=position_ids, train=train, return_attention=return_attention)
        output = config(x, inputs, cache)
        if not self.tie_embeddings:
            init = metadata.with_axes(truncated_normal(0.02), "vd")
            table = self.param("head", init, (vocabulary(self.vocab), config.width))
        return GptOutput(
            hidden=output.hidden,
            attention=output.attention,
            means=output.means,
            lm_head=LMHead(table, dtype=self.transformer.dtype),
            cache=output.cache,
        )
