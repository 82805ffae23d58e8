"""SpeechT5 for text to speech: an encoder of text, and a decoder that predicts one group of frames after the other in
the voice of a speaker (Ao et al. 2022).
"""

import itertools
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
from jaxformer.layers.convolution import FrozenBatchNorm
from jaxformer.layers.dropout import Dropout, keep_mask
from jaxformer.layers.embeddings import Embeddings, vocabulary
from jaxformer.layers.linear import DType, Linear
from jaxformer.layers.masks import Mask
from jaxformer.layers.mlp import Mlp
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.positions import RelativeKeys
from jaxformer.layers.time_convolution import TimeConvolution
from jaxformer.layers.transformer import Transformer, fresh, separate
from jaxformer.metrics.means import added
from jaxformer.models.base import SEGMENTS, TOKENS, InputSpec, Memory, Model, ModelOutput, TokenInput
from jaxformer.models.encoder_decoder import check_widths
from jaxformer.models.flops import linear_flops, stack_flops
from jaxformer.parallel import metadata, sharding


def speech_t5_stack(width: int, depth: int, heads: int, **fields) -> Transformer:
    """Returns a Transformer stack with the settings of SpeechT5: norms after each layer. `fields` are further arguments
    of `Transformer`, which override these settings. The encoder has the `position_embedding` `RelativeKeys()`.
    """
    settings = {"attention": Attention(), "mlp": Mlp(), "norm": LayerNorm(1e-5), "norm_position": "after"}
    return Transformer(width, depth, heads, **(settings | fields))


ENCODER = speech_t5_stack(768, 12, 12, position_embedding=RelativeKeys())
"""Encoder of the model in the paper."""
DECODER = speech_t5_stack(768, 6, 12)
"""Decoder of the model in the paper."""


@flax.struct.dataclass
class SpeechFramesOutput(ModelOutput):
    """Output of SpeechT5. The inherited field `hidden` is the output of the decoder."""

    spectrogram: jax.Array | None = None
    """Predicted log-mel spectrogram, float32 [batch, frames · reduction, mels]."""
    before: jax.Array | None = None
    """The spectrogram before the postnet, float32 [batch, frames · reduction, mels]."""
    stop_logits: jax.Array | None = None
    """Logits of the probability that each frame is the last one, float32 [batch, frames · reduction]."""
    memory_attention: jax.Array | None = None
    """Attention weights of the decoder's cross-attention, float32 [layers, batch, heads, frames, tokens]. None unless
    requested.
    """
    encoded: jax.Array | None = None
    """Output vectors of the encoder, [batch, tokens, embed]."""
    cache: Cache | None = None
    """Keys and values of all frames so far. None if the model was called without a cache."""

    exported: ClassVar[tuple[str, ...]] = ("spectrogram", "stop_logits")


class ScaledPositions(nn.Module):
    """Adds sinusoidal position encodings, whose sines and cosines alternate, multiplied by a learned number (Li et al.
    2019, §3.2). [batch, length, embed] → the same shape.
    """

    @nn.compact
    def __call__(self, x: jax.Array, first: jax.Array | int = 0) -> jax.Array:
        """Adds the encodings of the positions from `first` on to x."""
        width = x.shape[-1]
        scale = self.param("scale", metadata.with_axes(nn.initializers.ones, ""), ())
        rates = np.exp(np.arange(0, width, 2, dtype=np.float32) * np.float32(-np.log(10_000.0) / width))
        angles = (first + jnp.arange(x.shape[1])).astype(jnp.float32)[:, None] * rates
        encodings = jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(x.shape[1], -1)[:, :width]
        return x + (scale * encodings).astype(x.dtype)


class Prenet(nn.Module):
    """Converts frames to inputs of the decoder, in the voice of a speaker: [batch, frames, mels] → [batch, frames,
    embed] (Shen et al. 2018, §2.2).
    """

    width: int
    """Size of the output vectors."""
    inner: int
    """Size of the hidden layers."""
    depth: int
    """Number of hidden layers."""
    dropout: float
    """Dropout rate of the hidden layers. It is applied whenever the rng stream `dropout` is given, in prediction too,
    and is the same for all rows.
    """
    dtype: DType
    """Data type of the computation."""

    @nn.compact
    def __call__(self, frames: jax.Array, speaker: jax.Array, first: jax.Array | int = 0) -> jax.Array:
        """Converts frames [batch, frames, mels], which are at the positions from `first` on. `speaker` are vectors of
        speakers, [batch, size].
        """
        x, axes = frames, "btn,nd->btd"
        for number in range(self.depth):
            x = nn.relu(Linear(axes, (x.shape[-1], self.inner), dtype=self.dtype, name=f"layer_{number}")(x))
            axes = "bti,id->btd"
            if self.dropout and self.has_rng("dropout"):
                keep, probability = keep_mask(self.make_rng("dropout"), self.dropout, x.shape[1:])
                x = jnp.where(keep, x / probability, 0)
        x = Linear("bti,id->btd", (x.shape[-1], self.width), dtype=self.dtype, name="output")(x)
        x = ScaledPositions(name="positions")(x, first)
        speaker = speaker / jnp.maximum(jnp.linalg.norm(speaker, axis=-1, keepdims=True), 1e-12)
        speaker = jnp.broadcast_to(speaker[:, None].astype(x.dtype), (*x.shape[:2], speaker.shape[-1]))
        x = jnp.concatenate([x, speaker], axis=-1)
        return nn.relu(Linear("bti,id->btd", (x.shape[-1], self.width), dtype=self.dtype, name="speaker")(x))


class Postnet(nn.Module):
    """Refines a spectrogram: adds the output of convolutions over time to it, [batch, frames, mels] → the same shape
    (Shen et al. 2018, §2.2). The statistics of its batch norms are fixed.
    """

    width: int
    """Number of channels of the convolutions."""
    depth: int
    """Number of convolutions."""
    taps: int
    """Kernel size of the convolutions."""
    dropout: float
    """Dropout rate after each convolution."""
    dtype: DType
    """Data type of the computation."""

    @nn.compact
    def __call__(self, frames: jax.Array, train: bool, lengths: jax.Array | None = None) -> jax.Array:
        """Refines spectrograms [batch, frames, mels]. `lengths` are the numbers of frames without padding, integers
        [batch]. If None, there is no padding.
        """
        x = frames
        mask = None if lengths is None else (jnp.arange(x.shape[1]) < lengths[:, None])[..., None]
        for number in range(self.depth):
            last = number == self.depth - 1
            width = frames.shape[-1] if last else self.width
            x = x if mask is None else jnp.where(mask, x, 0)
            x = TimeConvolution(width, self.taps, bias=False, dtype=self.dtype, name=f"layer_{number}")(x)
            x = FrozenBatchNorm(trained=True, name=f"norm_{number}")(x)
            x = Dropout(self.dropout)(x if last else jnp.tanh(x), train)
        return frames + x.astype(frames.dtype)


class SpeechT5(Model):
    """SpeechT5 for text to speech: the encoder reads a text, and the decoder predicts `reduction` frames of a log-mel
    spectrogram at a time, from the frames before them and the vector of a speaker.
    """

    encoder: Transformer = ENCODER
    """Transformer blocks that process the text."""
    decoder: Transformer = DECODER
    """Transformer blocks that process frames. Each block also attends to the output of the encoder."""
    vocab: int | None = 81
    """Vocabulary size. If None, a training run sets it to the tokenizer's number of tokens."""
    max_length: int = 450
    """Maximum number of tokens of a text."""
    max_frames: int = 4000
    """Maximum number of groups of frames."""
    mels: int = 80
    """Number of mel bands of a frame."""
    reduction: int = 2
    """Number of frames that are predicted at a time."""
    speaker_size: int = 512
    """Size of the vectors of speakers."""
    prenet_width: int = 256
    """Size of the hidden layers of the decoder's prenet."""
    prenet_depth: int = 2
    """Number of hidden layers of the decoder's prenet."""
    prenet_dropout: float = 0.5
    """Dropout rate of the decoder's prenet. It also applies when the model speaks, so that each speech is different."""
    postnet_width: int = 256
    """Number of channels of the postnet."""
    postnet_depth: int = 5
    """Number of convolutions of the postnet."""
    postnet_taps: int = 5
    """Kernel size of the postnet's convolutions."""
    postnet_dropout: float = 0.5
    """Dropout rate of the postnet."""

    def __post_init__(self):
        separate(self, "decoder", "encoder")
        super().__post_init__()
        check_widths(self.encoder, self.decoder)
        for field in ("max_length", "max_frames", "mels", "reduction", "speaker_size", "prenet_depth", "postnet_depth"):
            if getattr(self, field) < 1:
                raise InputError(f"model.{field}={getattr(self, field)}: expected at least 1")
        if self.postnet_taps % 2 == 0:
            raise InputError(f"model.postnet_taps={self.postnet_taps}: expected an odd number")
        for field in ("prenet_dropout", "postnet_dropout"):
            if not 0 <= getattr(self, field) < 1:
                raise InputError(f"model.{field}={getattr(self, field)}: expected 0 or more, below 1")

    def inputs(self) -> dict[str, InputSpec]:
        """Returns a dict that maps the name of each input argument to the specification of its array."""
        return {
            "tokens": TOKENS,
            "frames": InputSpec("ban", "last frame of each group before those to predict, at first zeros", "float32"),
            "speaker": InputSpec("bi", "vectors of speakers", "float32"),
            "segments": SEGMENTS,
        }

    def fixed_sizes(self) -> dict[str, int]:
        """Returns the number of mel bands and the size of a speaker's vector, keyed by the letters of their axes."""
        return {"n": self.mels, "i": self.speaker_size}

    def stacks(self) -> dict[str, Transformer]:
        """Returns the Transformer stacks, keyed by their field names `encoder` and `decoder`."""
        return {"encoder": self.encoder, "decoder": self.decoder}

    def token_inputs(self) -> dict[str, TokenInput]:
        """Returns the vocabulary size and the maximum length of the input argument `tokens`, keyed by its name."""
        return {"tokens": TokenInput(vocabulary(self.vocab), self.max_length)}

    @property
    def backbone_parts(self) -> tuple[str, ...]:
        """Names of the top-level modules whose parameters a warm start takes from the pretrained model. The prenet and
        the postnet are heads, which a warm start may initialize at random.
        """
        return ("embeddings", "encoder", "decoder")

    def flops(self, sizes: Mapping[str, int]) -> float:
        """Returns the number of floating-point operations of a forward pass.

        Args:
          sizes: the batch size `b`, the number of tokens per text `t`, and the number of groups of frames `a`.
        """
        width, groups, frames = self.encoder.width, sizes["a"], sizes["a"] * self.reduction
        encoder = stack_flops(self.encoder, sizes["t"])
        decoder = stack_flops(self.decoder, groups, memory=sizes["t"], causal=True)
        inner = self.prenet_width
        prenet = linear_flops(groups, inner, self.mels + (self.prenet_depth - 1) * inner + width)
        prenet += linear_flops(groups, width, width + self.speaker_size)
        channels = [self.mels, *[self.postnet_width] * (self.postnet_depth - 1), self.mels]
        pairs = itertools.pairwise(channels)
        postnet = sum(linear_flops(frames, self.postnet_taps * before, after) for before, after in pairs)
        heads = linear_flops(groups, width, self.reduction * (self.mels + 1))
        return sizes["b"] * (encoder + decoder + prenet + postnet + heads)

    def setup(self):
        width, dtype = self.encoder.width, self.encoder.dtype
        self.embeddings = Embeddings(width, self.vocab, self.max_length, "none", dtype=dtype)
        self.text_positions = ScaledPositions()
        self.encoder_norm = fresh(self.encoder.norm)
        self.dropout = Dropout(self.encoder.dropout)
        dtype = self.decoder.dtype
        self.prenet = Prenet(width, self.prenet_width, self.prenet_depth, self.prenet_dropout, dtype)
        self.postnet = Postnet(self.postnet_width, self.postnet_depth, self.postnet_taps, self.postnet_dropout, dtype)
        self.features = Linear("btd,dn->btn", (width, self.mels * self.reduction), dtype=dtype)
        self.stop = Linear("btd,d_->bt_", (width, self.reduction), dtype=dtype)

    def __call__(
        self,
        tokens: jax.Array,
        frames: jax.Array,
        speaker: jax.Array,
        segments: jax.Array | None = None,
        train: bool = False,
        return_memory_attention: bool = False,
    ) -> SpeechFramesOutput:
        """Predicts each group of frames from those before it.

        Args:
          tokens: token ids of texts, integers [batch, length].
          frames: log-mel frames: zeros for the first group, and for each other group the last frame of the group before
            it, [batch, groups, mels].
          speaker: vectors of speakers, [batch, speaker_size]. They are scaled to length 1.
          segments: 1 for tokens, 0 for padding, integers [batch, length]. If None, there is no padding.
          train: whether to apply dropout. Requires the rng stream `dropout`. With this stream, the dropout of the
            prenet is applied in any case.
          return_memory_attention: whether to return the weights of cross-attention.
        """
        encoded = self._encode(tokens, segments, train)
        x = self.dropout(self.prenet(frames, speaker), train)
        memory_mask = None
        if segments is not None:
            memory_mask = Mask.of_segments(jnp.ones(x.shape[:2], segments.dtype), (segments > 0).astype(segments.dtype))
        given = BlockInputs(
            mask=Mask.causal(x.shape[1]),
            memory=encoded.hidden,
            memory_mask=memory_mask,
            train=train,
            return_memory_attention=return_memory_attention,
        )
        output = self.decoder(x, given)
        before, stop_logits = self._heads(output.hidden)
        return SpeechFramesOutput(
            hidden=output.hidden,
            spectrogram=self.postnet(before, train),
            before=before,
            stop_logits=stop_logits,
            memory_attention=output.memory_attention,
            encoded=encoded.hidden,
            means=added(encoded.means, output.means),
        )

    def _encode(self, tokens: jax.Array, segments: jax.Array | None, train: bool):
        if tokens.shape[1] > self.max_length:
            raise ValueError(f"{tokens.shape[1]} tokens: the model reads {self.max_length}")
        x, _ = self.embeddings(tokens)
        x = self.encoder_norm(self.dropout(self.text_positions(x), train))
        mask = None if segments is None else Mask.of_segments(segments, segments)
        return self.encoder(self.dropout(x, train), BlockInputs(mask=mask, train=train))

    def _heads(self, hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns the frames before the postnet, float32 [batch, frames · reduction, mels], and the stop logits,
        float32 [batch, frames · reduction], for decoder outputs [batch, frames, embed].
        """
        rows, frames = hidden.shape[0], hidden.shape[1] * self.reduction
        spectrogram = self.features(hidden).astype(jnp.float32).reshape(rows, frames, self.mels)
        stop_logits = self.stop(hidden).astype(jnp.float32).reshape(rows, frames)
        return sharding.constrain(spectrogram, "ban"), stop_logits

    def encode_prompt(self, tokens: jax.Array, segments: jax.Array | None = None) -> Memory:
        """Encodes texts. Same arguments as in a call. Returns the output of the encoder with its mask."""
        segments = jnp.ones_like(tokens) if segments is None else segments
        return Memory(self._encode(tokens, segments, False).hidden, segments)

    def next_frames(
        self, frames: jax.Array, speaker: jax.Array, cache: Cache, memory: jax.Array | None = None
    ) -> SpeechFramesOutput:
        """Predicts the group of frames after those in the cache.

        Args:
          frames: last frame of the preceding group, or zeros, [batch, 1, mels].
          speaker: vectors of speakers, [batch, speaker_size].
          cache: keys and values of the preceding groups, in a cache made by `new_cache`. `cache.memory_segments` is the
            mask of the texts.
          memory: field `hidden` of the result of `encode_prompt`. Only needed in the first call.
        """
        x = self.prenet(frames, speaker, cache.used)
        output = self.decoder(x, BlockInputs(memory=memory), cache)
        before, stop_logits = self._heads(output.hidden)
        return SpeechFramesOutput(hidden=output.hidden, before=before, stop_logits=stop_logits, cache=output.cache)

    def refine(self, frames: jax.Array, lengths: jax.Array) -> jax.Array:
        """Applies the postnet to spectrograms [batch, frames, mels]. `lengths` are their numbers of frames."""
        return self.postnet(frames, False, lengths)
