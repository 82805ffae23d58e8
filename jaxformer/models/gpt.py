"""GPT: a causal decoder (Radford et al. 2019); with rotary positions, RMS norms and gated MLPs, LLaMA (Touvron et al.
2023); with local and global blocks besides, Gemma 3 (Gemma Team 2025)."""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import flax.struct
import jax

from jaxformer.layers.block import BlockInputs
from jaxformer.layers.cache import Cache
from jaxformer.layers.embeddings import Embeddings
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
    """The output of GPT."""


class Gpt(Model):
    """A causal language model: `Gpt()` is GPT-2, and with `Rotary` positions in its stack it is LLaMA."""

    transformer: Transformer = Transformer(mlp=Mlp(activation="gelu_tanh"), norm=LayerNorm(1e-5))
    """The stack of blocks. Positions are learned and added to the embeddings, unless it has a scheme of its own."""
    vocab: int | None = 50_257
    """Size of the vocabulary; at least the tokenizer's. None: the tokenizer's."""
    max_length: int = 1024
    """The longest input, in tokens."""
    tie_embeddings: bool = True
    """Whether the head shares the token embeddings."""
    scale_embeddings: bool = False
    """Whether embeddings are multiplied by the square root of the width, as Gemma's are."""

    is_generative: ClassVar[bool] = True

    def inputs(self) -> dict[str, InputSpec]:
        """The arrays that a call takes."""
        prefix = InputSpec("bt", "True for tokens that attend to each other both ways", "bool", True, False)
        return {"tokens": TOKENS, "segments": SEGMENTS, "position_ids": POSITION_IDS, "prefix": prefix}

    def stacks(self) -> dict[str, Transformer]:
        """The decoder."""
        return {"transformer": self.transformer}

    def token_inputs(self) -> dict[str, TokenInput]:
        """The limits of `tokens`."""
        return {"tokens": TokenInput(self.vocab, self.max_length)}

    def flops(self, sizes: Mapping[str, int]) -> float:
        """Operations of a forward pass on b rows of t tokens."""
        head = linear_flops(sizes["t"], self.transformer.width, self.vocab)
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
        """Predicts each next token.

        Args:
          tokens: integers [b, t].
          segments: integers [b, t]; tokens attend within their segment, 0 is padding. Default: one segment.
          position_ids: integers [b, t]. Default: 0, 1, 2, ...
          prefix: boolean [b, t]: tokens that see each other both ways. Default: none.
          cache: of the tokens before these. Then `position_ids` are needed, and `segments` are the cache's.
          train: whether to drop out; needs the rng stream `dropout`.
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
            table = self.param("head", init, (self.vocab, config.width))
        return GptOutput(
            hidden=output.hidden,
            attention=output.attention,
            means=output.means,
            lm_head=LMHead(table),
            cache=output.cache,
        )
