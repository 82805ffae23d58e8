"""Division of images into patches, and patch and position embeddings (Dosovitskiy et al. 2021, §3.1)."""

import functools
from typing import Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.errors import InputError
from jaxformer.layers.linear import DType, Linear, truncated_normal
from jaxformer.layers.positions import sinusoidal
from jaxformer.parallel import metadata

ImagePositions = Literal["learned", "sinusoidal"]
"""How position embeddings are added to patch embeddings: as a learned table, or as sinusoids of the column and row of a
patch.
"""


@flax.struct.dataclass
class Embedded:
    """Embeddings of images: the input vectors of a stack of Transformer blocks."""

    leading: jax.Array
    """Vectors to put before the patches, [batch, leading, embed]: the class token if there is one, then the registers
    (learned tokens without a position).
    """
    patches: jax.Array
    """Patch embeddings, [batch, patches, embed], row by row of the image."""


def patchify(images: jax.Array, size: int) -> jax.Array:
    """Divides images [batch, height, width, channels] into patches [batch, patches, size, size, channels], row by
    row.
    """
    batch, height, width, channels = images.shape
    if height % size or width % size:
        raise ValueError(f"images of {height} × {width} cannot be divided into patches of {size} × {size}")
    rows = images.reshape(batch, height // size, size, width // size, size, channels)
    return rows.swapaxes(2, 3).reshape(batch, -1, size, size, channels)


def unpatchify(patches: jax.Array, columns: int) -> jax.Array:
    """Assembles patches [batch, patches, size, size, channels] into images [batch, height, width, channels]. `columns`
    is the number of patches in each row of patches.
    """
    batch, count, size, _, channels = patches.shape
    rows = patches.reshape(batch, count // columns, columns, size, size, channels)
    return rows.swapaxes(2, 3).reshape(batch, count // columns * size, columns * size, channels)


def normalise(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """Normalizes uint8 pixels to float32: (pixel / 255 - mean) / std. Images of another type are assumed to be
    normalized already and are only converted to float32.
    """
    if images.dtype != jnp.uint8:
        return images.astype(jnp.float32)
    means, stds = np.array(mean, np.float32), np.array(std, np.float32)
    return images.astype(jnp.float32) / (255 * stds) - means / stds


def denormalise(images: jax.Array, mean: tuple[float, ...], std: tuple[float, ...]) -> jax.Array:
    """Converts normalized images to uint8 pixels, the inverse of `normalise`."""
    means, stds = (jnp.asarray(values, jnp.float32) for values in (mean, std))
    return jnp.round(255 * jnp.clip(images * stds + means, 0, 1)).astype(jnp.uint8)


def check_geometry(image: int, patch: int, channels: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Raises InputError if the image settings of a model are not valid: sizes below 1, an image size that is not a
    multiple of the patch size, or a mean or std with another number of values than 1 or `channels`.

    Args:
      image: height and width of the images in pixels.
      patch: height and width of a patch in pixels.
      channels: number of color channels.
      mean: value to subtract from the pixels of each channel.
      std: value to divide the pixels of each channel by.
    """
    for name, value in (("image", image), ("patch", patch), ("channels", channels)):
        if value < 1:
            raise InputError(f"model.{name}={value}: expected at least 1")
    if image % patch:
        nearest = max(1, round(image / patch)) * patch
        raise InputError(f"model.image={image} is not a multiple of model.patch={patch}; {nearest} would be")
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, channels):
            raise InputError(f"model.{name}={values}: expected one number, or one for each of {channels} channels")
    if not all(value > 0 for value in std):
        raise InputError(f"model.std={std}: expected numbers above 0")


def check_images(shape: tuple[int, ...], patch: int, channels: int) -> None:
    """Raises InputError if images of shape (height, width, channels) do not have the model's number of channels, or
    cannot be divided into patches of `patch` × `patch` pixels.
    """
    height, width, given = shape
    if height % patch or width % patch:
        nearest = max(1, round(height / patch)) * patch
        raise InputError(f"data.task.image.size={height} is not a multiple of model.patch={patch}; {nearest} would be")
    if given != channels:
        raise InputError(f"data.task.image.channels={given} differs from model.channels={channels}")


def sinusoidal_2d(rows: int, columns: int, width: int) -> jax.Array:
    """Computes sinusoidal position embeddings of patches, [rows · columns, width].

    The first half of each vector encodes the column of the patch, the second half its row, as in masked autoencoders
    (He et al. 2022). The width must be divisible by 4.
    """
    if width % 4:
        raise ValueError(
            f"width {width} is not divisible by 4: sines and cosines of columns and rows take a quarter each"
        )
    row, column = (grid.reshape(-1) for grid in np.indices((rows, columns)))
    return jnp.concatenate([sinusoidal(jnp.asarray(place), width // 2) for place in (column, row)], axis=-1)


@functools.cache
def bicubic(old: int, new: int) -> np.ndarray:
    """Computes the matrix [new, old] that resamples `old` equally spaced values to `new` values by cubic convolution
    (Keys 1981).

    As in PyTorch, the coefficient a of the convolution kernel is -0.75, values beyond the ends equal the end values,
    and there is no antialiasing.
    """
    a, matrix = -0.75, np.zeros((new, old), np.float32)
    place = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(place).astype(int) - 1
    for tap in range(4):
        distance = np.abs(place - (first + tap))
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
        np.add.at(matrix, (np.arange(new), np.clip(first + tap, 0, old - 1)), np.where(distance <= 1, near, far))
    return matrix


def interpolate(table: jax.Array, rows: int, columns: int) -> jax.Array:
    """Resizes the position embeddings of a square grid of patches, [side · side, embed], to a grid of another size,
    [rows · columns, embed], by bicubic interpolation.
    """
    side = round(len(table) ** 0.5)
    if (side, side) == (rows, columns):
        return table
    square = table.reshape(side, side, -1)
    return jnp.einsum("ry,cx,yxd->rcd", bicubic(side, rows), bicubic(side, columns), square).reshape(rows * columns, -1)


class ImageEmbeddings(nn.Module):
    """Embeds images [batch, height, width, channels]: divides them into patches, embeds these, and adds position
    embeddings. Also creates the class token and the registers that precede the patches, if configured.
    """

    width: int
    """Size of the patch embeddings."""
    image: int
    """Height and width in pixels of the images for which position embeddings are learned. For images of another size,
    the position embeddings are interpolated.
    """
    patch: int
    """Height and width of a patch in pixels."""
    position_embedding: ImagePositions = "learned"
    """How position embeddings are added to patch embeddings: `learned` (a table) or `sinusoidal`."""
    class_token: bool = True
    """Whether to prepend a class token, whose output represents the whole image."""
    registers: int = 0
    """Number of register tokens: learned tokens without a position, between the class token and the patches (Darcet et
    al. 2024)."""
    dtype: DType = "auto"
    """Data type of the returned embeddings."""
    bias: bool = True
    """Whether the linear layer that embeds patches has a bias."""

    @nn.compact
    def __call__(self, images: jax.Array, features: jax.Array | None = None) -> Embedded:
        """Embeds images.

        Args:
          images: normalized images, [batch, height, width, channels].
          features: embedding of each patch, such as those of a `PatchBackbone`, [batch, rows, columns, width]. If None,
            a linear layer embeds the patches.
        """
        size, width, channels = self.patch, self.width, images.shape[-1]
        if features is None:
            shape = (size, size, channels, width)
            patches = Linear("bpyxn,yxnd->bpd", shape, self.bias, self.dtype, name="patch")(patchify(images, size))
        else:
            patches = features.reshape(len(features), -1, width)
        rows, columns = images.shape[1] // size, images.shape[2] // size
        first, places = self._positions(rows, columns)
        x = patches + places.astype(patches.dtype)
        leading = jnp.zeros((0, width))
        if self.class_token:
            init = metadata.with_axes(truncated_normal(0.02), "d")
            leading = (self.param("class_token", init, (width,)) + first)[None]
        if self.registers:
            init = metadata.with_axes(truncated_normal(0.02), "_d")
            leading = jnp.concatenate([leading, self.param("registers", init, (self.registers, width))])
        leading = jnp.broadcast_to(leading.astype(x.dtype), (x.shape[0], *leading.shape))
        return Embedded(leading, x)

    def _positions(self, rows: int, columns: int) -> tuple[jax.Array | float, jax.Array]:
        """Returns the position embedding of the class token ([embed], or 0.0 if it has none), and those of the patches
        in a grid of `rows` × `columns`, [patches, embed].
        """
        if self.position_embedding == "sinusoidal":
            return 0.0, sinusoidal_2d(rows, columns, self.width)
        side, leading = self.image // self.patch, int(self.class_token)
        init = metadata.with_axes(functools.partial(initial_positions, leading=leading), "_d")
        table = self.param("position", init, (leading + side * side, self.width))
        return table[0] if leading else 0.0, interpolate(table[leading:], rows, columns)


def initial_positions(key: jax.Array, shape: tuple[int, int], leading: int) -> jax.Array:
    """Initializer of learned position embeddings, [leading + patches, embed]. The patches get sinusoids, so that
    neighboring patches differ from the first training step on. The first `leading` rows, for the class token, are 0.
    `key` is not used.
    """
    del key
    side, width = round((shape[0] - leading) ** 0.5), shape[1]
    table = 0.5 * sinusoidal_2d(side, side, width + -width % 4)[:, :width]
    return jnp.concatenate([jnp.zeros((leading, width)), table])
