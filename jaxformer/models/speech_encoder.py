"""Base class of models that read waveforms: convolutions and a Transformer, as in wav2vec 2.0 (Baevski et al. 2020)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Self

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxformer.data.transforms.framing import Framing
from jaxformer.errors import InputError
from jaxformer.layers.attention import Attention
from jaxformer.layers.block import BlockInputs
from jaxformer.layers.dropout import dropout
from jaxformer.layers.linear import Linear
from jaxformer.layers.masks import Mask
from jaxformer.layers.mlp import Activation, Mlp
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.transformer import Transformer, fresh
from jaxformer.layers.waveforms import ConvolutionalPositions, FrameEncoder, convolution_flops
from jaxformer.metrics.means import Mean
from jaxformer.models.base import InputSpec, Model, ModelOutput
from jaxformer.models.flops import linear_flops, stack_flops
from jaxformer.parallel import metadata, sharding

SAMPLES = InputSpec("bu", "waveforms with 16,000 samples per second, each with mean 0 and variance 1", "float32")
SAMPLE_MASK = InputSpec("bu", "1 for samples, 0 for padding at the end", "uint8", optional=True)
MASKED = InputSpec("bt", "1 for frames that are masked", "uint8", optional=True, exported=False)


def speech_stack(width: int = 768, depth: int = 12, heads: int = 12, **fields: Any) -> Transformer:
    """Returns a Transformer stack with the settings of wav2vec 2.0 base. `fields` are further arguments of
    `Transformer`, which override these settings, such as `norm_position="before"` for wav2vec 2.0 large.
    """
    settings = {"mlp": Mlp(), "norm": LayerNorm(1e-5), "norm_position": "after"}
    return Transformer(width, depth, heads, attention=Attention(), **(settings | fields))


class EncodedSpeech(NamedTuple):
    """Result of encoding waveforms."""

    hidden: jax.Array
    """Output vectors of the Transformer, [batch, frames, embed]."""
    features: jax.Array
    """Normalized output of the convolutions, [batch, frames, channels]. Masks do not affect it."""
    frames: jax.Array
    """Number of frames without padding, int32 [batch]."""
    means: dict[str, Mean]
    """Auxiliary losses and metrics of the Transformer blocks, keyed by name."""


@flax.struct.dataclass
class SpeechOutput(ModelOutput):
    """Output of a model that reads waveforms. The inherited field `hidden` is the output of the Transformer."""

    frames: jax.Array | None = None
    """Number of frames without padding, int32 [batch]."""

    @property
    def features(self) -> jax.Array | None:
        """Vectors to use as features in other tasks, one per sound: the mean of its frames, [batch, embed]."""
        if self.hidden is None or self.frames is None:
            return None
        real = jnp.arange(self.hidden.shape[1]) < self.frames[:, None]
        return jnp.where(real[..., None], self.hidden, 0).sum(1) / jnp.maximum(1, self.frames)[:, None]


class SpeechEncoder(Model):
    """Base class of models that read waveforms: convolutions turn samples into frames, which a Transformer encodes. The
    default is wav2vec 2.0 base.

    Dropout of single layers (LayerDrop) is not supported.
    """

    transformer: Transformer = speech_stack()
    """Transformer blocks. With `norm_position="after"`, the sum of frames and position embeddings is normalized."""
    widths: tuple[int, ...] = (512,) * 7
    """Number of output channels of each convolution."""
    framing: Framing = Framing()
    """Kernel sizes and strides of the convolutions."""
    convolution_norm: Literal["group", "layer"] = "group"
    """Norms of the convolutions: of each channel over time, only after the first one (`group`, as in wav2vec 2.0 base);
    or of each frame, after all of them (`layer`, as in wav2vec 2.0 large).
    """
    convolution_bias: bool = False
    """Whether convolutions have biases."""
    normalize_features: bool = True
    """Whether the output of the convolutions is normalized before it is projected to the width of the Transformer."""
    position_taps: int = 128
    """Kernel size in frames of the convolution that computes position embeddings."""
    position_groups: int = 16
    """Number of groups of channels of the convolution that computes position embeddings."""
    activation: Activation = "gelu"
    """Activation function of all convolutions."""
    feature_dropout: float = 0.0
    """Dropout rate of the frames before position embeddings are added."""
    has_mask_embedding: bool = True
    """Whether the model has a vector that replaces masked frames."""
    masked_statistics: bool = False
    """Whether the norm over time leaves out padding, so that the output for a sound does not depend on its padding. If
    False, as in the transformers library, it does. Without effect unless `convolution_norm` is `group`.
    """

    def __post_init__(self):
        super().__post_init__()
        if len(self.widths) != len(self.framing.kernels):
            raise InputError(
                f"model.widths={self.widths}: expected one number per convolution, as many as "
                f"model.framing.kernels={self.framing.kernels}"
            )
        for field, value in (("position_taps", self.position_taps), ("position_groups", self.position_groups)):
            if value < 1:
                raise InputError(f"model.{field}={value}: expected at least 1")
        if self.transformer.width % self.position_groups:
            raise InputError(
                f"model.position_groups={self.position_groups} does not divide the width {self.transformer.width}"
            )
        if not 0 <= self.feature_dropout < 1:
            raise InputError(f"model.feature_dropout={self.feature_dropout}: expected 0 or more, below 1")

    def inputs(self) -> dict[str, InputSpec]:
        """Returns a dict that maps input names to the specifications of the arrays: `samples`, `sample_mask`, and
        `masked` if there is a mask embedding.
        """
        masked = {"masked": MASKED} if self.has_mask_embedding else {}
        return {"samples": SAMPLES, "sample_mask": SAMPLE_MASK} | masked

    def least_sizes(self) -> dict[str, int]:
        """Returns the minimum number of samples per waveform, `u`, from which one frame is computed."""
        return {"u": self.framing.window}

    def stacks(self) -> dict[str, Transformer]:
        """Returns the stack of Transformer blocks, keyed by its field name."""
        return {"transformer": self.transformer}

    @nn.nowrap
    def abstract_inputs(self, length: int = 2) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes and data types of the required inputs for one waveform, keyed by input name. A waveform
        has `length` samples, or as many as two frames need.
        """
        return super().abstract_inputs(max(length, self.framing.samples(2)))

    @property
    def backbone_parts(self) -> tuple[str, ...]:
        """Names of the top-level modules whose parameters a warm start takes from the pretrained model."""
        return ("features", "feature_norm", "projection", "positions", "position_norm", "transformer")

    @property
    def head_fields(self) -> tuple[str, ...]:
        """Names of the fields in which a pretrained model may differ in a warm start."""
        return ("has_mask_embedding", "masked_statistics", "feature_dropout")

    def comparable(self) -> Self:
        """Returns a copy for comparing two models. Its dropout is 0 and the norm over time includes padding, so that
        models which differ only in these settings count as equal.
        """
        return dataclasses.replace(self, feature_dropout=0.0, masked_statistics=False)

    def flops(self, sizes: Mapping[str, int]) -> float:
        """Returns the FLOPs of a forward pass.

        Args:
          sizes: number of waveforms `b`, and of samples per waveform `u`, keyed by these letters.
        """
        frames, width = self.framing.frames(sizes["u"]), self.transformer.width
        flops = convolution_flops(sizes["u"], self.widths, self.framing)
        flops += linear_flops(frames, self.widths[-1], width)
        flops += linear_flops(frames, self.position_taps, width // self.position_groups, width)
        flops += stack_flops(self.transformer, frames) + self.head_flops(frames)
        return sizes["b"] * flops

    def head_flops(self, frames: int) -> float:
        """Returns the FLOPs of the heads for one waveform with `frames` frames."""
        raise NotImplementedError

    def setup(self):
        stack = self.transformer
        self.features = FrameEncoder(
            self.widths,
            self.framing,
            self.convolution_norm,
            self.convolution_bias,
            self.activation,
            self.masked_statistics,
            stack.dtype,
        )
        if self.normalize_features:
            self.feature_norm = fresh(stack.norm)
        self.projection = Linear("bti,id->btd", (self.widths[-1], stack.width), dtype=stack.dtype)
        self.positions = ConvolutionalPositions(self.position_taps, self.position_groups, self.activation, stack.dtype)
        if stack.norm_position == "after":
            self.position_norm = fresh(stack.norm)
        if self.has_mask_embedding:
            init = metadata.with_axes(nn.initializers.uniform(1.0), "d")
            self.mask_vector = self.param("mask_embedding", init, (stack.width,))

    def encode(
        self,
        samples: jax.Array,
        sample_mask: jax.Array | None = None,
        masked: jax.Array | None = None,
        train: bool = False,
    ) -> EncodedSpeech:
        """Encodes waveforms.

        Args:
          samples: waveforms, [batch, samples].
          sample_mask: 1 for samples, 0 for padding at the end, [batch, samples]. If None, there is no padding.
          masked: 1 for frames that are replaced by the mask embedding, [batch, frames]. If None, no frame is masked.
          train: whether to apply dropout. Requires the rng stream `dropout`.
        """
        lengths = None if sample_mask is None else sample_mask.astype(jnp.int32).sum(1)
        x = self.features(samples, lengths)
        features = self.feature_norm(x) if self.normalize_features else x
        x = self._dropout(self.projection(features), self.feature_dropout, train)
        if masked is not None:
            x = jnp.where(masked[..., None] > 0, self.mask_vector.astype(x.dtype), x)
        mask = None
        if lengths is None:
            frames = jnp.full(x.shape[:1], x.shape[1], jnp.int32)
        else:
            frames = jnp.maximum(0, self.framing.frames(lengths))
            real = (jnp.arange(x.shape[1]) < frames[:, None]).astype(jnp.int32)
            x = jnp.where(real[..., None] > 0, x, 0)
            # As in the transformers library, padding attends to frames, but frames do not attend to padding.
            mask = Mask.of_segments(jnp.ones_like(real), real)
        x = x + self.positions(x)
        if self.transformer.norm_position == "after":
            x = self.position_norm(x)
        x = sharding.constrain(self._dropout(x, self.transformer.dropout, train), "brd")
        output = self.transformer(x, BlockInputs(mask=mask, train=train))
        return EncodedSpeech(output.hidden, features, frames, output.means)

    def _dropout(self, x: jax.Array, rate: float, train: bool) -> jax.Array:
        return dropout(x, rate, self.make_rng("dropout") if train and rate else None)
