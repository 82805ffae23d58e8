"""Segmenter for semantic segmentation: a ViT, and a decoder that computes class logits for each patch (Strudel et al.
2021).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxformer.errors import InputError
from jaxformer.layers.backbones import PatchBackbone
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
"""Lower bound of the length by which a vector is divided to scale it to length 1."""


@flax.struct.dataclass
class SegmentationOutput(ModelOutput):
    """Output of a segmentation model. `hidden` contains the output vectors of the encoder."""

    logits: jax.Array | None = None
    """Class logits at each position of a grid over the image, float32 [batch, rows, columns, labels]."""


class Segmenter(Model):
    """Segmentation model: a ViT encoder, followed by a mask transformer or a linear decoder. `Segmenter(labels=...)` is
    Seg-B-Mask/16.

    The encoder parameters have the same paths as those of a `Vit`, unless there is a `stem`.
    """

    transformer: Transformer = Transformer(**STACK)
    """Transformer blocks of the encoder."""
    labels: tuple[str, ...] = ()
    """Class names in the order of their ids."""
    decoder: Transformer | None = Transformer(depth=2, **STACK)
    """Transformer blocks of the mask transformer, which attend to the patches and to one learned vector per class. If
    None, the decoder is a linear layer.
    """
    stem: PatchBackbone | None = None
    """Convolutions that embed the patches, which trains better from random weights than a linear layer (Xiao et al.
    2021). If None, a linear layer embeds them.
    """
    image: int = 512
    """Height and width in pixels of the images, which are usually windows of larger pictures."""
    patch: int = 16
    """Height and width of a patch in pixels."""
    channels: int = 3
    """Number of image channels: 1 for grayscale, 3 for RGB."""
    position_embedding: ImagePositions = "learned"
    """How positions are added to patch embeddings: as a `learned` table, or as `sinusoidal` vectors of the row and
    column.
    """
    mean: tuple[float, ...] = (0.5,)
    """Mean to subtract from pixels scaled to 0–1: one number per channel, or one for all channels."""
    std: tuple[float, ...] = (0.5,)
    """Standard deviation to divide pixels by: one number per channel, or one for all channels."""

    is_segmentation_model: ClassVar[bool] = True
    """Marks a segmentation model: its logits classify the patches of an image, not the whole image."""

    def __post_init__(self):
        separate(self, "decoder", "transformer")
        super().__post_init__()
        check_geometry(self.image, self.patch, self.channels, self.mean, self.std)
        if self.stem is not None and (self.stem.patch, self.stem.width) != (self.patch, self.transformer.width):
            given = f"model.stem.patch={self.stem.patch} and model.stem.width={self.stem.width}"
            wanted = f"{self.patch} and {self.transformer.width}, as model.patch and model.transformer.width"
            raise InputError(f"{given}: expected {wanted}")
        if len(self.labels) == 1:
            raise InputError(f"model.labels={self.labels}: expected at least two names")

    @property
    def side(self) -> int:
        """Number of patches along each side of an image."""
        return self.image // self.patch

    def inputs(self) -> dict[str, InputSpec]:
        """Returns a dict that maps the input name `images` to the specification of its array: axes, data type and
        meaning.
        """
        return {"images": IMAGES}

    def stacks(self) -> dict[str, Transformer]:
        """Returns the stack of encoder blocks and, if there is a mask transformer, the stack of its blocks, keyed by
        the paths of their parameters.
        """
        return {"transformer": self.transformer} | ({} if self.decoder is None else {"decoder": self.decoder})

    def fixed_sizes(self) -> dict[str, int]:
        """Returns the height `y`, the width `x` and the number of channels `n` of the images, keyed by these axis
        letters.
        """
        return {"y": self.image, "x": self.image, "n": self.channels}

    @property
    def head_fields(self) -> tuple[str, ...]:
        """Names of the fields that affect only the decoder. A warm start may use a pretrained model with other values
        in these fields.
        """
        return "labels", "decoder"

    def comparable(self) -> Self:
        """Returns a copy with the default pixel mean and standard deviation, for comparing two models. Models that
        differ only in this preprocessing then count as equal.
        """
        return dataclasses.replace(self, mean=(0.5,), std=(0.5,))

    def flops(self, sizes: Mapping[str, int]) -> float:
        """Returns the FLOPs of a forward pass. `sizes["b"]` is the number of images."""
        width, patches, classes = self.transformer.width, self.side**2, len(self.labels)
        if self.stem is None:
            flops = linear_flops(patches, self.patch**2 * self.channels, width)
        else:
            flops = self.stem.flops(self.image, self.image, self.channels)
        flops += stack_flops(self.transformer, 1 + patches)
        if self.decoder is None:
            return sizes["b"] * (flops + linear_flops(patches, width, classes))
        inner, tokens = self.decoder.width, patches + classes
        flops += linear_flops(patches, width, inner) + stack_flops(self.decoder, tokens)
        return sizes["b"] * (flops + linear_flops(tokens, inner, inner) + linear_flops(patches, inner, classes))

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> SegmentationOutput:
        """Computes the class logits of each patch.

        Args:
          images: uint8 [batch, height, width, channels], or floats that are already normalized.
          train: whether to apply dropout. Requires the rng stream `dropout`.
        """
        config = self.transformer
        embeddings = ImageEmbeddings(
            config.width, self.image, self.patch, self.position_embedding, dtype=config.dtype, name="embeddings"
        )
        pixels = normalise(images, self.mean, self.std)
        embedded = embeddings(pixels, None if self.stem is None else self.stem(pixels))
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
        """Runs the mask transformer on the patches and on one learned vector per class. The logits are the cosine
        similarities between the projected outputs of patches and classes, normalized over the classes.

        Returns the logits, float32 [batch, patches, labels], and the auxiliary losses and metrics of the decoder, keyed
        by name.
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
    """Scales vectors [..., embed] to length 1, in float32. Zero vectors stay zero."""
    wide = vectors.astype(jnp.float32)
    return wide * jax.lax.rsqrt(jnp.maximum(jnp.square(wide).sum(-1, keepdims=True), EPSILON**2))
