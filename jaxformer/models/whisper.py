"""Whisper: an encoder–decoder that transcribes or translates speech (Radford et al. 2022)."""

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
from jaxformer.layers.transformer import Transformer, TransformerOutput, separate
from jaxformer.metrics.means import added
from jaxformer.models.base import POSITION_IDS, SEGMENTS, TOKENS, InputSpec, LMOutput, Memory, Model, TokenInput
from jaxformer.models.encoder_decoder import check_widths, refuse_prefix
from jaxformer.models.flops import linear_flops, stack_flops
from jaxformer.parallel import metadata, sharding

TAPS, STRIDE = 3, 2
"""Kernel size in frames of both convolutions before the encoder (`AudioStem`), and stride of the second convolution."""


def whisper_stack(width: int, depth: int, heads: int, **fields) -> Transformer:
    """Returns a Transformer stack with the settings of Whisper's encoder and decoder: no dropout and no bias of the
    keys. `fields` are further arguments of `Transformer`, which override these settings.
    """
    settings = {"dropout": 0.0, "attention_dropout": 0.0, "mlp": Mlp(), "norm": LayerNorm(1e-5)}
    return Transformer(width, depth, heads, attention=Attention(key_bias=False), **(settings | fields))


TINY = whisper_stack(384, 4, 6)
"""Transformer stack of Whisper tiny, the smallest model in the paper. Its encoder and its decoder have the same sizes.
"""


@flax.struct.dataclass
class WhisperOutput(LMOutput):
    """Output of Whisper. The inherited fields `hidden`, `lm_head` and `cache` are outputs of the decoder."""

    encoded: jax.Array | None = None
    """Output vectors of the encoder, [batch, frames / 2, embed]."""
    memory_attention: jax.Array | None = None
    """Attention weights of the decoder's cross-attention, float32 [layers, batch, heads, tokens, frames / 2]. None
    unless requested.
    """

    @property
    def features(self) -> jax.Array | None:
        """Vectors for downstream use: the encoder output, one vector per two frames of the spectrogram,
        [batch, frames / 2, embed].
        """
        return self.encoded


class AudioStem(nn.Module):
    """First layers of the encoder: two convolutions over time, each followed by GELU. The second convolution has stride
    2: [batch, frames, mels] → [batch, frames / 2, embed].
    """

    width: int
    """Size of the output vectors."""
    dtype: DType = "auto"
    """Data type of the computation. `auto` is bfloat16 on accelerators and float32 on CPU."""

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
    """Returns the windows of three successive frames that a convolution with this stride combines,
    [batch, frames / stride, 3, size]. Frames outside the input are zeros.
    """
    padded = jnp.pad(x, [(0, 0), (1, 1), (0, 0)])
    return jnp.stack([padded[:, tap : tap + x.shape[1] : stride] for tap in range(TAPS)], axis=2)


def sinusoids(shape: tuple[int, ...]) -> np.ndarray:
    """Computes the encoder's fixed sinusoidal position embeddings for `shape` = (positions, embed), float32. The first
    half of each vector contains sines and the second half cosines, with wavelengths from 2π to 10,000 · 2π.
    """
    length, width = shape
    rates = np.exp(-np.log(10_000) / (width // 2 - 1) * np.arange(width // 2, dtype=np.float32))
    angles = np.arange(length, dtype=np.float32)[:, None] * rates[None]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


class AudioPositions(nn.Module):
    """Adds fixed sinusoidal position embeddings to vectors [batch, positions, embed], and applies dropout. The position
    embeddings are stored as a parameter that is not trained, so that they can be loaded from a checkpoint, whose values
    are rounded. The parameter's gradient is 0 if `train` is True.
    """

    dropout: float
    """Dropout rate, applied to the sum of the vectors and the position embeddings."""

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
    """Whisper model: an encoder of log-mel spectrograms, and a causal decoder that generates text and attends to the
    encoder output.
    """

    is_generative: ClassVar[bool] = True
    is_encoder_decoder: ClassVar[bool] = True

    encoder: Transformer = TINY
    """Transformer blocks of the encoder."""
    decoder: Transformer = TINY
    """Transformer blocks of the decoder. Each block also attends to the output of the encoder."""
    vocab: int | None = 51_865
    """Vocabulary size. It must be at least the number of tokens of the tokenizer, including the timestamp tokens. If
    None, a training run sets it to the tokenizer's number of tokens.
    """
    max_length: int = 448
    """Maximum number of decoder tokens, including the tokens before the transcript: the special tokens for language and
    task, and the previous text if there is one.
    """
    frames: int = 3000
    """Number of spectrogram frames per input. There is one frame every 10 ms, so the default is 30 seconds."""
    mels: int = 80
    """Number of mel bands of a frame."""

    def __post_init__(self):
        separate(self, "decoder", "encoder")
        super().__post_init__()
        check_widths(self.encoder, self.decoder)
        if self.encoder.width % 2 or self.encoder.width < 4:
            raise InputError(f"model.encoder.width={self.encoder.width}: expected an even number from 4 on")
        for field, value in (("frames", self.frames), ("mels", self.mels), ("max_length", self.max_length)):
            if value < 1:
                raise InputError(f"model.{field}={value}: expected at least 1")
        if self.frames % STRIDE:
            raise InputError(f"model.frames={self.frames}: expected an even number")

    def inputs(self) -> dict[str, InputSpec]:
        """Returns a dict that maps the name of each input argument to the specification of its array."""
        return {
            "log_mel": InputSpec("ban", "log-mel spectrograms, as computed by `LogMel`", "float32"),
            "tokens": TOKENS,
            "segments": SEGMENTS,
            "position_ids": POSITION_IDS,
        }

    def fixed_sizes(self) -> dict[str, int]:
        """Returns the lengths of the input axes that are the same in every call: `a` (frames) and `n` (mel bands)."""
        return {"a": self.frames, "n": self.mels}

    def stacks(self) -> dict[str, Transformer]:
        """Returns the Transformer stacks, keyed by their field names `encoder` and `decoder`."""
        return {"encoder": self.encoder, "decoder": self.decoder}

    def token_inputs(self) -> dict[str, TokenInput]:
        """Returns the vocabulary size and the maximum length of the input argument `tokens`, keyed by its name."""
        return {"tokens": TokenInput(vocabulary(self.vocab), self.max_length)}

    @property
    def positions(self) -> int:
        """Number of encoder positions per input."""
        return self.frames // STRIDE

    @property
    def backbone_parts(self) -> tuple[str, ...]:
        """Names of the top-level modules whose parameters a warm start takes from the pretrained model. Includes all
        modules, because Whisper has no task-specific heads, which a warm start could initialize randomly.
        """
        return ("stem", "audio_positions", "embeddings", "encoder", "decoder")

    @property
    def position_tables(self) -> Mapping[str, str]:
        """Maps `frames` and `max_length` to the paths of the position embeddings of the encoder and the decoder. So a
        model of shorter sounds can start from the weights of one that reads 30 seconds.
        """
        return {"frames": "audio_positions/bias", "max_length": "embeddings/position"}

    def flops(self, sizes: Mapping[str, int]) -> float:
        """Returns the number of floating-point operations of a forward pass.

        Args:
          sizes: the batch size `b` and the number of decoder tokens per example `t`.
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
        """Predicts each next token of the transcript.

        Args:
          log_mel: log-mel spectrograms, [batch, frames, mels].
          tokens: decoder tokens (special tokens for language and task, followed by the transcript), integers
            [batch, length].
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
        """Returns the encoder output, [batch, frames / 2, embed], for log-mel spectrograms [batch, frames, mels]."""
        return self._encode(log_mel, False).hidden

    def _encode(self, log_mel: jax.Array, train: bool) -> TransformerOutput:
        if log_mel.shape[1:] != (self.frames, self.mels):
            raise ValueError(f"log_mel of {log_mel.shape[1:]}: the model reads {self.frames} × {self.mels}")
        return self.encoder(self.audio_positions(self.stem(log_mel), train), BlockInputs(train=train))

    def encode_prompt(self, log_mel: jax.Array | None = None, encoded: jax.Array | None = None) -> Memory:
        """Returns the encoder output that the decoder attends to. It is computed from log-mel spectrograms
        [batch, frames, mels] or, if given, taken from `encoded` (the result of `encode`).
        """
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
        """Predicts the token after each of `tokens`. See `Model.decode`. `prefix` must be None."""
        refuse_prefix(prefix)
        x, table = self.embeddings(tokens, position_ids)
        output = self.decoder(x, BlockInputs(position_ids=position_ids, memory=memory), cache)
        return WhisperOutput(hidden=output.hidden, lm_head=LMHead(table), cache=output.cache)
