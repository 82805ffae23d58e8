"""Vision Transformers for video clips: ViViT (Arnab et al. 2021), which attends over space and time jointly or one
after the other, and the encoder of VideoMAE (Tong et al. 2022).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, Self

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxformer.errors import InputError
from jaxformer.layers.attention import Attention
from jaxformer.layers.block import BlockInputs
from jaxformer.layers.dropout import Dropout
from jaxformer.layers.linear import Linear
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.patches import ImagePositions, check_geometry, normalise
from jaxformer.layers.transformer import Transformer, TransformerOutput, separate
from jaxformer.layers.tubelets import TimeEmbeddings, TubeletEmbeddings, check_times
from jaxformer.metrics.means import added
from jaxformer.models.base import InputSpec, Model, ModelOutput
from jaxformer.models.flops import linear_flops, stack_flops

CLIPS = InputSpec("bzyxn", "pixels of the frames, from 0 to 255", "uint8")
STACK: dict[str, Any] = {"norm": LayerNorm(1e-6), "dropout": 0.0, "attention_dropout": 0.0}


@flax.struct.dataclass
class VideoVitOutput(ModelOutput):
    """Output of a `VideoVit`.

    `hidden` contains the class token, if there is one, and then one vector per tubelet, by time and row by row. With a
    temporal encoder, it contains one vector per time step instead of one per tubelet. `pooled` is [batch, embed].
    """

    logits: jax.Array | None = None
    """Class logits, float32 [batch, labels]. None for a model without labels."""

    @property
    def features(self) -> jax.Array | None:
        """Vectors to use as features in other tasks: one per clip, [batch, embed]."""
        return self.pooled


class VideoVit(Model):
    """Vision Transformer for video clips: an encoder of tubelets (patches that extend over several frames), and a
    classifier if it has labels. `VideoVit()` is ViViT-B/16x2.

    With sinusoidal positions, no class token and mean pooling, it is the encoder of a `VideoMaskedAutoencoder`, whose
    parameters have the same paths.
    """

    transformer: Transformer = Transformer(**STACK)
    """Transformer blocks that attend to all tubelets of a clip or, if there is a `temporal` encoder, to the tubelets of
    one time step.
    """
    labels: tuple[str, ...] = ()
    """Class names in the order of their ids. If empty, the model has no classification head."""
    image: int = 224
    """Height and width of the frames in pixels."""
    frames: int = 32
    """Number of frames of a clip."""
    patch: int = 16
    """Height and width of a tubelet in pixels."""
    tubelet: int = 2
    """Number of frames of a tubelet."""
    channels: int = 3
    """Number of channels: 1 for grayscale, 3 for RGB."""
    temporal: Transformer | None = None
    """Temporal encoder: Transformer blocks that attend to one vector per time step, which is the pooled output of
    `transformer` for this time step. It has the same width. If None, `transformer` attends over space and time jointly.
    """
    position_embedding: ImagePositions = "learned"
    """How positions are added to tubelet embeddings: as a `learned` table, or as `sinusoidal` vectors of the index of a
    tubelet in its clip.
    """
    class_token: bool = True
    """Whether to prepend a class token to the tubelets and, in the temporal encoder, to the time steps."""
    pooling: Literal["first", "mean"] = "first"
    """How output vectors are reduced to one: `first` (the output at the class token) or `mean` (the mean of all
    others).
    """
    pooled_norm: nn.Module | None = None
    """Normalization of the pooled vector, as in VideoMAE, where it replaces the norm at the end of the stack. If None,
    the pooled vector is not normalized.
    """
    mean: tuple[float, ...] = (0.5,)
    """Mean to subtract from pixels scaled to 0–1: one number per channel, or one for all channels."""
    std: tuple[float, ...] = (0.5,)
    """Standard deviation to divide pixels by: one number per channel, or one for all channels."""

    def __post_init__(self):
        separate(self, "temporal", "transformer")
        super().__post_init__()
        check_geometry(self.image, self.patch, self.channels, self.mean, self.std)
        check_times(self.frames, self.tubelet)
        if len(self.labels) == 1:
            raise InputError(f"model.labels={self.labels}: expected at least two names, or none")
        if self.pooling not in ("first", "mean"):
            raise InputError(f"model.pooling={self.pooling}: expected first or mean for a VideoVit")
        if self.position_embedding == "sinusoidal" and self.transformer.width % 2:
            raise InputError(f"transformer.width={self.transformer.width}: sinusoidal positions need an even number")
        if self.temporal is not None and self.temporal.width != self.transformer.width:
            width = self.transformer.width
            raise InputError(f"model.temporal.width={self.temporal.width}: expected model.transformer.width={width}")

    @property
    def times(self) -> int:
        """Number of time steps of a clip: its number of frames divided by the number of frames of a tubelet."""
        return self.frames // self.tubelet

    @property
    def patches(self) -> int:
        """Number of tubelets per time step."""
        return (self.image // self.patch) ** 2

    def inputs(self) -> dict[str, InputSpec]:
        """Returns a dict that maps the input name `clips` to the specification of its array: axes, data type and
        meaning.
        """
        return {"clips": CLIPS}

    def stacks(self) -> dict[str, Transformer]:
        """Returns the stack of encoder blocks and, if there is a temporal encoder, the stack of its blocks, keyed by
        the paths of their parameters.
        """
        return {"transformer": self.transformer} | ({} if self.temporal is None else {"temporal": self.temporal})

    def fixed_sizes(self) -> dict[str, int]:
        """Returns the number of frames `z`, and their height `y`, width `x` and number of channels `n`, keyed by these
        axis letters.
        """
        return {"z": self.frames, "y": self.image, "x": self.image, "n": self.channels}

    def flops(self, sizes: Mapping[str, int]) -> float:
        """Returns the FLOPs of a forward pass that computes only the outputs `pooled` and `logits`. `sizes["b"]` is the
        number of clips.
        """
        width, token = self.transformer.width, int(self.class_token)
        needed = 1 if self.pooling == "first" else None
        flops = linear_flops(self.times * self.patches, self.tubelet * self.patch**2 * self.channels, width)
        if self.temporal is None:
            flops += stack_flops(self.transformer, token + self.times * self.patches, needed)
        else:
            flops += self.times * stack_flops(self.transformer, token + self.patches, needed)
            flops += stack_flops(self.temporal, token + self.times, needed)
        return sizes["b"] * (flops + (linear_flops(width, len(self.labels)) if self.labels else 0.0))

    @property
    def head_fields(self) -> tuple[str, ...]:
        """Names of the fields that affect only pooling and classification. A warm start may use a pretrained model with
        other values in these fields.
        """
        return "labels", "pooling", "pooled_norm"

    def comparable(self) -> Self:
        """Returns a copy with the default pixel mean and standard deviation, for comparing two models. Models that
        differ only in this preprocessing then count as equal.
        """
        return dataclasses.replace(self, mean=(0.5,), std=(0.5,))

    @nn.compact
    def __call__(
        self, clips: jax.Array, train: bool = False, return_attention: bool = False, pooled_only: bool = False
    ) -> VideoVitOutput:
        """Encodes clips, and classifies them if the model has labels.

        Args:
          clips: uint8 [batch, frames, height, width, channels], or floats that are already normalized.
          train: whether to apply dropout. Requires the rng stream `dropout`.
          return_attention: whether to return the attention weights of the temporal encoder or, without one, of the
            encoder.
          pooled_only: whether only `pooled` and the logits are needed, so that the last block may skip all positions
            that they do not depend on.
        """
        config, pixels = self.transformer, normalise(clips, self.mean, self.std)
        batch, means = pixels.shape[0], {}
        if self.temporal is not None:  # Each moment is encoded as a clip of its own.
            pixels = pixels.reshape(-1, self.tubelet, *pixels.shape[2:])
        embeddings = TubeletEmbeddings(
            config.width,
            self.patch,
            self.tubelet,
            self.position_embedding,
            self.class_token,
            config.dtype,
            name="embeddings",
        )
        embedded = embeddings(pixels)
        x = jnp.concatenate([embedded.leading, embedded.patches], axis=1)
        last, given = self.temporal or config, BlockInputs(train=train, return_attention=return_attention)
        if self.temporal is not None:
            moments = self._run(config, x, BlockInputs(train=train), pooled_only=True)
            means, x = moments.means, self._pool(moments.hidden).reshape(batch, self.times, -1)
            x = TimeEmbeddings(self.class_token, name="temporal_embeddings")(x)
        output = self._run(last, x, given, pooled_only)
        pooled = self._pool(output.hidden)
        if self.pooled_norm is not None:
            pooled = self.pooled_norm.copy(name="head_norm")(pooled)
        logits = None
        if self.labels:
            head = Linear("bd,dc->bc", (config.width, len(self.labels)), dtype=config.dtype, name="head")
            logits = head(pooled).astype(jnp.float32)
        hidden = None if pooled_only and self.pooling == "first" else output.hidden
        means = added(means, output.means)
        return VideoVitOutput(hidden=hidden, pooled=pooled, logits=logits, attention=output.attention, means=means)

    def _run(self, stack: Transformer, x: jax.Array, inputs: BlockInputs, pooled_only: bool) -> TransformerOutput:
        """Runs a stack of Transformer blocks. If `pooled_only` and the pooling is `first`, computes only the output at
        the first position, unless attention weights are requested.
        """
        if pooled_only and self.pooling == "first" and not inputs.return_attention:
            inputs = dataclasses.replace(inputs, at=jnp.zeros((x.shape[0], 1), jnp.int32))
        return stack(Dropout(stack.dropout)(x, inputs.train), inputs)

    def _pool(self, hidden: jax.Array) -> jax.Array:
        if self.pooling == "first":
            return hidden[:, 0]
        return hidden[:, int(self.class_token) :].mean(axis=1, dtype=jnp.float32).astype(hidden.dtype)


def video_mae_encoder(**fields: Any) -> Transformer:
    """Returns the stack of Transformer blocks of VideoMAE (Tong et al. 2022), without key biases and without a norm at
    the end.

    Args:
      fields: values of other fields of `Transformer`, such as width and depth.
    """
    return Transformer(**STACK | {"attention": Attention(key_bias=False), "last_norm": False} | fields)
