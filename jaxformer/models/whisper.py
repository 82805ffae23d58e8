"""Whisper: an encoder–decoder that writes down what is said in a sound (Radford et al. 2022)."""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.errors import InputError
from jaxformer.layers.attention import Attention
from jaxformer.layers.block import BlockInputs
from jaxformer.layers.cache import Cache
from jaxformer.layers.dropout import Dropout
from jaxformer.layers.embeddings import Embeddings, vocabulary
from jaxformer.layers.linear import DType, Linear, LMHead, compute_dtype
from jaxformer.layers.masks import Mask
from jaxformer.layers.mlp import Mlp, activation
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.transformer import Transformer, TransformerOutput, fresh
from jaxformer.metrics.means import added
from jaxformer.models.base import POSITION_IDS, SEGMENTS, TOKENS, InputSpec, LMOutput, Memory, Model, TokenInput
from jaxformer.models.flops import linear_flops, stack_flops
from jaxformer.parallel import metadata, sharding

TAPS, STRIDE = 3, 2
"""Number of neighboring frames that a convolution of the stem combines, and stride of the second one."""


def whisper_stack(width: int, depth: int, heads: int, **fields) -> Transformer:
    """Returns an encoder or decoder stack of Whisper. `fields` are further fields of the stack."""
    settings = {"dropout": 0.0, "attention_dropout": 0.0, "mlp": Mlp(), "norm": LayerNorm(1e-5)}
    return Transformer(width, depth, heads, attention=Attention(key_bias=False), **(settings | fields))


TINY = whisper_stack(384, 4, 6)
"""Encoder and decoder stack of the smallest model in the paper."""


@flax.struct.dataclass
class WhisperOutput(LMOutput):
    """Output of Whisper. `hidden`, `lm_head` and `cache` belong to the decoder."""

    encoded: jax.Array | None = None
    """Output vectors of the encoder, [batch, frames / 2, embed]."""
    memory_attention: jax.Array | None = None
    """Weights of cross-attention, float32 [layers, batch, heads, tokens, frames / 2]. None unless requested."""

    @property
    def features(self) -> jax.Array | None:
        """Vectors for downstream use: one per two frames of the sound, [batch, frames / 2, embed]."""
        return self.encoded


class AudioStem(nn.Module):
    """Two convolutions over frames, each with GELU; the second halves their number: [batch, frames, mels] →
    [batch, frames / 2, embed].
    """

    width: int
    """Size of the output vectors."""
    dtype: DType = "auto"
    """Type to compute in."""

    @nn.compact
    def __call__(self, log_mel: jax.Array) -> jax.Array:
        x = log_mel.astype(compute_dtype(self.dtype))
        shape = (TAPS, log_mel.shape[-1], self.width)
        x = Linear("btwn,wnd->btd", shape, dtype=self.dtype, name="first")(_neighbors(x, 1))
        x = activation("gelu")(x)
        x = Linear("btwi,wid->btd", (TAPS, self.width, self.width), dtype=self.dtype, name="second")(
            _neighbors(x, STRIDE)
        )
        return activation("gelu")(x)


def _neighbors(x: jax.Array, stride: int) -> jax.Array:
    """Returns every `stride`-th frame together with the frames before and after it, zeros at the ends:
    [batch, frames / stride, 3, size]. A product with these is a convolution.
    """
    padded = jnp.pad(x, [(0, 0), (1, 1), (0, 0)])
    return jnp.stack([padded[:, tap : tap + x.shape[1] : stride] for tap in range(TAPS)], axis=2)


def sinusoids(shape: tuple[int, ...]) -> np.ndarray:
    """Computes the encoder's positions, float32 of shape [positions, embed]: sines, followed by cosines, with
    wavelengths from 2π to 10,000 · 2π.
    """
    length, width = shape
    rates = np.exp(-np.log(10_000) / (width // 2 - 1) * np.arange(width // 2, dtype=np.float32))
    angles = np.arange(length, dtype=np.float32)[:, None] * rates[None]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


class AudioPositions(nn.Module):
    """Adds fixed positions to [batch, positions, embed], and applies dropout. Positions are parameters that are not
    trained, because pretrained weights contain them in lower precision. Their gradient is 0 if `train` is set.
    """

    dropout: float
    """Dropout rate of the sum."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        def init(key, shape):
            del key
            return jnp.asarray(sinusoids(shape))

        # Its name keeps weight decay off.
        table = self.param("bias", metadata.with_axes(init, "_d"), x.shape[1:])
        table = jax.lax.stop_gradient(table) if train else table
        x = x + table.astype(x.dtype)
        return sharding.constrain(Dropout(self.dropout)(x, train), "brd")


class Whisper(Model):
    """Whisper model: an encoder of log-mel spectrograms, and a causal decoder of text that attends to its output."""

    is_generative: ClassVar[bool] = True
    is_encoder_decoder: ClassVar[bool] = True

    encoder: Transformer = TINY
    """Transformer blocks of the encoder."""
    decoder: Transformer = TINY
    """Stack of the decoder. Each block also attends to the output of the encoder."""
    vocab: int | None = 51_865
    """Vocabulary size, at least that of the tokenizer and its timestamps. If None, uses that of the tokenizer."""
    max_length: int = 448
    """Maximum length of outputs in tokens, with their prefix."""
    frames: int = 3000
    """Number of frames of each input. A frame has 10 ms, so the default is 30 seconds."""
    mels: int = 80
    """Number of mel bands of a frame."""

    def __post_init__(self):
        if self.decoder is self.encoder:
            # Linen shares the parameters of one instance, but the two stacks have separate parameters.
            object.__setattr__(self, "decoder", fresh(self.encoder))
        super().__post_init__()
        if self.encoder.width != self.decoder.width:
            raise InputError(
                f"model.decoder.width={self.decoder.width}: expected the encoder's width, {self.encoder.width}"
            )
        if self.encoder.width % 2 or self.encoder.width < 4:
            raise InputError(f"model.encoder.width={self.encoder.width}: expected an even number from 4 on")
        for field, value in (("frames", self.frames), ("mels", self.mels), ("max_length", self.max_length)):
            if value < 1:
                raise InputError(f"model.{field}={value}: expected at least 1")
        if self.frames % STRIDE:
            raise InputError(f"model.frames={self.frames}: expected an even number")

    def inputs(self) -> dict[str, InputSpec]:
        """Returns the specifications of the input arrays."""
        return {
            "log_mel": InputSpec("ban", "log-mel spectrograms, as computed by `LogMel`", "float32"),
            "tokens": TOKENS,
            "segments": SEGMENTS,
            "position_ids": POSITION_IDS,
        }

    def fixed_sizes(self) -> dict[str, int]:
        """Returns the number of frames and of mel bands."""
        return {"a": self.frames, "n": self.mels}

    def stacks(self) -> dict[str, Transformer]:
        """Returns the encoder and decoder stacks."""
        return {"encoder": self.encoder, "decoder": self.decoder}

    def token_inputs(self) -> dict[str, TokenInput]:
        """Returns the vocabulary size and maximum length of `tokens`."""
        return {"tokens": TokenInput(vocabulary(self.vocab), self.max_length)}

    @property
    def positions(self) -> int:
        """Number of encoder positions per input."""
        return self.frames // STRIDE

    @property
    def backbone_parts(self) -> tuple[str, ...]:
        """All parts of the model: it has no heads that a warm start may initialize."""
        return ("stem", "audio_positions", "embeddings", "encoder", "decoder")

    def flops(self, sizes: Mapping[str, int]) -> float:
        """Returns the FLOPs of a forward pass.

        Args:
          sizes: numbers of rows `b`, and of output tokens per row `t`.
        """
        width = self.encoder.width
        stem = linear_flops(self.frames, TAPS * self.mels, width) + linear_flops(self.positions, TAPS * width, width)
        encoder = stack_flops(self.encoder, self.positions)
        decoder = stack_flops(self.decoder, sizes["t"], memory=self.positions, causal=True)
        # Cross-attention computes keys and values of all encoder positions, which `stack_flops` includes.
        head = linear_flops(sizes["t"], width, vocabulary(self.vocab))
        return sizes["b"] * (stem + encoder + decoder + head)

    def setup(self):
        self.stem = AudioStem(self.encoder.width, self.encoder.dtype)
        self.audio_positions = AudioPositions(self.encoder.dropout)
        self.embeddings = Embeddings(
            self.decoder.width, self.vocab, self.max_length, dropout=self.decoder.dropout, dtype=self.decoder.dtype
        )

    def __call__(
        self,
        log_mel: jax.Array,
        tokens: jax.Array,
        segments: jax.Array | None = None,
        position_ids: jax.Array | None = None,
        train: bool = False,
        return_memory_attention: bool = False,
    ) -> WhisperOutput:
        """Predicts each next token of the output.

        Args:
          log_mel: log-mel spectrograms, [batch, frames, mels].
          tokens: prefix and words, integers [batch, length].
          segments: 1 for tokens, 0 for padding, integers [batch, length]. If None, there is no padding.
          position_ids: positions of the tokens, integers [batch, length]. Defaults to 0, 1, 2, ...
          train: whether to apply dropout. Requires the rng stream `dropout`.
          return_memory_attention: whether to return the weights of cross-attention.
        """
        encoded = self._encode(log_mel, train)
        x, table = self.embeddings(tokens, position_ids, train=train)
        given = BlockInputs(
            mask=Mask.causal(tokens.shape[1], segments),
            position_ids=position_ids,
            memory=encoded.hidden,
            train=train,
            return_memory_attention=return_memory_attention,
        )
        output = self.decoder(x, given)
        return WhisperOutput(
            hidden=output.hidden,
            lm_head=LMHead(table),
            encoded=encoded.hidden,
            memory_attention=output.memory_attention,
            means=added(encoded.means, output.means),
        )

    def encode(self, log_mel: jax.Array) -> jax.Array:
        """Returns the encoder output of spectrograms [batch, frames, mels]: [batch, frames / 2, embed]."""
        return self._encode(log_mel, False).hidden

    def _encode(self, log_mel: jax.Array, train: bool) -> TransformerOutput:
        if log_mel.shape[1:] != (self.frames, self.mels):
            raise ValueError(f"log_mel of {log_mel.shape[1:]}: the model reads {self.frames} × {self.mels}")
        return self.encoder(self.audio_positions(self.stem(log_mel), train), BlockInputs(train=train))

    def encode_prompt(self, log_mel: jax.Array | None = None, encoded: jax.Array | None = None) -> Memory:
        """Encodes spectrograms, [batch, frames, mels], or uses encoder outputs that `encode` has computed."""
        if encoded is None:
            if log_mel is None:
                raise ValueError("expected log_mel or encoded")
            encoded = self.encode(log_mel)
        return Memory(encoded, jnp.ones(encoded.shape[:2], jnp.int32))

    def decode(
        self,
        tokens: jax.Array,
        position_ids: jax.Array,
        cache: Cache,
        memory: jax.Array | None = None,
        prefix: jax.Array | None = None,
    ) -> WhisperOutput:
        """Predicts the tokens after `tokens`. See `Model.decode`."""
        if prefix is not None:
            raise ValueError("the decoder of an encoder–decoder has no prefix with attention in both directions")
        x, table = self.embeddings(tokens, position_ids)
        output = self.decoder(x, BlockInputs(position_ids=position_ids, memory=memory), cache)
        return WhisperOutput(hidden=output.hidden, lm_head=LMHead(table), cache=output.cache)
