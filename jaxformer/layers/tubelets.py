"""Tubelets: patches of video clips that extend over several frames (Arnab et al. 2021, §3.2), and their position
embeddings.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.errors import InputError
from jaxformer.layers.linear import DType, Linear, truncated_normal
from jaxformer.layers.patches import Embedded, ImagePositions, sinusoidal_2d
from jaxformer.layers.positions import sinusoidal
from jaxformer.parallel import metadata


def tubelets(clips: jax.Array, frames: int, size: int) -> jax.Array:
    """Divides clips into tubelets, blocks of `frames` × `size` × `size` pixels.

    Returns [batch, tubelets, frames, size, size, channels]. Tubelets are ordered by time, and those of the same frames
    row by row.

    Args:
      clips: pixels, [batch, frames, height, width, channels].
      frames: number of frames of a tubelet.
      size: height and width of a tubelet in pixels.
    """
    batch, count, height, width, channels = clips.shape
    if count % frames or height % size or width % size:
        raise ValueError(f"clips of {count} × {height} × {width}: not divisible into {frames} × {size} × {size}")
    parts = clips.reshape(batch, count // frames, frames, height // size, size, width // size, size, channels)
    return parts.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(batch, -1, frames, size, size, channels)


def check_times(frames: int, tubelet: int) -> None:
    """Raises InputError if the number of frames of a clip (`frames`) is not a multiple of the number of frames of a
    tubelet (`tubelet`), or if either is less than 1.
    """
    for name, value in (("frames", frames), ("tubelet", tubelet)):
        if value < 1:
            raise InputError(f"model.{name}={value}: expected at least 1")
    if frames % tubelet:
        nearest = max(1, round(frames / tubelet)) * tubelet
        raise InputError(f"model.frames={frames} is not a multiple of model.tubelet={tubelet}; {nearest} would be")


def check_clips(shape: tuple[int, ...], model: "nn.Module") -> None:
    """Raises InputError if clips of shape (frames, height, width, channels) do not fit the fields `frames`, `image` and
    `channels` of a video model.

    The number of frames may be a multiple of `model.frames`: an evaluation may concatenate several views of a video.
    """
    frames, height, _, channels = shape
    given = {"frames": frames, "size": height, "channels": channels}
    for name, field in (("frames", "frames"), ("size", "image"), ("channels", "channels")):
        wanted = getattr(model, field)
        if given[name] % wanted if name == "frames" else given[name] != wanted:
            raise InputError(f"data.task.clip.{name}={given[name]} differs from model.{field}={wanted}")


def sinusoidal_1d(count: int, width: int) -> jax.Array:
    """Computes sinusoidal position embeddings of the indices 0 to `count` − 1 of the tubelets in a clip, float32
    [count, width].

    Sines and cosines alternate along the last axis, as in the checkpoints of Tong et al. (2022).
    """
    halves = sinusoidal(jnp.arange(count), width).reshape(count, 2, -1)
    return halves.swapaxes(1, 2).reshape(count, width)


class TubeletEmbeddings(nn.Module):
    """Divides clips [batch, frames, height, width, channels] into tubelets, embeds each by a linear layer and adds its
    position embedding. Also returns the embedding of a class token if configured.
    """

    width: int
    """Size of the embeddings."""
    patch: int
    """Height and width of a tubelet in pixels."""
    tubelet: int
    """Number of frames of a tubelet."""
    position_embedding: ImagePositions = "learned"
    """How positions are added: as a learned table, or as sinusoids of the index of each tubelet in its clip."""
    class_token: bool = True
    """Whether to prepend a class token, whose output represents the whole clip."""
    dtype: DType = "auto"
    """Data type of the returned embeddings."""

    @nn.compact
    def __call__(self, clips: jax.Array) -> Embedded:
        size, width = self.patch, self.width
        shape = (self.tubelet, size, size, clips.shape[-1], width)
        project = Linear("bpzyxn,zyxnd->bpd", shape, dtype=self.dtype, name="patch")
        x = project(tubelets(clips, self.tubelet, size))
        grid = (clips.shape[1] // self.tubelet, clips.shape[2] // size, clips.shape[3] // size)
        leading, first = jnp.zeros((0, width)), 0.0
        if self.position_embedding == "sinusoidal":
            places = sinusoidal_1d(x.shape[1], width)
        else:
            init = functools.partial(initial_positions, grid=grid, leading=int(self.class_token))
            table = self.param("position", metadata.with_axes(init, "_d"), (int(self.class_token) + x.shape[1], width))
            first, places = table[0], table[int(self.class_token) :]
        if self.class_token:
            init = metadata.with_axes(truncated_normal(0.02), "d")
            leading = (self.param("class_token", init, (width,)) + first)[None]
        leading = jnp.broadcast_to(leading.astype(x.dtype), (x.shape[0], *leading.shape))
        return Embedded(leading, x + places.astype(x.dtype))


def initial_positions(key: jax.Array, shape: tuple[int, int], grid: tuple[int, int, int], leading: int) -> jax.Array:
    """Returns the initial table of learned position embeddings, so that tubelets at different positions have different
    embeddings from the first training step.

    Each entry is a sum of sinusoids of the position in the frame and of the time.

    Args:
      key: random key; not used.
      shape: shape of the table, (leading + tubelets, embed).
      grid: number of tubelets along time, height and width.
      leading: number of class tokens before the tubelets. Their embeddings are initialized to 0.
    """
    del key
    (times, rows, columns), even = grid, shape[1] + -shape[1] % 4
    places = jnp.tile(sinusoidal_2d(rows, columns, even), (times, 1))
    moments = jnp.repeat(sinusoidal(jnp.arange(times), even), rows * columns, axis=0)
    table = 0.35 * (places + jnp.flip(moments, -1))[:, : shape[1]]
    return jnp.concatenate([jnp.zeros((leading, shape[1])), table])


class TimeEmbeddings(nn.Module):
    """Adds learned position embeddings to the vectors of the time steps of a clip, [batch, times, embed], and prepends
    a class token if configured.

    The result is the input of the temporal encoder of Arnab et al. (2021, §3.3).
    """

    class_token: bool = True
    """Whether to prepend a class token, whose output represents the whole clip."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        (rows, times, width), leading = x.shape, int(self.class_token)
        init = metadata.with_axes(functools.partial(initial_positions, grid=(times, 1, 1), leading=leading), "_d")
        table = self.param("position", init, (leading + times, width)).astype(x.dtype)
        if not leading:
            return x + table
        token = self.param("class_token", metadata.with_axes(truncated_normal(0.02), "d"), (width,)).astype(x.dtype)
        return jnp.concatenate([jnp.broadcast_to(token + table[0], (rows, 1, width)), x + table[1:]], axis=1)


def tube_mask(noise: np.ndarray, visible: int, times: int) -> np.ndarray:
    """Computes the mask of VideoMAE: True for tubelets that are hidden from the encoder, boolean [batch, times ·
    patches]. The same patches are visible at all times.

    Args:
      noise: random numbers, [batch, patches]. The patches with the lowest numbers are visible.
      visible: number of visible patches.
      times: number of tubelets along time.
    """
    ranks = np.argsort(np.argsort(noise, axis=1), axis=1)
    return np.tile(ranks >= visible, (1, times))
