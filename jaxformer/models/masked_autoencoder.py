"""The masked autoencoder (He et al. 2022): a ViT encodes a quarter of the patches, a light decoder predicts the
others."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Self

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxformer.errors import InputError
from jaxformer.layers.block import BlockInputs, take
from jaxformer.layers.dropout import Dropout
from jaxformer.layers.linear import Linear, truncated_normal
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.patches import ImageEmbeddings, check_geometry, normalise, patchify, sinusoidal_2d
from jaxformer.layers.transformer import Transformer, fresh
from jaxformer.metrics.means import Mean, added
from jaxformer.models.base import InputSpec, Model, ModelOutput
from jaxformer.models.flops import linear_flops, stack_flops
from jaxformer.models.vit import IMAGES
from jaxformer.parallel import metadata


@flax.struct.dataclass
class MaskedAutoencoderOutput(ModelOutput):
    """The output of a masked autoencoder.

    `hidden` is the encoder's, [b, 1 + visible, d]: class token, and the visible patches in the order of their noise.
    """

    masked: jax.Array | None = None
    """float32 [b, p]: 1 where a patch is masked."""
    pixels: jax.Array | None = None
    """The decoder's prediction of each patch, float32 [b, p, patch · patch · n]; None without a decoder."""
    targets: jax.Array | None = None
    """The normalised pixels of each patch, float32, of the same shape."""

    exported: ClassVar[tuple[str, ...]] = ("hidden", "pixels", "masked")


class MaskedAutoencoder(Model):
    """A ViT's encoder with a decoder of pixels. A `Vit` with the same stack and sinusoidal positions has its encoder's
    parameters at the same paths."""

    transformer: Transformer = Transformer(norm=LayerNorm(1e-6), dropout=0.0, attention_dropout=0.0)
    """The encoder's stack of blocks."""
    decoder: Transformer | None = Transformer(512, 8, 16, norm=LayerNorm(1e-6), dropout=0.0, attention_dropout=0.0)
    """The decoder's; None for the encoder alone."""
    image: int = 224
    """Height and width of the images."""
    patch: int = 16
    """Height and width of a patch."""
    channels: int = 3
    """Channels of an image."""
    mask_rate: float = 0.75
    """Share of the patches that are masked."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Mean of each channel, or of all, for pixels between 0 and 1; it is subtracted."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """Standard deviation of each channel, or of all; pixels are divided by it."""

    def __post_init__(self):
        if self.decoder is self.transformer:
            # Linen takes one instance for one set of parameters; the two stacks have their own.
            object.__setattr__(self, "decoder", fresh(self.transformer))
        super().__post_init__()
        check_geometry(self.image, self.patch, self.channels, self.mean, self.std)
        if not 0 <= self.mask_rate < 1 or not self.visible:
            raise InputError(f"model.mask_rate={self.mask_rate}: leaves {self.visible} of {self.patches} patches")
        for name, stack in (("transformer", self.transformer), ("decoder", self.decoder)):
            if stack is not None and stack.width % 4:
                raise InputError(f"model.{name}.width={stack.width}: sinusoidal positions need a multiple of 4")

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return (self.image // self.patch) ** 2

    @property
    def visible(self) -> int:
        """Patches that are encoded."""
        return int(self.patches * (1 - self.mask_rate))

    def inputs(self) -> dict[str, InputSpec]:
        """Images, and the noise that chooses the visible patches."""
        noise = InputSpec("bp", "one number for each patch; the patches with the least are encoded", "float32", True)
        return {"images": IMAGES, "noise": noise}

    def stacks(self) -> dict[str, Transformer]:
        """The encoder, and the decoder if there is one."""
        return {"transformer": self.transformer} | ({} if self.decoder is None else {"decoder": self.decoder})

    def fixed_sizes(self) -> dict[str, int]:
        """Height, width and channels of the images, and their patches."""
        return {"y": self.image, "x": self.image, "n": self.channels, "p": self.patches}

    @property
    def head_fields(self) -> tuple[str, ...]:
        """The share of masked patches."""
        return ("mask_rate",)

    def comparable(self) -> Self:
        """The model without the statistics of pixels, which belong to the preparation of images."""
        return dataclasses.replace(self, mean=(0.5,), std=(0.5,))

    def flops(self, sizes: Mapping[str, int]) -> float:
        """Operations of a forward pass on b images."""
        pixels, width = self.patch**2 * self.channels, self.transformer.width
        flops = linear_flops(self.patches, pixels, width) + stack_flops(self.transformer, 1 + self.visible)
        if self.decoder is not None:
            inner = self.decoder.width
            flops += linear_flops(1 + self.visible, width, inner) + stack_flops(self.decoder, 1 + self.patches)
            flops += linear_flops(self.patches, inner, pixels)
        return sizes["b"] * flops

    @nn.compact
    def __call__(
        self, images: jax.Array, noise: jax.Array | None = None, train: bool = False
    ) -> MaskedAutoencoderOutput:
        """Predicts the masked patches.

        Args:
          images: uint8 [b, image, image, n], or floats that are normalised already.
          noise: [b, p]; the patches with the least are visible. Default: the first ones.
          train: whether to drop out; needs the rng stream `dropout`.
        """
        config = self.transformer
        pixels = normalise(images, self.mean, self.std)
        embeddings = ImageEmbeddings(
            config.width, self.image, self.patch, "sinusoidal", dtype=config.dtype, name="embeddings"
        )
        embedded = embeddings(pixels)
        if noise is None:
            noise = jnp.broadcast_to(jnp.arange(self.patches, dtype=jnp.float32), embedded.patches.shape[:2])
        order = jnp.argsort(noise, axis=1)
        place = jnp.argsort(order, axis=1)  # Of each patch in that order.
        x = jnp.concatenate([embedded.leading, take(embedded.patches, order[:, : self.visible])], axis=1)
        encoded = config(Dropout(config.dropout)(x, train), BlockInputs(train=train))
        hidden = encoded.hidden
        masked = (place >= self.visible).astype(jnp.float32)
        painted, means = (None, {}) if self.decoder is None else self._paint(hidden, place, train)
        targets = patchify(pixels, self.patch).reshape(*place.shape, -1)
        return MaskedAutoencoderOutput(
            hidden=hidden, masked=masked, pixels=painted, targets=targets, means=added(encoded.means, means)
        )

    def _paint(self, hidden: jax.Array, place: jax.Array, train: bool) -> tuple[jax.Array, dict[str, Mean]]:
        """The pixels of every patch, from the visible ones and one vector for all masked ones, and auxiliary means."""
        config, count = self.decoder, place.shape[1]
        shape = (hidden.shape[-1], config.width)
        x = Linear("bti,id->btd", shape, dtype=config.dtype, name="decoder_embedding")(hidden)
        mask_token = self.param("mask_token", metadata.with_axes(truncated_normal(0.02), "d"), (config.width,))
        absent = jnp.broadcast_to(mask_token.astype(x.dtype), (x.shape[0], count + 1 - x.shape[1], config.width))
        patches = take(jnp.concatenate([x[:, 1:], absent], axis=1), place)
        side = self.image // self.patch
        patches = patches + sinusoidal_2d(side, side, config.width).astype(x.dtype)
        output = config(jnp.concatenate([x[:, :1], patches], axis=1), BlockInputs(train=train))
        x = output.hidden[:, 1:]
        shape = (config.width, self.patch * self.patch * self.channels)
        return Linear("bpd,df->bpf", shape, dtype=config.dtype, name="pixels")(x).astype(jnp.float32), output.means
