"""FastSpeech 2: predicts all frames of speech at once, from phonemes (Ren et al. 2021)."""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxformer.errors import InputError
from jaxformer.layers.attention import Attention
from jaxformer.layers.block import BlockInputs
from jaxformer.layers.conv_mlp import ConvMlp
from jaxformer.layers.dropout import Dropout
from jaxformer.layers.embeddings import Embeddings, vocabulary
from jaxformer.layers.linear import DType, Linear, truncated_normal
from jaxformer.layers.masks import Mask
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.positions import sinusoidal
from jaxformer.layers.time_convolution import TimeConvolution
from jaxformer.layers.transformer import Transformer, separate
from jaxformer.metrics.means import added
from jaxformer.models.base import SEGMENTS, TOKENS, InputSpec, Model, ModelOutput, TokenInput
from jaxformer.models.encoder_decoder import check_widths
from jaxformer.models.flops import linear_flops, stack_flops
from jaxformer.parallel import metadata, sharding


def fast_speech_stack(width: int, depth: int, heads: int, mlp_width: int = 1024, **fields) -> Transformer:
    """Returns a Transformer stack of FastSpeech: norms after each layer, and a convolution in the feed-forward network
    (`ConvMlp`) whose inner width is `mlp_width`. `fields` are further arguments of `Transformer`.
    """
    settings = {"mlp": ConvMlp(mlp_width), "norm": LayerNorm(1e-5), "norm_position": "after", "dropout": 0.2}
    return Transformer(width, depth, heads, attention=Attention(key_bias=False), **(settings | fields))


BASE = fast_speech_stack(256, 4, 2)
"""Stack of Transformer blocks with the sizes of the paper, for the encoder and for the decoder."""


@flax.struct.dataclass
class SpokenOutput(ModelOutput):
    """Output of FastSpeech 2. The inherited field `hidden` is the output of the decoder."""

    log_mel: jax.Array | None = None
    """Predicted log-mel spectrograms, float32 [batch, frames, mels]. Frames after the end of the speech are not
    meaningful.
    """
    lengths: jax.Array | None = None
    """Number of frames of the speech of each row, int32 [batch]. If it is above the number of frames of the model, the
    speech is cut.
    """
    durations: jax.Array | None = None
    """Number of frames of each phoneme from which `log_mel` is computed, int32 [batch, length]."""
    log_durations: jax.Array | None = None
    """Predicted log(1 + number of frames) of each phoneme, float32 [batch, length]."""
    pitch: jax.Array | None = None
    """Predicted pitch of each phoneme, float32 [batch, length]."""
    energy: jax.Array | None = None
    """Predicted energy of each phoneme, float32 [batch, length]."""

    exported: ClassVar[tuple[str, ...]] = ("log_mel", "lengths")


class VariancePredictor(nn.Module):
    """Predicts a number for each position: two convolutions, each followed by a ReLU, a norm and dropout, and a linear
    layer (Ren et al. 2021, §2.3). [batch, length, embed] → float32 [batch, length].
    """

    width: int
    """Number of channels of the convolutions."""
    taps: int
    """Kernel size of the convolutions."""
    dropout: float
    """Dropout rate after each norm."""
    dtype: DType = "auto"
    """Data type of the computation. `auto` is bfloat16 on accelerators and float32 on CPU."""

    @nn.compact
    def __call__(self, x: jax.Array, real: jax.Array, train: bool) -> jax.Array:
        """Predicts from x [batch, length, embed]. `real` is False for padding, boolean [batch, length]."""
        for number in range(2):
            x = jnp.where(real[..., None], x, 0)
            x = nn.relu(TimeConvolution(self.width, self.taps, dtype=self.dtype, name=f"layer_{number}")(x))
            x = Dropout(self.dropout)(LayerNorm(1e-5, name=f"norm_{number}")(x), train)
        output = Linear("btf,f_->bt_", (self.width, 1), dtype="float32", name="output")
        return output(x)[..., 0]


def expand(x: jax.Array, durations: jax.Array, frames: int) -> tuple[jax.Array, jax.Array]:
    """Repeats the vector of each phoneme for each of its frames (the length regulator of Ren et al. 2019, §3.2).

    Shapes are static: rows are padded, or cut, to `frames` frames.

    Args:
      x: vectors of phonemes, [batch, length, embed].
      durations: number of frames of each phoneme, integers [batch, length]. 0 for padding.
      frames: number of frames of the result.

    Returns:
      Vectors of frames, [batch, frames, embed], zeros after the last phoneme; and the number of frames of each row,
      int32 [batch], which may be above `frames`.
    """
    ends = jnp.cumsum(durations, axis=1)[:, None]
    index = jnp.arange(frames)[:, None]
    # A product with zeros and ones, because the gradient of a gather would be a slow scatter.
    owned = (ends - durations[:, None] <= index) & (index < ends)
    return jnp.einsum("bat,btd->bad", owned.astype(x.dtype), x), durations.sum(1).astype(jnp.int32)


class FastSpeech2(Model):
    """FastSpeech 2: an encoder of phonemes, predictors of their durations, pitch and energy, and a decoder that
    computes all frames of a log-mel spectrogram at once.

    In contrast to the paper, pitch and energy are predicted per phoneme and not per frame, as in FastPitch (Łańcucki
    2021), and pitch is a number instead of a spectrogram of wavelets.
    """

    encoder: Transformer = BASE
    """Transformer blocks that process phonemes."""
    decoder: Transformer = BASE
    """Transformer blocks that process frames."""
    vocab: int | None = None
    """Vocabulary size. If None, a training run sets it to the tokenizer's number of phonemes."""
    max_length: int = 256
    """Maximum number of phonemes."""
    frames: int = 750
    """Number of frames that the decoder computes."""
    mels: int = 80
    """Number of mel bands of a frame."""
    predictor_width: int = 256
    """Number of channels of the predictors of durations, pitch and energy."""
    predictor_taps: int = 3
    """Kernel size of these predictors."""
    predictor_dropout: float = 0.5
    """Dropout rate of these predictors."""
    bins: int = 256
    """Number of intervals into which pitch and energy are divided. Each interval has an embedding."""
    pitch_range: tuple[float, float] = (-1.5, 1.5)
    """Range of the pitch in octaves that is divided into intervals."""
    energy_range: tuple[float, float] = (-3.0, 3.0)
    """Range of the energy, in log10 of amplitudes, that is divided into intervals."""

    def __post_init__(self):
        separate(self, "decoder", "encoder")
        super().__post_init__()
        check_widths(self.encoder, self.decoder)
        if self.encoder.width % 2:
            raise InputError(f"model.encoder.width={self.encoder.width}: expected an even number")
        for field in ("max_length", "frames", "mels", "predictor_width", "bins"):
            if getattr(self, field) < 1:
                raise InputError(f"model.{field}={getattr(self, field)}: expected at least 1")
        if self.predictor_taps % 2 == 0:
            raise InputError(f"model.predictor_taps={self.predictor_taps}: expected an odd number")
        for field in ("pitch_range", "energy_range"):
            low, high = getattr(self, field)
            if not low < high:
                raise InputError(f"model.{field}={low, high}: expected the lower end first")

    def inputs(self) -> dict[str, InputSpec]:
        """Returns a dict that maps the name of each input argument to the specification of its array."""
        given = "each phoneme, to compute the spectrogram from it instead of the prediction"
        return {
            "tokens": TOKENS,
            "segments": SEGMENTS,
            "durations": InputSpec("bt", f"number of frames of {given}", optional=True, exported=False),
            "pitch": InputSpec("bt", f"pitch of {given}", "float32", optional=True, exported=False),
            "energy": InputSpec("bt", f"energy of {given}", "float32", optional=True, exported=False),
        }

    def stacks(self) -> dict[str, Transformer]:
        """Returns the Transformer stacks, keyed by their field names `encoder` and `decoder`."""
        return {"encoder": self.encoder, "decoder": self.decoder}

    def token_inputs(self) -> dict[str, TokenInput]:
        """Returns the vocabulary size and the maximum length of the input argument `tokens`, keyed by its name."""
        return {"tokens": TokenInput(vocabulary(self.vocab), self.max_length)}

    @property
    def backbone_parts(self) -> tuple[str, ...]:
        """Names of the top-level modules whose parameters a warm start takes from the pretrained model."""
        return ("embeddings", "encoder", "decoder", "duration", "pitch", "energy", "output")

    def flops(self, sizes: Mapping[str, int]) -> float:
        """Returns the number of floating-point operations of a forward pass.

        Args:
          sizes: the batch size `b` and the number of phonemes per row `t`.
        """
        width, length = self.encoder.width, sizes["t"]
        predictor = self.predictor_taps * (width + self.predictor_width) + 1
        predictors = 3 * linear_flops(length, predictor, self.predictor_width)
        stacks = stack_flops(self.encoder, length) + stack_flops(self.decoder, self.frames)
        return sizes["b"] * (stacks + predictors + linear_flops(self.frames, width, self.mels))

    def setup(self):
        width, dtype = self.encoder.width, self.encoder.dtype
        self.embeddings = Embeddings(
            width,
            self.vocab,
            self.max_length,
            "sinusoidal",
            token_init_std=width**-0.5,
            scale=width**0.5,
            dropout=self.encoder.dropout,
            dtype=dtype,
        )
        self.duration, self.pitch, self.energy = (
            VariancePredictor(self.predictor_width, self.predictor_taps, self.predictor_dropout, dtype)
            for _ in range(3)
        )
        init = metadata.with_axes(truncated_normal(width**-0.5), "_d")
        self.pitch_table = self.param("pitch_table", init, (self.bins, width))
        self.energy_table = self.param("energy_table", init, (self.bins, width))
        self.dropout = Dropout(self.decoder.dropout)
        self.output = Linear("btd,dn->btn", (width, self.mels), dtype=self.decoder.dtype)

    def __call__(
        self,
        tokens: jax.Array,
        segments: jax.Array | None = None,
        durations: jax.Array | None = None,
        pitch: jax.Array | None = None,
        energy: jax.Array | None = None,
        train: bool = False,
    ) -> SpokenOutput:
        """Computes the log-mel spectrogram of phonemes.

        Args:
          tokens: ids of phonemes, integers [batch, length].
          segments: 1 for phonemes, 0 for padding, integers [batch, length]. If None, there is no padding.
          durations: number of frames of each phoneme, integers [batch, length]. If None, they are predicted.
          pitch: pitch of each phoneme, [batch, length]. If None, it is predicted.
          energy: energy of each phoneme, [batch, length]. If None, it is predicted.
          train: whether to apply dropout. Requires the rng stream `dropout`.
        """
        numbers = {"durations": durations, "pitch": pitch, "energy": energy}
        given = {name: array for name, array in numbers.items() if array is not None}
        return self._spoken(tokens, segments, given, 1.0, train)

    def speak(self, tokens: jax.Array, segments: jax.Array, speed: jax.Array | float = 1.0) -> SpokenOutput:
        """Computes the log-mel spectrogram of phonemes from the predicted durations, pitch and energy.

        Args:
          tokens: ids of phonemes, integers [batch, length].
          segments: 1 for phonemes, 0 for padding, integers [batch, length].
          speed: number by which the durations are divided, a scalar.
        """
        return self._spoken(tokens, segments, {}, speed, False)

    def _spoken(
        self,
        tokens: jax.Array,
        segments: jax.Array | None,
        given: Mapping[str, jax.Array],
        speed: jax.Array | float,
        train: bool,
    ) -> SpokenOutput:
        """Computes the spectrogram from the durations, pitch and energy in `given`, as far as they are not predicted.
        The other arguments are those of a call and of `speak`.
        """
        real = jnp.ones(tokens.shape, bool) if segments is None else segments != 0
        x, _ = self.embeddings(tokens, train=train)
        mask = Mask.of_segments(real.astype(jnp.int32), real.astype(jnp.int32))
        encoded = self.encoder(x, BlockInputs(mask=mask, train=train))
        x = encoded.hidden
        log_durations = self.duration(x, real, train)
        pitch, energy = self.pitch(x, real, train), self.energy(x, real, train)
        x = x + _embedded(self.pitch_table, given.get("pitch", pitch), self.pitch_range, x)
        x = x + _embedded(self.energy_table, given.get("energy", energy), self.energy_range, x)
        predicted = jnp.floor(jnp.maximum(jnp.exp(log_durations) - 1, 0) / speed + 0.5).astype(jnp.int32)
        durations = jnp.where(real, given.get("durations", predicted), 0)
        x, lengths = expand(x, durations, self.frames)
        x = x + sinusoidal(jnp.arange(self.frames), x.shape[-1]).astype(x.dtype)
        spoken = (jnp.arange(self.frames) < lengths[:, None]).astype(jnp.int32)
        x = sharding.constrain(self.dropout(x, train), "brd")
        output = self.decoder(x, BlockInputs(mask=Mask.of_segments(spoken, spoken), train=train))
        return SpokenOutput(
            hidden=output.hidden,
            log_mel=self.output(output.hidden).astype(jnp.float32),
            lengths=lengths,
            durations=durations,
            log_durations=log_durations,
            pitch=pitch,
            energy=energy,
            means=added(encoded.means, output.means),
        )


def _embedded(table: jax.Array, values: jax.Array, ends: tuple[float, float], like: jax.Array) -> jax.Array:
    """Returns the embedding of the interval that contains each value, [batch, length, embed], in the type of `like`.

    Args:
      table: embeddings of the intervals, [intervals, embed].
      values: values, [batch, length]. Those outside of the range are in the first or the last interval.
      ends: ends of the range that is divided into intervals.
      like: array with the type of the result.
    """
    low, high = ends
    index = jnp.clip((values - low) / (high - low) * len(table), 0, len(table) - 1).astype(jnp.int32)
    return jnp.take(table, index, axis=0).astype(like.dtype)
