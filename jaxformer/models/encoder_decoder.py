"""Encoder–decoder model for text (Vaswani et al. 2017)."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxformer.errors import InputError
from jaxformer.layers.block import BlockInputs
from jaxformer.layers.cache import Cache
from jaxformer.layers.embeddings import AddedPositions, Embeddings, vocabulary
from jaxformer.layers.linear import LMHead, truncated_normal
from jaxformer.layers.masks import Mask
from jaxformer.layers.mlp import Mlp
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.transformer import Transformer, separate
from jaxformer.metrics.means import Mean, added
from jaxformer.models.base import POSITION_IDS, SEGMENTS, TOKENS, InputSpec, LMOutput, Memory, Model, TokenInput
from jaxformer.models.flops import linear_flops, stack_flops
from jaxformer.parallel import metadata


def check_widths(encoder: Transformer, decoder: Transformer, why: str = "") -> None:
    """Raises InputError if a decoder does not have the width of its encoder. `why` is the reason, for the message."""
    if encoder.width != decoder.width:
        raise InputError(f"model.decoder.width={decoder.width}: {why}expected the encoder's width, {encoder.width}")


def refuse_prefix(prefix: jax.Array | None) -> None:
    """Raises ValueError if `Model.decode` of an encoder–decoder is given a prefix."""
    if prefix is not None:
        raise ValueError("the decoder of an encoder–decoder has no prefix with attention in both directions")


@flax.struct.dataclass
class EncoderDecoderOutput(LMOutput):
    """Output of an encoder–decoder. `hidden`, `lm_head` and `cache` are those of the decoder."""

    encoded: jax.Array | None = None
    """Output vectors of the encoder, [batch, input_length, embed]."""

    @property
    def features(self) -> jax.Array | None:
        """Vectors to use as features in other tasks: the encoder output, [batch, input_length, embed]."""
        return self.encoded


BASE = Transformer(512, 6, 8, mlp=Mlp(activation="relu"), norm=LayerNorm(1e-5), norm_position="after")
"""Stack of Transformer blocks with the sizes of the base model of Vaswani et al. (2017), for the encoder and for the
decoder.
"""


class EncoderDecoder(Model):
    """Encoder–decoder model: an encoder for input tokens, and a causal decoder for output tokens that attends to the
    encoder output.
    """

    is_generative: ClassVar[bool] = True
    is_encoder_decoder: ClassVar[bool] = True

    encoder: Transformer = BASE
    """Transformer blocks of the encoder."""
    decoder: Transformer = BASE
    """Transformer blocks of the decoder. Each block also attends to the output of the encoder."""
    vocab: int | None = 37_000
    """Vocabulary size of inputs and outputs, at least the size of the tokenizer's vocabulary. If None, it is equal to
    that size.
    """
    max_length: int = 512
    """Maximum length of inputs and of outputs in tokens."""
    position_embedding: AddedPositions = "sinusoidal"
    """How positions are added to token embeddings: as a `learned` table, as `sinusoidal` vectors, or `none`."""
    scale_embeddings: bool = True
    """Whether to multiply token embeddings by the square root of the width, as in the paper."""
    tie_embeddings: bool = True
    """Whether the kernel of the output layer is the token embedding table."""
    head_bias: bool = False
    """Whether the output layer has a bias, as in Marian. The bias is loaded from pretrained weights and is not trained.
    """
    zero_start: bool = False
    """Whether the first decoder input is a zero vector instead of the embedding of the decoder start token, as in
    Marian. Only models with this setting can be exported in the Marian format, which CTranslate2 supports.
    """

    def __post_init__(self):
        separate(self, "decoder", "encoder")
        super().__post_init__()
        check_widths(self.encoder, self.decoder, "the embeddings are shared; ")

    def inputs(self) -> dict[str, InputSpec]:
        """Returns a dict that maps input names to the specifications of the arrays: axes, data type and meaning."""
        return {
            "inputs": InputSpec("bs", "token ids of the encoder input"),
            "tokens": TOKENS,
            "input_segments": InputSpec("bs", "segments of `inputs`, like `segments`", optional=True),
            "segments": SEGMENTS,
            "input_position_ids": dataclasses.replace(POSITION_IDS, axes="bs"),
            "position_ids": POSITION_IDS,
        }

    def stacks(self) -> dict[str, Transformer]:
        """Returns the stacks of encoder and decoder blocks, keyed by the paths of their parameters."""
        return {"encoder": self.encoder, "decoder": self.decoder}

    def token_inputs(self) -> dict[str, TokenInput]:
        """Returns a dict that maps the input names `inputs` and `tokens` to their vocabulary size and maximum length,
        which are the same for both.
        """
        return dict.fromkeys(("inputs", "tokens"), TokenInput(vocabulary(self.vocab), self.max_length))

    def flops(self, sizes: Mapping[str, int]) -> float:
        """Returns the FLOPs of a forward pass.

        Args:
          sizes: number of rows `b`, of input tokens per row `s`, and of output tokens per row `t`, keyed by these
            letters.
        """
        encoder = stack_flops(self.encoder, sizes["s"])
        decoder = stack_flops(self.decoder, sizes["t"], memory=sizes["s"], causal=True)
        return sizes["b"] * (encoder + decoder + linear_flops(sizes["t"], self.decoder.width, vocabulary(self.vocab)))

    def setup(self):
        width = self.encoder.width
        self.embeddings = Embeddings(
            width,
            self.vocab,
            self.max_length,
            self.position_embedding,
            scale=width**0.5 if self.scale_embeddings else 1.0,
            token_init_std=self._token_init_std(),
            dropout=self.encoder.dropout,
            dtype=self.encoder.dtype,
        )
        if not self.tie_embeddings:
            init = metadata.with_axes(truncated_normal(0.02), "vd")
            self.head = self.param("head", init, (vocabulary(self.vocab), width))
        if self.head_bias:
            self.bias = self.param("bias", metadata.with_axes(nn.initializers.zeros, "v"), (vocabulary(self.vocab),))

    def __call__(
        self,
        inputs: jax.Array,
        tokens: jax.Array,
        input_segments: jax.Array | None = None,
        segments: jax.Array | None = None,
        input_position_ids: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        train: bool = False,
    ) -> EncoderDecoderOutput:
        """Runs the encoder and the decoder, to predict the next token after each token of the output.

        Args:
          inputs: token ids of the encoder input, integers [batch, input_length].
          tokens: token ids of the decoder input, integers [batch, length]: the decoder start token, followed by the
            output.
          input_segments: integers [batch, input_length]. Inputs attend only to inputs with the same number, and 0 is
            padding. Defaults to one segment per row, without padding.
          segments: integers [batch, length]. Tokens attend only to earlier tokens and to inputs with the same number,
            and 0 is padding. Defaults to one segment per row, without padding.
          input_position_ids: positions of the inputs, integers [batch, input_length]. Defaults to 0, 1, 2, ...
          position_ids: positions of `tokens`, integers [batch, length]. Defaults to 0, 1, 2, ...
          train: whether to apply dropout. Requires the rng stream `dropout`.
        """
        encoded, means = self._encode(inputs, input_segments, input_position_ids, train)
        memory_mask = None
        if input_segments is not None:
            segments = jnp.ones_like(tokens) if segments is None else segments
            memory_mask = Mask.of_segments(segments, input_segments)
        x, table = self._embed(tokens, position_ids, train, "decoder")
        mask = Mask.causal(tokens.shape[1], segments)
        given = BlockInputs(mask=mask, position_ids=position_ids, memory=encoded, memory_mask=memory_mask, train=train)
        output = self.decoder(x, given)
        hidden, lm_head = self._head(output.hidden, table, train)
        means = added(means, output.means)
        return EncoderDecoderOutput(hidden=hidden, lm_head=lm_head, encoded=encoded, means=means)

    def encode(
        self,
        inputs: jax.Array,
        segments: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Runs only the encoder. Returns its output, [batch, input_length, embed].

        The arguments `segments` and `position_ids` correspond to `input_segments` and `input_position_ids` of a call.
        """
        return self._encode(inputs, segments, position_ids, train)[0]

    def _encode(self, inputs, segments, position_ids, train: bool) -> tuple[jax.Array, dict[str, Mean]]:
        """Runs the encoder. Returns its output vectors, and its auxiliary losses and metrics keyed by name."""
        x, _ = self._embed(inputs, position_ids, train, "encoder")
        mask = None if segments is None else Mask.of_segments(segments, segments)
        output = self.encoder(x, BlockInputs(mask=mask, position_ids=position_ids, train=train))
        return self._end(output.hidden, train), output.means

    def encode_prompt(self, inputs: jax.Array, segments: jax.Array, position_ids: jax.Array | None = None) -> Memory:
        """Runs the encoder on the inputs of prompts, such as texts to translate. Same arguments as `encode`. Returns
        the output with its mask, for `decode`.
        """
        return Memory(self.encode(inputs, segments, position_ids), segments)

    def decode(
        self,
        tokens: jax.Array,
        position_ids: jax.Array,
        cache: Cache,
        memory: jax.Array | None = None,
        prefix: jax.Array | None = None,
    ) -> EncoderDecoderOutput:
        """Predicts the next token after each of `tokens`, which follow the tokens in the cache. Same arguments as
        `Model.decode`.

        `cache.memory_segments` contains the mask of the encoder output.
        """
        refuse_prefix(prefix)
        x, table = self._embed(tokens, position_ids, False, "decoder")
        output = self.decoder(x, BlockInputs(position_ids=position_ids, memory=memory), cache)
        hidden, lm_head = self._head(output.hidden, table, False)
        return EncoderDecoderOutput(hidden=hidden, lm_head=lm_head, cache=output.cache)

    def _embed(self, tokens, position_ids, train: bool, side: Literal["encoder", "decoder"]):
        """Embeds the tokens of the encoder or the decoder. Returns the embeddings, [batch, length, embed], and the
        token embedding table, [vocab, embed].
        """
        if tokens.shape[1] > self.max_length:
            raise ValueError(f"{tokens.shape[1]} tokens: the model has positions for {self.max_length}")
        blank = None
        if side == "decoder" and self.zero_start:
            blank = (
                jnp.broadcast_to(jnp.arange(tokens.shape[1]) if position_ids is None else position_ids, tokens.shape)
                == 0
            )
        return self.embeddings(tokens, position_ids, train=train, blank=blank)

    def _token_init_std(self) -> float:
        """Returns the standard deviation of token embeddings at random initialization."""
        return self.encoder.width**-0.5

    def _end(self, hidden: jax.Array, train: bool) -> jax.Array:
        """Transforms the output of the encoder or the decoder. By default, returns it unchanged. Subclasses may
        override this method, for example to apply dropout.
        """
        del train
        return hidden

    def _head(self, hidden: jax.Array, table: jax.Array, train: bool) -> tuple[jax.Array, LMHead]:
        """Returns the vectors to compute logits from, [batch, length, embed], and the output layer that maps them to
        logits. `hidden` is the output of the decoder, and `table` the token embedding table.
        """
        table = table if self.tie_embeddings else self.head
        bias = jax.lax.stop_gradient(self.bias) if self.head_bias else None
        return self._end(hidden, train), LMHead(table, bias, self.decoder.dtype)
