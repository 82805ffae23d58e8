"""DiT: a diffusion Transformer, which turns noise into images step by step (Peebles & Xie 2023).

Its blocks are those of a ViT, whose norms and residual branches depend on the time and on a class or a text. It also
attends to the tokens of the text. `FlowMatching` trains it.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Self

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxformer.errors import InputError
from jaxformer.layers.adaptive import TIME_FEATURES, AdaGate, AdaLayerNorm, TimeEmbedding
from jaxformer.layers.block import BlockInputs
from jaxformer.layers.dropout import Dropout
from jaxformer.layers.linear import DType, Linear, truncated_normal
from jaxformer.layers.masks import Mask
from jaxformer.layers.mlp import Mlp
from jaxformer.layers.patches import ImageEmbeddings, check_geometry, denormalise, normalise, unpatchify
from jaxformer.layers.transformer import Transformer
from jaxformer.metrics.means import Mean, added
from jaxformer.models.base import SEGMENTS, TOKENS, InputSpec, Model, ModelOutput, TokenInput
from jaxformer.models.bert import Bert
from jaxformer.models.discrete_vae import DiscreteVae
from jaxformer.models.flops import linear_flops, stack_flops
from jaxformer.parallel import metadata


@flax.struct.dataclass
class DitOutput(ModelOutput):
    """Output of a `Dit`. `hidden` contains one vector per patch, row by row, [batch, patches, embed]."""

    velocity: jax.Array | None = None
    """Values that the model predicts for each pixel, float32 [batch, height, width, channels]: the velocity at which
    the image changes with the time or, for imported weights of diffusers, the noise and its variance.
    """

    exported: ClassVar[tuple[str, ...]] = ("velocity",)


@flax.struct.dataclass
class _Caption:
    """Encoded texts."""

    memory: jax.Array
    """Vectors that the blocks attend to, [batch, 1 + tokens, embed]. The first is the same for all texts."""
    segments: jax.Array
    """Mask of `memory`, integers [batch, 1 + tokens]: 1 for tokens, 0 for padding."""
    pooled: jax.Array
    """One vector per text, [batch, embed]."""
    means: dict[str, Mean]
    """Auxiliary losses and metrics of the text encoder, keyed by name."""


def dit_stack(
    width: int = 768, depth: int = 12, heads: int = 12, dropout: float = 0.0, dtype: DType = "auto"
) -> Transformer:
    """Returns a stack of DiT blocks: norms and residual branches depend on a condition (adaLN-Zero), and MLPs use GELU.
    The defaults are those of DiT-B.

    Args:
      width: width of the residual stream.
      depth: number of blocks.
      heads: number of attention heads.
      dropout: dropout rate of the embeddings and of the output of each layer.
      dtype: data type of the computation.
    """
    return Transformer(
        width,
        depth,
        heads,
        mlp=Mlp(activation="gelu_tanh"),
        norm=AdaLayerNorm(),
        residual=AdaGate(),
        dropout=dropout,
        attention_dropout=0.0,
        dtype=dtype,
    )


class Dit(Model):
    """Diffusion Transformer, which predicts from a noisy image how it changes with the time. The image may be of a
    class (`labels`), or described by a text (`text`).
    """

    transformer: Transformer = dit_stack()
    """Stack of Transformer blocks, as returned by `dit_stack`."""
    labels: tuple[str, ...] = ()
    """Class names in the order of their ids. If empty, images have no classes."""
    text: Bert | None = None
    """Encoder of the texts that describe images. If None, images are not described by texts. If `labels` is empty too,
    the model generates images without a condition.
    """
    vae: DiscreteVae | None = None
    """Discrete autoencoder, in whose latents images are generated (latent diffusion, Rombach et al. 2022). `image` is
    then its number of patches along a side, and `channels` its `code_width`. It is trained before.
    It has no gradient, but must be frozen (`optimizer.freeze=^vae/`), because weight decay would change it. `mean` and
    `std` are then not used. If None, images are generated in pixels.
    """
    image: int = 32
    """Height and width of the images in pixels, or of their latents in patches."""
    patch: int = 2
    """Height and width of a patch in pixels."""
    channels: int = 3
    """Number of image channels: 1 for grayscale, 3 for RGB, or the size of a latent vector."""
    out_channels: int | None = None
    """Number of values that are predicted per pixel. If None, `channels`. Weights of diffusers may predict the variance
    of the noise too.
    """
    mean: tuple[float, ...] = (0.5,)
    """Mean to subtract from pixels scaled to 0–1: one number per channel, or one for all channels."""
    std: tuple[float, ...] = (0.5,)
    """Standard deviation to divide pixels by: one number per channel, or one for all channels."""

    def __post_init__(self):
        super().__post_init__()
        check_geometry(self.image, self.patch, self.channels, self.mean, self.std)
        if self.labels and self.text is not None:
            raise InputError(f"model.labels={self.labels[:3]}: expected none with model.text, or model.text=None")
        if self.transformer.width % 4:
            raise InputError(f"model.transformer.width={self.transformer.width}: positions need a multiple of 4")
        if self.vae is not None:
            wanted = self.vae.image // self.vae.patch, self.vae.code_width
            if (self.image, self.channels) != wanted:
                given = f"model.image={self.image} and model.channels={self.channels}"
                raise InputError(f"{given}: the latents of model.vae have {wanted[0]} and {wanted[1]}")
        if self.out_channels is not None and self.out_channels < 1:
            raise InputError(f"model.out_channels={self.out_channels}: expected at least 1, or None")

    @property
    def outputs(self) -> int:
        """Number of values that are predicted per pixel."""
        return self.out_channels or self.channels

    @property
    def is_conditional(self) -> bool:
        """Whether images are generated for a class or a text."""
        return bool(self.labels) or self.text is not None

    def inputs(self) -> dict[str, InputSpec]:
        """Returns a dict that maps input names to the specifications of the arrays: `images` and `times`, and
        `classes`, or `tokens` and `segments`, if the model has classes or reads text.
        """
        images = InputSpec("byxn", "normalized pixels with noise", "float32")
        found = {"images": images, "times": InputSpec("b", "share of noise, from 0 to 1000", "float32", optional=True)}
        if self.labels:
            found["classes"] = InputSpec("b", "class, or the number of classes for none", optional=True)
        return found if self.text is None else found | {"tokens": TOKENS, "segments": SEGMENTS}

    def stacks(self) -> dict[str, Transformer]:
        """Returns the stacks of Transformer blocks, keyed by the paths of their parameters: those of the text encoder
        and of the autoencoder if there are any, and that of the images.
        """
        parts = {name: part for name, part in (("text", self.text), ("vae", self.vae)) if part is not None}
        found = {f"{name}/{path}": stack for name, part in parts.items() for path, stack in part.stacks().items()}
        return found | {"transformer": self.transformer}

    def token_inputs(self) -> dict[str, TokenInput]:
        """Returns the limits of the input `tokens`, keyed by this name. Empty for a model that reads no text."""
        return {} if self.text is None else self.text.token_inputs()

    def fixed_sizes(self) -> dict[str, int]:
        """Returns the height `y`, width `x` and number of channels `n` of the images, keyed by these axis letters."""
        return {"y": self.image, "x": self.image, "n": self.channels}

    def flops(self, sizes: Mapping[str, int]) -> float:
        """Returns the FLOPs of a forward pass, including that of computing the latents of the images.

        Args:
          sizes: number of images `b` and, for a model that reads text, of tokens per text `t`, keyed by these letters.
        """
        stack, patches = self.transformer, (self.image // self.patch) ** 2
        width, square = stack.width, linear_flops(stack.width, stack.width)
        flops = linear_flops(patches, self.patch**2 * (self.channels + self.outputs), width)
        flops += linear_flops(TIME_FEATURES, width) + square  # Embedding of the time.
        layers, memory = 2, 0
        if self.text is not None:
            tokens = sizes["t"]
            layers, memory = 3, 1 + tokens
            flops += self.text.flops({"b": 1, "t": tokens})
            flops += linear_flops(1 + tokens, self.text.transformer.width, width)  # Pooled vector and memory.
        flops += (3 * layers * stack.depth + 2) * square  # Shifts, scales and gates.
        latents = 0.0 if self.vae is None else self.vae.encoder_flops(sizes)
        return latents + sizes["b"] * (flops + stack_flops(stack, patches, memory=memory))

    def pretrained(self) -> tuple[str, Model]:
        """Returns the part of this model that is trained before: the prefix `vae/` and the autoencoder if there is one,
        otherwise an empty prefix and this model.
        """
        return ("", self) if self.vae is None else ("vae/", self.vae)

    def part(self, name: str) -> tuple[str, Model]:
        """Returns the part of this model that takes the input `name`: for `tokens`, the prefix `text/` and the text
        encoder, and otherwise an empty prefix and this model.
        """
        return ("text/", self.text) if name == "tokens" and self.text is not None else ("", self)

    @property
    def backbone_parts(self) -> tuple[str, ...]:
        """Names of the modules whose parameters a warm start requires."""
        return "embeddings", "time", "transformer"

    def comparable(self) -> Self:
        """Returns a copy for comparing two models. Its pixel statistics have standard values, so that models which
        differ only in these count as equal.
        """
        text, vae = (None if part is None else part.comparable() for part in (self.text, self.vae))
        return dataclasses.replace(self, text=text, vae=vae, mean=(0.5,), std=(0.5,))

    @nn.compact
    def __call__(
        self,
        images: jax.Array,
        times: jax.Array | None = None,
        classes: jax.Array | None = None,
        tokens: jax.Array | None = None,
        segments: jax.Array | None = None,
        train: bool = False,
    ) -> DitOutput:
        """Predicts the velocity of noisy images.

        Args:
          images: normalized pixels with noise, floats [batch, height, width, channels], or uint8 pixels without noise.
            Height and width must be multiples of the patch size.
          times: times, float32 [batch], from 0 (no noise) to 1000 (only noise). Defaults to 0.
          classes: class of each image, integers [batch]. `len(labels)` stands for no class, which is the default.
          tokens: token ids of the text of each image, integers [batch, length]. Required if the model has a text
            encoder.
          segments: 1 for tokens, 0 for padding, integers [batch, length]. Only 0 in the row of an image without a text.
            Defaults to 1.
          train: whether to apply dropout. Requires the rng stream `dropout`.
        """
        if self.vae is not None and self.is_initializing():
            self.vae(jnp.zeros((1, self.vae.image, self.vae.image, self.vae.channels)))  # Creates its parameters.
        config, rows, columns = self.transformer, images.shape[0], images.shape[2] // self.patch
        embeddings = ImageEmbeddings(
            config.width, self.image, self.patch, "sinusoidal", False, dtype=config.dtype, name="embeddings"
        )
        x = embeddings(normalise(images, self.mean, self.std)).patches
        times = jnp.zeros(rows) if times is None else times
        condition = TimeEmbedding(config.width, name="time")(times)
        given, means = BlockInputs(train=train), {}
        if self.labels:
            condition = condition + self._embed_classes(classes, rows)
        if self.text is not None:
            caption = self._encode_text(self.text, tokens, segments, train)
            condition, means = condition + caption.pooled, caption.means
            mask = Mask.of_segments(jnp.ones(x.shape[:2], jnp.int32), caption.segments)
            given = dataclasses.replace(given, memory=caption.memory, memory_mask=mask)
        # Every norm and gate applies a linear layer to it, so the activation is computed once.
        given = dataclasses.replace(given, condition=jax.nn.silu(condition))
        output = config(Dropout(config.dropout)(x, train), given)
        shape = (config.width, self.patch * self.patch * self.outputs)
        # The first prediction is 0, as in the paper.
        head = Linear("bpd,df->bpf", shape, dtype=config.dtype, init_scale=0.0, name="head")
        pixels = head(output.hidden).astype(jnp.float32)
        patches = pixels.reshape(rows, -1, self.patch, self.patch, self.outputs)
        return DitOutput(hidden=output.hidden, velocity=unpatchify(patches, columns), means=added(means, output.means))

    def encode_images(self, images: jax.Array) -> jax.Array:
        """Converts images to what the model generates: normalized pixels or latents, float32 [batch, image, image,
        channels].

        `images` are uint8 [batch, height, width, channels], or floats that are already normalized.
        """
        if self.vae is None:
            return normalise(images, self.mean, self.std)
        latents = jax.lax.stop_gradient(self.vae.encode_latents(images))
        return latents.reshape(len(images), self.image, self.image, self.channels)

    def decode_images(self, generated: jax.Array) -> jax.Array:
        """Converts generated pixels or latents, [batch, image, image, channels], to images, uint8 [batch, height,
        width, channels].
        """
        if self.vae is None:
            return denormalise(generated, self.mean, self.std)
        pixels = self.vae.decode_latents(generated.reshape(len(generated), -1, self.channels))
        return denormalise(pixels, self.vae.mean, self.vae.std)

    def _embed_classes(self, classes: jax.Array | None, rows: int) -> jax.Array:
        """Returns the embedding of each class, float32 [batch, embed]. The last row of the table stands for none."""
        none = len(self.labels)
        init = metadata.with_axes(truncated_normal(0.02), "cd")
        table = self.param("class_embedding", init, (none + 1, self.transformer.width))
        return table[jnp.full(rows, none) if classes is None else classes]

    def _encode_text(
        self, encoder: Bert, tokens: jax.Array | None, segments: jax.Array | None, train: bool
    ) -> _Caption:
        """Encodes the texts of images. A learned vector precedes the vectors of the tokens, so that there is something
        to attend to for an image without a text.
        """
        if tokens is None:
            raise ValueError("tokens: expected the texts of the images")
        segments = jnp.ones_like(tokens) if segments is None else (segments > 0).astype(jnp.int32)
        output = encoder(tokens, segments, train=train)
        hidden = output.hidden
        if hidden is None:
            raise ValueError("the text encoder returned no vectors")
        width, rows, shape = self.transformer.width, tokens.shape[0], (hidden.shape[-1], self.transformer.width)
        memory = Linear("bti,id->btd", shape, dtype=self.transformer.dtype, name="memory_projection")(hidden)
        first = self.param("no_text", metadata.with_axes(truncated_normal(0.02), "d"), (width,)).astype(memory.dtype)
        memory = jnp.concatenate([jnp.broadcast_to(first, (rows, 1, width)), memory], axis=1)
        share = segments / jnp.maximum(segments.sum(1, keepdims=True), 1)
        mean = jnp.einsum("bt,btd->bd", share, hidden.astype(jnp.float32))
        pooled = Linear("bi,id->bd", shape, dtype="float32", name="text_projection")(mean)
        segments = jnp.concatenate([jnp.ones((rows, 1), jnp.int32), segments], axis=1)
        return _Caption(memory, segments, pooled, output.means)
