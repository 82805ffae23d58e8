"""YOLOS: object detection by a plain Vision Transformer with detection tokens (Fang et al. 2021)."""

import dataclasses
from collections.abc import Mapping
from typing import Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer.errors import InputError
from jaxformer.layers.block import BlockInputs
from jaxformer.layers.dropout import Dropout
from jaxformer.layers.linear import DType, Linear, truncated_normal
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.patches import bicubic, check_geometry, initial_positions, normalise, patchify
from jaxformer.layers.transformer import Transformer
from jaxformer.models.base import InputSpec
from jaxformer.models.detection import DetectionModel, DetectionOutput, Mlp3, head_flops
from jaxformer.models.detr import IMAGENET_MEAN, IMAGENET_STD
from jaxformer.models.flops import linear_flops, stack_flops
from jaxformer.models.vit import IMAGES
from jaxformer.parallel import metadata


class Yolos(DetectionModel):
    """YOLOS: a ViT whose last tokens are detection tokens, each of which predicts one box and its label. By default,
    the sizes are those of YOLOS-Base.

    Position embeddings are added only to the input of the first block. The padding of images in a batch is not masked,
    as in the paper.
    """

    transformer: Transformer = Transformer(norm=LayerNorm(1e-12), dropout=0.0, attention_dropout=0.0)
    """Stack of Transformer blocks."""
    labels: tuple[str, ...] = ()
    """Label names in index order, without the label for no object."""
    queries: int = 100
    """Number of detection tokens. Each of them makes one prediction per image."""
    image: int = 512
    """Height of the images in pixels. Learned positions are interpolated for other sizes."""
    image_width: int | None = None
    """Width of the images in pixels. If None, images are square."""
    patch: int = 16
    """Height and width of a patch in pixels."""
    channels: int = 3
    """Number of image channels: 1 for grayscale, 3 for RGB."""
    mean: tuple[float, ...] = IMAGENET_MEAN
    """Mean to subtract from pixels scaled to 0–1: one number per channel, or one for all channels."""
    std: tuple[float, ...] = IMAGENET_STD
    """Standard deviation to divide pixels by: one number per channel, or one for all channels."""

    def __post_init__(self):
        super().__post_init__()
        check_geometry(self.image, self.patch, self.channels, self.mean, self.std)
        if self.image_width is not None and (self.image_width < 1 or self.image_width % self.patch):
            raise InputError(f"model.image_width={self.image_width}: expected a multiple of model.patch={self.patch}")
        if not self.labels:
            raise InputError("model.labels=(): expected at least one label name")
        if self.queries < 1:
            raise InputError(f"model.queries={self.queries}: expected at least 1")

    @property
    def grid(self) -> tuple[int, int]:
        """Number of patch rows and of patch columns for which position embeddings are learned."""
        return self.image // self.patch, (self.image_width or self.image) // self.patch

    def inputs(self) -> dict[str, InputSpec]:
        """Returns a dict that maps the name of the input argument, `images`, to the specification of its array."""
        return {"images": IMAGES}

    def stacks(self) -> dict[str, Transformer]:
        """Returns the Transformer stack, keyed by its field name `transformer`."""
        return {"transformer": self.transformer}

    def fixed_sizes(self) -> dict[str, int]:
        """Returns the lengths of the input axes that are the same in every call: `y` (height), `x` (width) and `n`
        (channels).
        """
        return {"y": self.image, "x": self.image_width or self.image, "n": self.channels}

    def flops(self, sizes: Mapping[str, int]) -> float:
        """Returns the number of floating-point operations of a forward pass. `sizes` contains the number of images,
        `b`.
        """
        width, patches = self.transformer.width, self.grid[0] * self.grid[1]
        flops = linear_flops(patches, self.patch**2 * self.channels, width)
        flops += stack_flops(self.transformer, 1 + patches + self.queries)
        heads = head_flops(width, len(self.labels) + 1) + head_flops(width, 4)
        return sizes["b"] * (flops + self.queries * heads)

    @property
    def head_fields(self) -> tuple[str, ...]:
        """Names of the model's fields that only affect the heads. In a warm start, the pretrained model may have other
        values in these fields.
        """
        return ("labels",)

    def comparable(self) -> Self:
        """Returns a copy for comparing two models. Its image preprocessing (`mean`, `std`) has fixed values, and
        `image_width` is explicit, so that models which differ only in these fields count as equal.
        """
        return dataclasses.replace(self, mean=(0.5,), std=(0.5,), image_width=self.image_width or self.image)

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False, all_layers: bool = False) -> DetectionOutput:
        """Predicts boxes and labels.

        Args:
          images: uint8 [batch, height, width, channels], or floats that are already normalized. Height and width must
            be multiples of the patch size.
          train: whether to apply dropout. Requires the rng stream `dropout`.
          all_layers: has no effect, because only the last layer makes predictions.
        """
        del all_layers
        config, dtype = self.transformer, self.transformer.dtype
        x = Embeddings(config.width, self.grid, self.patch, self.queries, dtype, name="embeddings")(
            normalise(images, self.mean, self.std)
        )
        output = config(Dropout(config.dropout)(x, train), BlockInputs(train=train))
        hidden = output.hidden[:, -self.queries :]
        logits = Mlp3(len(self.labels) + 1, dtype, name="head")(hidden).astype(jnp.float32)
        boxes = jax.nn.sigmoid(Mlp3(4, dtype, name="box")(hidden).astype(jnp.float32))
        return DetectionOutput(hidden=output.hidden, logits=logits, boxes=boxes, means=output.means)


class Embeddings(nn.Module):
    """Input layer: embeds images as a class token, one token per patch, and detection tokens, and adds learned position
    embeddings. Returns [batch, tokens, embed].
    """

    width: int
    grid: tuple[int, int]
    patch: int
    queries: int
    dtype: DType

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        size, width, channels = self.patch, self.width, images.shape[-1]
        shape = (size, size, channels, width)
        x = Linear("bpyxn,yxnd->bpd", shape, True, self.dtype, name="patch")(patchify(images, size))
        init = metadata.with_axes(truncated_normal(0.02), "d")
        first = self.param("class_token", init, (width,))
        init = metadata.with_axes(truncated_normal(0.02), "_d")
        tokens = self.param("detection_tokens", init, (self.queries, width))
        table = self._positions(images.shape[1] // size, images.shape[2] // size)
        rows = [jnp.broadcast_to(part, (x.shape[0], *part.shape)) for part in (first[None], tokens)]
        return jnp.concatenate([rows[0].astype(x.dtype), x, rows[1].astype(x.dtype)], axis=1) + table.astype(x.dtype)

    def _positions(self, rows: int, columns: int) -> jax.Array:
        """Returns the position embeddings of all tokens, [tokens, embed], for images with this number of rows and
        columns of patches. Those of the patches are interpolated if the learned grid has another size.
        """
        high, wide = self.grid

        def init(key, shape):
            del key
            patches = initial_grid_positions(high, wide, shape[1])
            return jnp.concatenate([jnp.zeros((1, shape[1])), patches, jnp.zeros((self.queries, shape[1]))])

        shape = (1 + high * wide + self.queries, self.width)
        table = self.param("position", metadata.with_axes(init, "_d"), shape)
        if (rows, columns) == (high, wide):
            return table
        patches = table[1 : 1 + high * wide].reshape(high, wide, -1)
        patches = jnp.einsum("ry,cx,yxd->rcd", bicubic(high, rows), bicubic(wide, columns), patches)
        return jnp.concatenate([table[:1], patches.reshape(rows * columns, -1), table[1 + high * wide :]])


def initial_grid_positions(rows: int, columns: int, width: int) -> jax.Array:
    """Returns initial position embeddings for a grid of patches, [rows · columns, width]. They are sinusoidal
    embeddings of the smallest square grid that contains this grid, without the other rows or columns.
    """
    side = max(rows, columns)
    table = initial_positions(jax.random.key(0), (side * side, width), 0).reshape(side, side, width)
    return table[:rows, :columns].reshape(rows * columns, width)
