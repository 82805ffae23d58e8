"""Discrete variational autoencoder: converts an image to a sequence of codes, and codes to an image (Ramesh et al.
2021, §2.1). Encoder and decoder are Transformers (Yu et al. 2022, ViT-VQGAN).
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import ClassVar, Self

import flax.struct
import jax
import jax.numpy as jnp

from jaxformer.errors import InputError
from jaxformer.layers.block import BlockInputs
from jaxformer.layers.codebook import Codebook, CodebookOutput, unit
from jaxformer.layers.linear import Linear
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.patches import ImageEmbeddings, check_geometry, initial_positions, normalise, unpatchify
from jaxformer.layers.transformer import Transformer, TransformerOutput, separate
from jaxformer.metrics.means import added
from jaxformer.models.base import InputSpec, Model, ModelOutput
from jaxformer.models.flops import linear_flops, stack_flops
from jaxformer.models.vit import IMAGES
from jaxformer.parallel import metadata


@flax.struct.dataclass
class DiscreteVaeOutput(ModelOutput):
    """Output of a discrete autoencoder. `hidden` is the output of the encoder, [batch, patches, embed]."""

    codes: jax.Array | None = None
    """Code of each patch, row by row, int32 [batch, patches]."""
    pixels: jax.Array | None = None
    """Normalized pixels of the image that is decoded from the codes, float32 [batch, height, width, channels]."""
    targets: jax.Array | None = None
    """Normalized pixels of the image that was encoded, float32 [batch, height, width, channels]."""
    quantized: CodebookOutput | None = None
    """CodebookOutput vectors, and their distances to the codebook."""

    exported: ClassVar[tuple[str, ...]] = ("codes", "pixels")


def _stack() -> Transformer:
    return Transformer(512, 8, 8, norm=LayerNorm(1e-6), dropout=0.0, attention_dropout=0.0)


class DiscreteVae(Model):
    """Discrete autoencoder of images: an encoder of patches, a codebook, and a decoder."""

    encoder: Transformer = _stack()
    """Transformer blocks of the encoder."""
    decoder: Transformer = _stack()
    """Transformer blocks of the decoder."""
    image: int = 256
    """Height and width of the images in pixels."""
    patch: int = 8
    """Height and width of a patch in pixels. Each patch has one code."""
    channels: int = 3
    """Number of image channels: 1 for grayscale, 3 for RGB."""
    codes: int = 8192
    """Number of different codes."""
    code_width: int = 32
    """Size of the vectors in the codebook."""
    mean: tuple[float, ...] = (0.5,)
    """Mean to subtract from pixels scaled to 0–1: one number per channel, or one for all channels."""
    std: tuple[float, ...] = (0.5,)
    """Standard deviation to divide pixels by: one number per channel, or one for all channels."""

    def __post_init__(self):
        separate(self, "decoder", "encoder")
        super().__post_init__()
        check_geometry(self.image, self.patch, self.channels, self.mean, self.std)
        for name, least in (("codes", 2), ("code_width", 1)):
            if getattr(self, name) < least:
                raise InputError(f"model.{name}={getattr(self, name)}: expected at least {least}")

    @property
    def patches(self) -> int:
        """Number of patches, and so of codes, per image."""
        return (self.image // self.patch) ** 2

    def inputs(self) -> dict[str, InputSpec]:
        """Returns the specification of the input `images`, keyed by this name."""
        return {"images": IMAGES}

    def stacks(self) -> dict[str, Transformer]:
        """Returns the stacks of encoder and decoder blocks, keyed by the paths of their parameters."""
        return {"encoder": self.encoder, "decoder": self.decoder}

    def fixed_sizes(self) -> dict[str, int]:
        """Returns the height `y`, width `x` and number of channels `n` of the images, keyed by these axis letters."""
        return {"y": self.image, "x": self.image, "n": self.channels}

    def flops(self, sizes: Mapping[str, int]) -> float:
        """Returns the FLOPs of a forward pass. `sizes["b"]` is the number of images."""
        width, pixels = self.decoder.width, self.patch**2 * self.channels
        decoder = linear_flops(self.patches, self.code_width, width) + stack_flops(self.decoder, self.patches)
        return self.encoder_flops(sizes) + sizes["b"] * (decoder + linear_flops(self.patches, width, pixels))

    def encoder_flops(self, sizes: Mapping[str, int]) -> float:
        """Returns the FLOPs of computing the codes of `sizes["b"]` images."""
        width, pixels = self.encoder.width, self.patch**2 * self.channels
        linear = linear_flops(pixels, width) + linear_flops(width, self.code_width)
        linear += linear_flops(self.code_width, self.codes)
        return sizes["b"] * (self.patches * linear + stack_flops(self.encoder, self.patches))

    @property
    def backbone_parts(self) -> tuple[str, ...]:
        """Names of the modules whose parameters a warm start requires: all of them."""
        return "patches_in", "encoder", "to_code", "codebook", "from_code", "position", "decoder", "pixels_out"

    def comparable(self) -> Self:
        """Returns a copy with the default pixel mean and standard deviation, for comparing two models. Models that
        differ only in this preprocessing then count as equal.
        """
        return dataclasses.replace(self, mean=(0.5,), std=(0.5,))

    def setup(self):
        first, last, size = self.encoder.width, self.decoder.width, self.code_width
        self.patches_in = ImageEmbeddings(first, self.image, self.patch, class_token=False, dtype=self.encoder.dtype)
        self.to_code = Linear("bpd,d_->bp_", (first, size), dtype="float32")
        self.codebook = Codebook(self.codes, size)
        self.from_code = Linear("bp_,_d->bpd", (size, last), dtype=self.decoder.dtype)
        init = metadata.with_axes(functools.partial(initial_positions, leading=0), "_d")
        self.position = self.param("position", init, (self.patches, last))
        pixels = self.patch * self.patch * self.channels
        self.pixels_out = Linear("bpd,df->bpf", (last, pixels), dtype=self.decoder.dtype)

    def __call__(self, images: jax.Array, train: bool = False) -> DiscreteVaeOutput:
        """Encodes images, and decodes their codes.

        Args:
          images: uint8 [batch, height, width, channels], or floats that are already normalized.
          train: whether to apply dropout. Requires the rng stream `dropout`.
        """
        targets, encoded, vectors = self._encode(images, train)
        quantized = self.codebook(vectors)
        pixels, means = self._decode_vectors(quantized.vectors, train)
        return DiscreteVaeOutput(
            hidden=encoded.hidden,
            codes=quantized.codes,
            pixels=pixels,
            targets=targets,
            quantized=quantized,
            means=added(encoded.means, means),
        )

    def encode_images(self, images: jax.Array) -> jax.Array:
        """Returns the code of each patch, row by row, int32 [batch, patches]. `images` are as for a call."""
        if self.is_initializing():
            self(images)  # Creates the parameters of the decoder too.
        return self.codebook(self._encode(images, False)[2]).codes

    def encode_latents(self, images: jax.Array) -> jax.Array:
        """Returns the vector of each patch before it is replaced by one of the codebook, scaled so that the mean square
        of its entries is 1, float32 [batch, patches, code_width]. `images` are as for a call.
        """
        return unit(self._encode(images, False)[2]) * self.code_width**0.5

    def decode_latents(self, latents: jax.Array) -> jax.Array:
        """Returns the normalized pixels of the images whose codes are nearest to latents [batch, patches, code_width],
        float32 [batch, height, width, channels].
        """
        return self._decode_vectors(self.codebook(latents).vectors, False)[0]

    def _encode(self, images: jax.Array, train: bool) -> tuple[jax.Array, TransformerOutput, jax.Array]:
        """Returns the normalized pixels, the output of the encoder, and the vectors to replace by those of the
        codebook, [batch, patches, code_width].
        """
        targets = normalise(images, self.mean, self.std)
        encoded = self.encoder(self.patches_in(targets).patches, BlockInputs(train=train))
        return targets, encoded, self.to_code(encoded.hidden)

    def decode_codes(self, codes: jax.Array) -> jax.Array:
        """Returns the normalized pixels of the images with the given codes, float32 [batch, height, width, channels].

        `codes` are integers [batch, patches].
        """
        return self._decode_vectors(self.codebook.look_up(codes), False)[0]

    def _decode_vectors(self, vectors: jax.Array, train: bool):
        """Decodes vectors of the codebook, [batch, patches, code_width]. Returns normalized pixels, float32 [batch,
        height, width, channels], and the auxiliary losses and metrics of the decoder, keyed by name.
        """
        x = self.from_code(vectors)
        output = self.decoder(x + self.position.astype(x.dtype), BlockInputs(train=train))
        pixels = self.pixels_out(output.hidden).astype(jnp.float32)
        patches = pixels.reshape(*pixels.shape[:2], self.patch, self.patch, self.channels)
        return unpatchify(patches, self.image // self.patch), output.means
