"""ViT: a Transformer over the patches of an image (Dosovitskiy et al. 2021); with layer scale, DINOv2 (Oquab et al.
2024)."""

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
    """The output of a ViT.

    `hidden` has the class token, the registers, and the patches row by row; `pooled` is [b, d], or [b, 2 d] with
    `first_and_mean`.
    """

    logits: jax.Array | None = None
    """float32 [b, c]; None for a model without labels."""

    @property
    def features(self) -> jax.Array | None:
        """A vector for each image, [b, d]."""
        return self.pooled


class Vit(Model):
    """An encoder of images, and their classifier if it has labels. `Vit()` is ViT-B/16."""

    transformer: Transformer = Transformer(norm=LayerNorm(1e-6), dropout=0.0, attention_dropout=0.0)
    """The stack of blocks."""
    labels: tuple[str, ...] = ()
    """The name of each class, in the order of their ids; without any the model has no head."""
    image: int = 224
    """Height and width of the images, in pixels; learned positions are interpolated to other sizes."""
    patch: int = 16
    """Height and width of a patch."""
    channels: int = 3
    """Channels of an image: 1 is grey, 3 are red, green and blue."""
    position_embedding: ImagePositions = "learned"
    """How positions are added to patches."""
    class_token: bool = True
    """Whether there is a class token before the patches."""
    registers: int = 0
    """Register tokens between the class token and the patches."""
    pooling: Pooling = "first"
    """How the image becomes a vector: `first` (the class token), `mean` (the mean of the patches, Beyer et al. 2022),
    or `first_and_mean` (both, concatenated)."""
    pooler: bool = False
    """Whether that vector is followed by a linear map and tanh."""
    mean: tuple[float, ...] = (0.5,)
    """Mean of each channel, or of all, for pixels between 0 and 1; it is subtracted."""
    std: tuple[float, ...] = (0.5,)
    """Standard deviation of each channel, or of all; pixels are divided by it."""

    def __post_init__(self):
        super().__post_init__()
        check_geometry(self.image, self.patch, self.channels, self.mean, self.std)
        if len(self.labels) == 1:
            raise InputError(f"model.labels={self.labels}: expected two names or more, or none")
        if self.pooling not in POOLINGS:
            raise InputError(f"model.pooling={self.pooling}: expected one of {', '.join(POOLINGS)} for a Vit")
        if self.pooling != "mean" and not self.class_token:
            raise InputError(f"model.pooling={self.pooling}: expected mean where model.class_token=False")
        if self.position_embedding == "sinusoidal" and self.transformer.width % 4:
            raise InputError(f"transformer.width={self.transformer.width}: sinusoidal positions need a multiple of 4")

    def inputs(self) -> dict[str, InputSpec]:
        """The images."""
        return {"images": IMAGES}

    def stacks(self) -> dict[str, Transformer]:
        """The encoder."""
        return {"transformer": self.transformer}

    def fixed_sizes(self) -> dict[str, int]:
        """Height, width and channels of the images."""
        return {"y": self.image, "x": self.image, "n": self.channels}

    def flops(self, sizes: Mapping[str, int]) -> float:
        """Operations of a forward pass on b images that computes only what `pooled` needs."""
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
        """The head, which pools and classifies."""
        return "labels", "pooler", "pooling"

    def comparable(self) -> Self:
        """The model without the statistics of pixels, which belong to the preparation of images."""
        return dataclasses.replace(self, mean=(0.5,), std=(0.5,))

    @property
    def has_pooler(self) -> bool:
        """Whether there is a pooler."""
        return self.pooler

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool = False, return_attention: bool = False, pooled_only: bool = False
    ) -> VitOutput:
        """Encodes images, and classifies them where there are labels.

        Args:
          images: uint8 [b, height, width, n], or floats that are normalised already. Height and width are multiples of
            the patch.
          train: whether to drop out; needs the rng stream `dropout`.
          return_attention: whether to return the attention weights.
          pooled_only: whether the last block may leave out whatever `pooled` does not need.
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
