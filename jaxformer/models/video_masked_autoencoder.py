"""VideoMAE, a masked autoencoder of video clips (Tong et al. 2022).

Tubelets are patches that extend over several frames. The encoder gets a tenth of them, at the same positions in all
frames, and a small decoder predicts the pixels of all others.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Self

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.errors import InputError
from jaxformer.layers.block import BlockInputs, take
from jaxformer.layers.dropout import Dropout
from jaxformer.layers.linear import Linear, truncated_normal
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.patches import check_geometry, normalise
from jaxformer.layers.transformer import Transformer, separate
from jaxformer.layers.tubelets import TubeletEmbeddings, check_times, sinusoidal_1d, tubelets
from jaxformer.metrics.means import added
from jaxformer.models.base import InputSpec, Model, ModelOutput
from jaxformer.models.flops import linear_flops, stack_flops
from jaxformer.models.video_vit import CLIPS, video_mae_encoder
from jaxformer.parallel import metadata

NORM = 1e-5
"""Epsilon of the norm after the decoder. The norms inside the encoder and the decoder have the epsilon of their stack.
"""


@flax.struct.dataclass
class VideoMaskedAutoencoderOutput(ModelOutput):
    """Output of a masked autoencoder of video clips.

    The encoder gets only the visible tubelets: each patch position in a frame has a random number (`noise`), and at the
    positions with the lowest numbers, the tubelets of all time steps are visible. `hidden` is the encoder output,
    [batch, visible tubelets, embed], ordered by time and then row by row.
    """

    masked: jax.Array | None = None
    """1 for masked tubelets, 0 for visible tubelets, float32 [batch, tubelets]."""
    pixels: jax.Array | None = None
    """Values that the decoder predicts for the pixels of masked tubelets, float32 [batch, masked tubelets, tubelet ·
    patch · patch · channels].
    """
    targets: jax.Array | None = None
    """Pixels of the masked tubelets, from 0 to 1, float32 [batch, masked tubelets, tubelet · patch · patch, channels].
    """

    exported: ClassVar[tuple[str, ...]] = ("hidden", "pixels", "masked")


class VideoMaskedAutoencoder(Model):
    """Masked autoencoder of video clips: an encoder of the visible tubelets, and a decoder that predicts the pixels of
    the masked ones. The default is VideoMAE-B.

    The encoder parameters have the same paths as those of a `VideoVit` with sinusoidal positions and no class token.
    """

    transformer: Transformer = video_mae_encoder()
    """Transformer blocks of the encoder."""
    decoder: Transformer = video_mae_encoder(width=384, depth=4, heads=6)
    """Transformer blocks of the decoder. Their `last_norm` must be False, because a separate norm follows."""
    image: int = 224
    """Height and width of the frames in pixels."""
    frames: int = 16
    """Number of frames of a clip."""
    patch: int = 16
    """Height and width of a tubelet in pixels."""
    tubelet: int = 2
    """Number of frames of a tubelet."""
    channels: int = 3
    """Number of channels: 1 for grayscale, 3 for RGB."""
    mask_rate: float = 0.9
    """Fraction of the patch positions in a frame to mask. Tubelets at these positions are masked at all times."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Mean to subtract from pixels scaled to 0–1: one number per channel, or one for all channels."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """Standard deviation to divide pixels by: one number per channel, or one for all channels."""

    def __post_init__(self):
        separate(self, "decoder", "transformer")
        super().__post_init__()
        check_geometry(self.image, self.patch, self.channels, self.mean, self.std)
        check_times(self.frames, self.tubelet)
        if not 0 < self.mask_rate < 1 or self.visible in (0, self.patches):
            raise InputError(f"model.mask_rate={self.mask_rate}: leaves {self.visible} of {self.patches} places")
        for name, stack in (("transformer", self.transformer), ("decoder", self.decoder)):
            if stack.width % 2:
                raise InputError(f"model.{name}.width={stack.width}: sinusoidal positions need an even number")
        if self.decoder.last_norm:
            raise InputError(
                "model.decoder.last_norm=True: expected False, because a norm of its own follows the decoder"
            )

    @property
    def times(self) -> int:
        """Number of time steps of a clip: its number of frames divided by the number of frames of a tubelet."""
        return self.frames // self.tubelet

    @property
    def patches(self) -> int:
        """Number of patch positions in a frame, which is also the number of tubelets per time step."""
        return (self.image // self.patch) ** 2

    @property
    def visible(self) -> int:
        """Number of patch positions in a frame that are not masked."""
        return self.patches - int(self.mask_rate * self.patches)

    def inputs(self) -> dict[str, InputSpec]:
        """Returns a dict that maps input names to the specifications of the arrays: `clips`, and the `noise` that
        selects the visible patch positions.
        """
        meaning = "one number per place in a frame; the places with the lowest numbers are encoded"
        return {"clips": CLIPS, "noise": InputSpec("bp", meaning, "float32", True)}

    def stacks(self) -> dict[str, Transformer]:
        """Returns the stacks of encoder and decoder blocks, keyed by the paths of their parameters."""
        return {"transformer": self.transformer, "decoder": self.decoder}

    def fixed_sizes(self) -> dict[str, int]:
        """Returns the number of frames `z`, their height `y`, width `x` and number of channels `n`, and the number of
        patch positions in a frame `p`, keyed by these axis letters.
        """
        return {"z": self.frames, "y": self.image, "x": self.image, "n": self.channels, "p": self.patches}

    @property
    def head_fields(self) -> tuple[str, ...]:
        """Names of the fields that do not affect the parameters: the fraction of masked patch positions. A warm start
        may use a pretrained model with other values in these fields.
        """
        return ("mask_rate",)

    def comparable(self) -> Self:
        """Returns a copy for comparing two models. Its mask rate and pixel statistics have standard values, so that
        models which differ only in these count as equal: the transformers library does not store them in a model.
        """
        return dataclasses.replace(self, mask_rate=0.5, mean=(0.5,), std=(0.5,))

    def flops(self, sizes: Mapping[str, int]) -> float:
        """Returns the FLOPs of a forward pass. `sizes["b"]` is the number of clips."""
        pixels, width = self.tubelet * self.patch**2 * self.channels, self.transformer.width
        every, seen = self.times * self.patches, self.times * self.visible
        flops = linear_flops(every, pixels, width) + stack_flops(self.transformer, seen)
        inner = self.decoder.width
        flops += linear_flops(seen, width, inner) + stack_flops(self.decoder, every, every - seen)
        return sizes["b"] * (flops + linear_flops(every - seen, inner, pixels))

    @nn.compact
    def __call__(
        self, clips: jax.Array, noise: jax.Array | None = None, train: bool = False
    ) -> VideoMaskedAutoencoderOutput:
        """Encodes the visible tubelets, and predicts the pixels of the masked tubelets.

        Args:
          clips: uint8 [batch, frames, height, width, channels], or floats that are already normalized.
          noise: random numbers, float32 [batch, patches], one per patch position in a frame. The positions with the
            lowest numbers are visible at all times. If None, the first positions are visible.
          train: whether to apply dropout. Requires the rng stream `dropout`.
        """
        config = self.transformer
        embeddings = TubeletEmbeddings(
            config.width, self.patch, self.tubelet, "sinusoidal", False, config.dtype, name="embeddings"
        )
        embedded = embeddings(normalise(clips, self.mean, self.std)).patches
        if noise is None:
            noise = jnp.broadcast_to(jnp.arange(self.patches, dtype=jnp.float32), (clips.shape[0], self.patches))
        order = jnp.argsort(noise, axis=1)
        seen, hidden = self._tubes(order[:, : self.visible]), self._tubes(order[:, self.visible :])
        encoded = config(Dropout(config.dropout)(take(embedded, seen), train), BlockInputs(train=train))
        pixels, means = self._decode_pixels(encoded.hidden, seen, hidden, train)
        ranks = jnp.tile(jnp.argsort(order, axis=1), (1, self.times))
        return VideoMaskedAutoencoderOutput(
            hidden=encoded.hidden,
            masked=(ranks >= self.visible).astype(jnp.float32),
            pixels=pixels,
            targets=jnp.take_along_axis(self._targets(clips), hidden[..., None, None], axis=1),
            means=added(encoded.means, means),
        )

    def _tubes(self, places: jax.Array) -> jax.Array:
        """Returns the indices of the tubelets at the patch positions `places` ([batch, places]) of all time steps, in
        ascending order, [batch, times · places].
        """
        starts = self.patches * jnp.arange(self.times)
        return (starts[:, None] + jnp.sort(places, axis=1)[:, None]).reshape(places.shape[0], -1)

    def _targets(self, clips: jax.Array) -> jax.Array:
        """Returns the pixels of all tubelets, from 0 to 1, [batch, tubelets, tubelet · patch · patch, channels]."""
        if clips.dtype == jnp.uint8:
            scaled = clips.astype(jnp.float32) / 255
        else:
            scaled = clips * np.array(self.std, np.float32) + np.array(self.mean, np.float32)
        parts = tubelets(scaled, self.tubelet, self.patch)
        return parts.reshape(*parts.shape[:2], -1, self.channels)

    def _decode_pixels(self, encoded: jax.Array, seen: jax.Array, hidden: jax.Array, train: bool):
        """Predicts the pixels of the masked tubelets from the encoder output.

        Args:
          encoded: encoder output, [batch, visible tubelets, embed].
          seen: indices of the visible tubelets, [batch, visible tubelets].
          hidden: indices of the masked tubelets, [batch, masked tubelets].
          train: whether to apply dropout.

        Returns:
          Pixels, float32 [batch, masked tubelets, tubelet · patch · patch · channels], and the auxiliary losses and
          metrics of the decoder, keyed by name.
        """
        decoder, dtype = self.decoder, self.decoder.dtype
        width = decoder.width
        embed = Linear("bti,id->btd", (encoded.shape[-1], width), False, dtype, name="decoder_embedding")
        x, places = embed(encoded), sinusoidal_1d(self.times * self.patches, width)
        mask_token = self.param("mask_token", metadata.with_axes(truncated_normal(0.02), "d"), (width,))
        absent = (mask_token + places[hidden]).astype(x.dtype)
        x = jnp.concatenate([x + places[seen].astype(x.dtype), absent], axis=1)
        last = jnp.broadcast_to(jnp.arange(seen.shape[1], x.shape[1]), hidden.shape)
        output = decoder(x, BlockInputs(at=last, train=train))
        x = LayerNorm(NORM, name="decoder_norm")(output.hidden)
        shape = (width, self.tubelet * self.patch**2 * self.channels)
        return Linear("bpd,df->bpf", shape, dtype=dtype, name="pixels")(x).astype(jnp.float32), output.means
