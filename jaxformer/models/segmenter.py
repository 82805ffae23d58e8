"""Segmenter: a ViT whose patches are decoded to the labels of pixels (Strudel et al. 2021)."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxformer.errors import InputError
from jaxformer.layers.block import BlockInputs
from jaxformer.layers.dropout import Dropout
from jaxformer.layers.linear import Linear, truncated_normal
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.patches import ImageEmbeddings, ImagePositions, check_geometry, normalise
from jaxformer.layers.transformer import Transformer, separate
from jaxformer.metrics.means import added
from jaxformer.models.base import InputSpec, Model, ModelOutput
from jaxformer.models.flops import linear_flops, stack_flops
from jaxformer.models.vit import IMAGES
from jaxformer.parallel import metadata

STACK: dict[str, Any] = {"norm": LayerNorm(1e-6), "dropout": 0.0, "attention_dropout": 0.0}
EPSILON = 1e-6
"""Minimum length of a vector that is scaled to length 1."""


@flax.struct.dataclass
class SegmentationOutput(ModelOutput):
    """Output of a segmentation model. `hidden` is the output of the encoder."""

    logits: jax.Array | None = None
    """Logits of the labels at each position of a grid over the image, float32 [batch, rows, columns, labels]."""


class Segmenter(Model):
    """Segmentation model: a ViT, and a linear decoder or a mask transformer. `Segmenter(labels=...)` is Seg-B-Mask/16.

    The encoder parameters have the same paths as those of a `Vit`.
    """

    transformer: Transformer = Transformer(**STACK)
    """Stack of the encoder."""
    labels: tuple[str, ...] = ()
    """Label names in the order of their ids."""
    decoder: Transformer | None = Transformer(depth=2, **STACK)
    """Stack of the mask transformer, over the patches and one vector for each label. If None, the decoder is linear."""
    image: int = 512
    """Height and width of the images in pixels, which are the windows of larger pictures."""
    patch: int = 16
    """Height and width of a patch in pixels."""
    channels: int = 3
    """Number of image channels: 1 for grayscale, 3 for RGB."""
    position_embedding: ImagePositions = "learned"
    """How positions are added to patch embeddings."""
    mean: tuple[float, ...] = (0.5,)
    """Mean to subtract from pixels scaled to 0–1: one number per channel, or one for all channels."""
    std: tuple[float, ...] = (0.5,)
    """Standard deviation to divide pixels by: one number per channel, or one for all channels."""

    segments: ClassVar[bool] = True
    """Whether the logits are those of the labels of pixels."""

    def __post_init__(self):
        separate(self, "decoder", "transformer")
        super().__post_init__()
        check_geometry(self.image, self.patch, self.channels, self.mean, self.std)
        if len(self.labels) == 1:
            raise InputError(f"model.labels={self.labels}: expected at least two names")

    @property
    def side(self) -> int:
        """Number of patches along each side of an image."""
        return self.image // self.patch

    def inputs(self) -> dict[str, InputSpec]:
        """Returns the specification of the images."""
        return {"images": IMAGES}

    def stacks(self) -> dict[str, Transformer]:
        """Returns the encoder stack, and that of the mask transformer."""
        return {"transformer": self.transformer} | ({} if self.decoder is None else {"decoder": self.decoder})

    def fixed_sizes(self) -> dict[str, int]:
        """Returns the height, width and number of channels of the images."""
        return {"y": self.image, "x": self.image, "n": self.channels}

    @property
    def head_fields(self) -> tuple[str, ...]:
        """Names of the fields that only affect the decoder."""
        return "labels", "decoder"

    def comparable(self) -> Self:
        """Returns a copy whose pixel mean and standard deviation are the defaults, for comparing two models."""
        return dataclasses.replace(self, mean=(0.5,), std=(0.5,))

    def flops(self, sizes: Mapping[str, int]) -> float:
        """Returns the FLOPs of a forward pass. `sizes` has the number of images `b`."""
        width, patches, classes = self.transformer.width, self.side**2, len(self.labels)
        flops = linear_flops(patches, self.patch**2 * self.channels, width)
        flops += stack_flops(self.transformer, 1 + patches)
        if self.decoder is None:
            return sizes["b"] * (flops + linear_flops(patches, width, classes))
        inner, tokens = self.decoder.width, patches + classes
        flops += linear_flops(patches, width, inner) + stack_flops(self.decoder, tokens)
        return sizes["b"] * (flops + linear_flops(tokens, inner, inner) + linear_flops(patches, inner, classes))

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> SegmentationOutput:
        """Computes the logits of the labels of each patch.

        Args:
          images: uint8 [batch, height, width, channels], or floats that are already normalized.
          train: whether to apply dropout. Requires the rng stream `dropout`.
        """
        config = self.transformer
        embeddings = ImageEmbeddings(
            config.width, self.image, self.patch, self.position_embedding, dtype=config.dtype, name="embeddings"
        )
        embedded = embeddings(normalise(images, self.mean, self.std))
        x = jnp.concatenate([embedded.leading, embedded.patches], axis=1)
        encoded = config(Dropout(config.dropout)(x, train), BlockInputs(train=train))
        patches, classes, means = encoded.hidden[:, 1:], len(self.labels), encoded.means
        if self.decoder is None:
            shape = (config.width, classes)
            head = Linear("bpd,dc->bpc", shape, dtype=config.dtype, name="head")
            logits = head(patches).astype(jnp.float32)
        else:
            logits, decoded = self._masks(self.decoder, patches, train)
            means = added(means, decoded)
        rows, columns = images.shape[1] // self.patch, images.shape[2] // self.patch
        logits = logits.reshape(-1, rows, columns, classes)
        return SegmentationOutput(encoded.hidden, logits=logits, means=means)

    def _masks(self, decoder: Transformer, patches: jax.Array, train: bool):
        """Decodes patches with one learned vector for each label. The logits are products of their outputs.

        Returns the logits, float32 [batch, patches, labels], and the auxiliary means of the decoder.
        """
        width, dtype, classes = decoder.width, decoder.dtype, len(self.labels)
        shape = (patches.shape[-1], width)
        embed = Linear("bpi,id->bpd", shape, dtype=dtype, name="decoder_embedding")
        x = embed(patches)
        vectors = self.param("class_embeddings", metadata.with_axes(truncated_normal(0.02), "cd"), (classes, width))
        vectors = jnp.broadcast_to(vectors.astype(x.dtype), (x.shape[0], classes, width))
        output = decoder(jnp.concatenate([x, vectors], axis=1), BlockInputs(train=train))
        count = patches.shape[1]
        of_patches = Linear("bpi,id->bpd", (width, width), False, dtype, name="patch_projection")
        of_classes = Linear("bci,id->bcd", (width, width), False, dtype, name="class_projection")
        ours, theirs = of_patches(output.hidden[:, :count]), of_classes(output.hidden[:, count:])
        masks = jnp.einsum("bpd,bcd->bpc", _unit(ours), _unit(theirs))
        return LayerNorm(1e-5, name="mask_norm")(masks), output.means


def _unit(vectors: jax.Array) -> jax.Array:
    """Scales vectors to length 1, in float32."""
    wide = vectors.astype(jnp.float32)
    return wide * jax.lax.rsqrt(jnp.maximum(jnp.square(wide).sum(-1, keepdims=True), EPSILON**2))
