"""Masked autoencoder for images (He et al. 2022).

A ViT encodes a quarter of the patches, and a small decoder predicts the pixels of all other patches.
"""

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
from jaxformer.layers.transformer import Transformer, separate
from jaxformer.metrics.means import Mean, added
from jaxformer.models.base import InputSpec, Model, ModelOutput
from jaxformer.models.flops import linear_flops, stack_flops
from jaxformer.models.vit import IMAGES
from jaxformer.parallel import metadata


@flax.struct.dataclass
class MaskedAutoencoderOutput(ModelOutput):
    """Output of a masked autoencoder.

    The encoder gets only the visible patches: those with the lowest random numbers (`noise`). `hidden` is its output,
    [batch, 1 + visible patches, embed]: the class token, and the visible patches by ascending `noise`.
    """

    masked: jax.Array | None = None
    """1 for masked patches, 0 for visible patches, float32 [batch, patches]."""
    pixels: jax.Array | None = None
    """Normalized pixels that the decoder predicts for each patch, float32 [batch, patches, patch · patch · channels].
    None without a decoder.
    """
    targets: jax.Array | None = None
    """Normalized pixels of each patch in the image, float32 [batch, patches, patch · patch · channels]."""

    exported: ClassVar[tuple[str, ...]] = ("hidden", "pixels", "masked")


class MaskedAutoencoder(Model):
    """Masked autoencoder: a ViT that encodes the visible patches, and a decoder that predicts the pixels of the masked
    patches.

    The encoder parameters have the same paths as those of a `Vit` with the same stack and sinusoidal positions.
    """

    transformer: Transformer = Transformer(norm=LayerNorm(1e-6), dropout=0.0, attention_dropout=0.0)
    """Transformer blocks of the encoder."""
    decoder: Transformer | None = Transformer(512, 8, 16, norm=LayerNorm(1e-6), dropout=0.0, attention_dropout=0.0)
    """Transformer blocks of the decoder. If None, the model has only an encoder."""
    image: int = 224
    """Height and width of the images in pixels."""
    patch: int = 16
    """Height and width of a patch in pixels."""
    channels: int = 3
    """Number of image channels: 1 for grayscale, 3 for RGB."""
    mask_rate: float = 0.75
    """Fraction of the patches to mask, that is, to leave out of the encoder input."""
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    """Mean to subtract from pixels scaled to 0–1: one number per channel, or one for all channels."""
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    """Standard deviation to divide pixels by: one number per channel, or one for all channels."""

    def __post_init__(self):
        separate(self, "decoder", "transformer")
        super().__post_init__()
        check_geometry(self.image, self.patch, self.channels, self.mean, self.std)
        if not 0 <= self.mask_rate < 1 or not self.visible:
            raise InputError(f"model.mask_rate={self.mask_rate}: leaves {self.visible} of {self.patches} patches")
        for name, stack in (("transformer", self.transformer), ("decoder", self.decoder)):
            if stack is not None and stack.width % 4:
                raise InputError(f"model.{name}.width={stack.width}: sinusoidal positions need a multiple of 4")

    @property
    def patches(self) -> int:
        """Number of patches per image."""
        return (self.image // self.patch) ** 2

    @property
    def visible(self) -> int:
        """Number of patches per image that the encoder gets (those that are not masked)."""
        return int(self.patches * (1 - self.mask_rate))

    def inputs(self) -> dict[str, InputSpec]:
        """Returns a dict that maps input names to the specifications of the arrays: `images`, and the `noise` that
        selects the visible patches.
        """
        noise = InputSpec(
            "bp", "one number per patch; the patches with the lowest numbers are encoded", "float32", True
        )
        return {"images": IMAGES, "noise": noise}

    def stacks(self) -> dict[str, Transformer]:
        """Returns the stack of encoder blocks and, if there is a decoder, that of decoder blocks, keyed by the paths of
        their parameters.
        """
        return {"transformer": self.transformer} | ({} if self.decoder is None else {"decoder": self.decoder})

    def fixed_sizes(self) -> dict[str, int]:
        """Returns the height `y`, the width `x` and the number of channels `n` of the images, and the number of patches
        `p`, keyed by these axis letters.
        """
        return {"y": self.image, "x": self.image, "n": self.channels, "p": self.patches}

    @property
    def head_fields(self) -> tuple[str, ...]:
        """Names of the fields that do not affect the encoder parameters: the fraction of masked patches. A warm start
        may use a pretrained model with other values in these fields.
        """
        return ("mask_rate",)

    def comparable(self) -> Self:
        """Returns a copy with the default pixel mean and standard deviation, for comparing two models. Models that
        differ only in this preprocessing then count as equal.
        """
        return dataclasses.replace(self, mean=(0.5,), std=(0.5,))

    def flops(self, sizes: Mapping[str, int]) -> float:
        """Returns the FLOPs of a forward pass. `sizes["b"]` is the number of images."""
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
        """Encodes the visible patches, and predicts the pixels of all patches.

        Args:
          images: uint8 [batch, height, width, channels], or floats that are already normalized.
          noise: random numbers, float32 [batch, patches]. The patches with the lowest numbers are visible, and all
            others are masked. If None, the first patches are visible.
          train: whether to apply dropout. Requires the rng stream `dropout`.
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
        place = jnp.argsort(order, axis=1)  # Rank of the noise of each patch.
        x = jnp.concatenate([embedded.leading, take(embedded.patches, order[:, : self.visible])], axis=1)
        encoded = config(Dropout(config.dropout)(x, train), BlockInputs(train=train))
        hidden = encoded.hidden
        masked = (place >= self.visible).astype(jnp.float32)
        predicted, means = None, {}
        if self.decoder is not None:
            predicted, means = self._decode_pixels(self.decoder, hidden, place, train)
        targets = patchify(pixels, self.patch).reshape(*place.shape, -1)
        return MaskedAutoencoderOutput(
            hidden=hidden, masked=masked, pixels=predicted, targets=targets, means=added(encoded.means, means)
        )

    def _decode_pixels(
        self, decoder: Transformer, hidden: jax.Array, place: jax.Array, train: bool
    ) -> tuple[jax.Array, dict[str, Mean]]:
        """Predicts the pixels of every patch from the encoded visible patches.

        Args:
          decoder: Transformer blocks of the decoder. In its input, the same learned vector replaces each masked patch.
          hidden: encoder output, [batch, 1 + visible patches, embed].
          place: for each patch, its index in the list of all visible patches followed by all masked patches.
          train: whether to apply dropout.

        Returns:
          Pixels, float32 [batch, patches, patch · patch · channels], and the auxiliary losses and metrics of the
          decoder, keyed by name.
        """
        width, dtype, count = decoder.width, decoder.dtype, place.shape[1]
        x = Linear("bti,id->btd", (hidden.shape[-1], width), dtype=dtype, name="decoder_embedding")(hidden)
        mask_token = self.param("mask_token", metadata.with_axes(truncated_normal(0.02), "d"), (width,))
        absent = jnp.broadcast_to(mask_token.astype(x.dtype), (x.shape[0], count + 1 - x.shape[1], width))
        patches = take(jnp.concatenate([x[:, 1:], absent], axis=1), place)
        side = self.image // self.patch
        patches = patches + sinusoidal_2d(side, side, width).astype(x.dtype)
        output = decoder(jnp.concatenate([x[:, :1], patches], axis=1), BlockInputs(train=train))
        x = output.hidden[:, 1:]
        shape = (width, self.patch * self.patch * self.channels)
        return Linear("bpd,df->bpf", shape, dtype=dtype, name="pixels")(x).astype(jnp.float32), output.means
