"""ViT: a Transformer over the patches of an image (Dosovitskiy et al. 2021); with layer scale, DINOv2 (Oquab et al.
2024)."""

from typing import Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxformer.errors import InputError
from jaxformer.layers.dropout import Dropout
from jaxformer.layers.linear import Linear
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.patches import ImageEmbeddings, ImagePositions, check_geometry, normalise
from jaxformer.layers.transformer import Transformer

Pooling = Literal["class", "mean", "class_and_mean"]
"""What stands for the image: the class token, the mean of the patches (Beyer et al. 2022), or both, one behind the
other."""


@flax.struct.dataclass
class VitOutput:
    """What a ViT computed; None for what the model has not, or was not asked for."""

    hidden: jax.Array | None
    """The stack's output, [b, t, d]: class token, registers, patches row by row."""
    pooled: jax.Array
    """What stands for each image, [b, d], or [b, 2 d] of `class_and_mean`."""
    logits: jax.Array | None
    """float32 [b, c], of a model with labels."""
    attention: jax.Array | None
    """Attention weights, float32 [l, b, h, t, s], where they were asked for."""

    @property
    def features(self) -> jax.Array:
        """A vector for each image, [b, d]."""
        return self.pooled


class Vit(nn.Module):
    """An encoder of images, and their classifier where it has labels. `Vit()` is ViT-B/16."""

    transformer: Transformer = Transformer(norm=LayerNorm(1e-6), dropout=0.0, attention_dropout=0.0)
    """The stack of blocks."""
    labels: tuple[str, ...] = ()
    """The name of each class, in the order of their numbers; without any the model has no head."""
    image: int = 224
    """Height and width of the images that it is made for; learned positions are interpolated to others."""
    patch: int = 16
    """Height and width of a patch."""
    channels: int = 3
    """Channels of an image: 1 is grey, 3 are red, green and blue."""
    position_embedding: ImagePositions = "learned"
    """How positions are added to patches."""
    class_token: bool = True
    """Whether a class token stands before the patches."""
    registers: int = 0
    """Register tokens between the class token and the patches."""
    pooling: Pooling = "class"
    """What stands for the image."""
    pooler: bool = False
    """Whether what stands for the image is the tanh of a linear map of that."""
    mean: tuple[float, ...] = (0.5,)
    """Of each channel, or of all, what is subtracted from pixels between 0 and 1."""
    std: tuple[float, ...] = (0.5,)
    """What they are divided by then."""

    def __post_init__(self):
        super().__post_init__()
        check_geometry(self.image, self.patch, self.channels, self.mean, self.std)
        if len(self.labels) == 1:
            raise InputError(f"model.labels={self.labels}: expected two names or more, or none")
        if self.pooling != "mean" and not self.class_token:
            raise InputError(f"model.pooling={self.pooling}: expected mean where model.class_token=False")
        if self.position_embedding == "sinusoidal" and self.transformer.width % 4:
            raise InputError(f"transformer.width={self.transformer.width}: sinusoidal positions need a multiple of 4")

    def blank(self) -> jax.ShapeDtypeStruct:
        """The shape of an image for it, in a batch of one."""
        return jax.ShapeDtypeStruct((1, self.image, self.image, self.channels), jnp.float32)

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
        fields = (
            config.width,
            self.image,
            self.patch,
            self.position_embedding,
            self.class_token,
            self.registers,
            config.dtype,
        )
        embedded = ImageEmbeddings(*fields, name="embeddings")(normalise(images, self.mean, self.std))
        x = jnp.concatenate([embedded.leading, embedded.patches], axis=1)
        x = Dropout(config.dropout)(x, train)
        at = None
        if pooled_only and self.pooling == "class" and not return_attention:
            at = jnp.zeros((x.shape[0], 1), jnp.int32)
        output = config(x, None, train, return_attention, at=at)
        pooled = self._pool(output.hidden)
        if self.pooler:
            pooled = jnp.tanh(
                Linear("bi,id->bd", (pooled.shape[-1], config.width), dtype=config.dtype, name="pooler")(pooled)
            )
        logits = None
        if self.labels:
            head = Linear("bd,dc->bc", (pooled.shape[-1], len(self.labels)), dtype=config.dtype, name="head")
            logits = head(pooled).astype(jnp.float32)
        return VitOutput(output.hidden if at is None else None, pooled, logits, output.attention)

    def _pool(self, hidden: jax.Array) -> jax.Array:
        parts = []
        if self.pooling != "mean":
            parts.append(hidden[:, 0])
        if self.pooling != "class":
            patches = hidden[:, int(self.class_token) + self.registers :]
            parts.append(patches.mean(axis=1, dtype=jnp.float32).astype(hidden.dtype))
        return jnp.concatenate(parts, axis=-1)
