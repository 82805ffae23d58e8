"""ViT (Vision Transformer): a Transformer encoder for images (Dosovitskiy et al. 2021).

With LayerScale, it is DINOv2 (Oquab et al. 2024).
"""

import dataclasses
from collections.abc import Mapping
from typing import Self

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxformer.errors import InputError
from jaxformer.layers.block import BlockInputs
from jaxformer.layers.dropout import Dropout
from jaxformer.layers.linear import Linear
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.patches import ImageEmbeddings, ImagePositions, check_geometry, normalise
from jaxformer.layers.pooling import Pooling
from jaxformer.layers.transformer import Transformer
from jaxformer.models.base import InputSpec, Model, ModelOutput
from jaxformer.models.flops import linear_flops, stack_flops

POOLINGS = ("first", "mean", "first_and_mean")
IMAGES = InputSpec("byxn", "pixels, from 0 to 255", "uint8")


@flax.struct.dataclass
class VitOutput(ModelOutput):
    """Output of a `Vit`.

    `hidden` contains the class token, the registers, and the patches row by row, [batch, tokens, embed]. `pooled` is
    [batch, embed] or, with the pooling `first_and_mean` and no pooler, [batch, 2 · embed].
    """

    logits: jax.Array | None = None
    """Class logits, float32 [batch, labels]. None for a model without labels."""

    @property
    def features(self) -> jax.Array | None:
        """Vectors to use as features in other tasks: the output `pooled`, one vector per image."""
        return self.pooled


class Vit(Model):
    """Vision Transformer: an image encoder, and a linear classifier if it has labels. `Vit()` is ViT-B/16."""

    transformer: Transformer = Transformer(norm=LayerNorm(1e-6), dropout=0.0, attention_dropout=0.0)
    """Stack of Transformer blocks."""
    labels: tuple[str, ...] = ()
    """Class names in the order of their ids. If empty, the model has no classification head."""
    image: int = 224
    """Height and width of the images in pixels. For images of other sizes, learned position embeddings are
    interpolated.
    """
    patch: int = 16
    """Height and width of a patch in pixels."""
    channels: int = 3
    """Number of image channels: 1 for grayscale, 3 for RGB."""
    position_embedding: ImagePositions = "learned"
    """How positions are added to patch embeddings: as a `learned` table, or as `sinusoidal` vectors of the row and
    column.
    """
    class_token: bool = True
    """Whether to add a class token before the patches."""
    registers: int = 0
    """Number of register tokens: additional learned tokens between the class token and the patches."""
    pooling: Pooling = "first"
    """How output vectors are reduced to one per image: `first` (the output at the class token), `mean` (the mean of the
    patches, Beyer et al. 2022), or `first_and_mean` (both, concatenated).
    """
    pooler: bool = False
    """Whether to apply a linear layer and tanh to the pooled vector, as in BERT."""
    mean: tuple[float, ...] = (0.5,)
    """Mean to subtract from pixels scaled to 0–1: one number per channel, or one for all channels."""
    std: tuple[float, ...] = (0.5,)
    """Standard deviation to divide pixels by: one number per channel, or one for all channels."""

    def __post_init__(self):
        super().__post_init__()
        check_geometry(self.image, self.patch, self.channels, self.mean, self.std)
        if len(self.labels) == 1:
            raise InputError(f"model.labels={self.labels}: expected at least two names, or none")
        if self.pooling not in POOLINGS:
            raise InputError(f"model.pooling={self.pooling}: expected one of {', '.join(POOLINGS)} for a Vit")
        if self.pooling != "mean" and not self.class_token:
            raise InputError(f"model.pooling={self.pooling}: expected mean with model.class_token=False")
        if self.position_embedding == "sinusoidal" and self.transformer.width % 4:
            raise InputError(f"transformer.width={self.transformer.width}: sinusoidal positions need a multiple of 4")

    def inputs(self) -> dict[str, InputSpec]:
        """Returns a dict that maps the input name `images` to the specification of its array: axes, data type and
        meaning.
        """
        return {"images": IMAGES}

    def stacks(self) -> dict[str, Transformer]:
        """Returns the stack of encoder blocks, keyed by the path of its parameters."""
        return {"transformer": self.transformer}

    def fixed_sizes(self) -> dict[str, int]:
        """Returns the height `y`, the width `x` and the number of channels `n` of the images, keyed by these axis
        letters.
        """
        return {"y": self.image, "x": self.image, "n": self.channels}

    def flops(self, sizes: Mapping[str, int]) -> float:
        """Returns the FLOPs of a forward pass that computes only the outputs `pooled` and `logits`. `sizes["b"]` is the
        number of images.
        """
        width, patches = self.transformer.width, (self.image // self.patch) ** 2
        tokens = int(self.class_token) + self.registers + patches
        flops = linear_flops(patches, self.patch**2 * self.channels, width)
        flops += stack_flops(self.transformer, tokens, 1 if self.pooling == "first" else None)
        pooled = 2 * width if self.pooling == "first_and_mean" else width
        if self.pooler:
            flops, pooled = flops + linear_flops(pooled, width), width
        return sizes["b"] * (flops + (linear_flops(pooled, len(self.labels)) if self.labels else 0.0))

    @property
    def head_fields(self) -> tuple[str, ...]:
        """Names of the fields that affect only pooling and classification. A warm start may use a pretrained model with
        other values in these fields.
        """
        return "labels", "pooler", "pooling"

    def comparable(self) -> Self:
        """Returns a copy with the default pixel mean and standard deviation, for comparing two models. Models that
        differ only in this preprocessing then count as equal.
        """
        return dataclasses.replace(self, mean=(0.5,), std=(0.5,))

    @property
    def has_pooler(self) -> bool:
        """Whether the output `pooled` is computed by a trained layer (`pooler`)."""
        return self.pooler

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool = False, return_attention: bool = False, pooled_only: bool = False
    ) -> VitOutput:
        """Encodes images, and classifies them if the model has labels.

        Args:
          images: uint8 [batch, height, width, channels], or floats that are already normalized. Height and width must
            be multiples of the patch size.
          train: whether to apply dropout. Requires the rng stream `dropout`.
          return_attention: whether to return the attention weights of all blocks.
          pooled_only: whether only `pooled` and the logits are needed, so that the last block may skip all positions
            that they do not depend on.
        """
        config = self.transformer
        embeddings = ImageEmbeddings(
            config.width,
            self.image,
            self.patch,
            self.position_embedding,
            self.class_token,
            self.registers,
            config.dtype,
            name="embeddings",
        )
        embedded = embeddings(normalise(images, self.mean, self.std))
        x = jnp.concatenate([embedded.leading, embedded.patches], axis=1)
        x = Dropout(config.dropout)(x, train)
        at = None
        if pooled_only and self.pooling == "first" and not return_attention:
            at = jnp.zeros((x.shape[0], 1), jnp.int32)
        output = config(x, BlockInputs(at=at, train=train, return_attention=return_attention))
        pooled = self._pool(output.hidden)
        if self.pooler:
            pooled = jnp.tanh(
                Linear("bi,id->bd", (pooled.shape[-1], config.width), dtype=config.dtype, name="pooler")(pooled)
            )
        logits = None
        if self.labels:
            head = Linear("bd,dc->bc", (pooled.shape[-1], len(self.labels)), dtype=config.dtype, name="head")
            logits = head(pooled).astype(jnp.float32)
        hidden = output.hidden if at is None else None
        return VitOutput(hidden=hidden, pooled=pooled, logits=logits, attention=output.attention, means=output.means)

    def _pool(self, hidden: jax.Array) -> jax.Array:
        parts = []
        if self.pooling != "mean":
            parts.append(hidden[:, 0])
        if self.pooling != "first":
            patches = hidden[:, int(self.class_token) + self.registers :]
            parts.append(patches.mean(axis=1, dtype=jnp.float32).astype(hidden.dtype))
        return jnp.concatenate(parts, axis=-1)
