"""Models with an image encoder and a text encoder (called towers) that map images and texts to a common vector space.

The models are CLIP (Radford et al. 2021) and SigLIP (Zhai et al. 2023).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, Self

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxformer.errors import InputError
from jaxformer.layers.attention_pooling import AttentionPooling
from jaxformer.layers.block import BlockInputs
from jaxformer.layers.dropout import Dropout
from jaxformer.layers.embeddings import Embeddings, vocabulary
from jaxformer.layers.linear import Linear
from jaxformer.layers.masks import Mask
from jaxformer.layers.mlp import Activation, Mlp
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.patches import ImageEmbeddings, check_geometry, normalise
from jaxformer.layers.transformer import Transformer, fresh
from jaxformer.losses.contrastive import unit
from jaxformer.metrics.means import added
from jaxformer.models.base import InputSpec, Model, ModelOutput, TokenInput
from jaxformer.models.clip_output import ClipOutput
from jaxformer.models.flops import linear_flops, stack_flops
from jaxformer.models.vit import IMAGES
from jaxformer.parallel import metadata

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Mean and standard deviation per channel of the pixels, scaled to 0–1, in the training data of CLIP."""
TOKENS = InputSpec("ct", "token ids of each text")
SEGMENTS = InputSpec("ct", "1 for tokens, 0 for padding", optional=True)

TextPooling = Literal["last", "end", "highest"]
"""Token whose output vector represents a text (see `TextTower.pooling`)."""


def tower_stack(width: int, heads: int, activation: Activation, epsilon: float) -> Transformer:
    """Returns a stack of 12 pre-norm blocks, as in the CLIP and SigLIP papers.

    Args:
      width: width of the residual stream.
      heads: number of attention heads.
      activation: activation function of the MLPs.
      epsilon: number added to the variance in norms, for numerical stability.
    """
    mlp, norm = Mlp(4 * width, activation), LayerNorm(epsilon)
    return Transformer(width, 12, heads, mlp=mlp, norm=norm, dropout=0.0, attention_dropout=0.0)


class ImageTower(Model):
    """Image encoder of CLIP or SigLIP. The defaults are those of CLIP ViT-B/32."""

    transformer: Transformer = tower_stack(768, 12, "quick_gelu", 1e-5)
    """Stack of Transformer blocks."""
    image: int = 224
    """Height and width of the images in pixels. For images of other sizes, the position embeddings are interpolated."""
    patch: int = 32
    """Height and width of a patch in pixels."""
    channels: int = 3
    """Number of image channels: 1 for grayscale, 3 for RGB."""
    pooling: Literal["first", "attention"] = "first"
    """How an image is reduced to one vector: `first` uses the output at a class token (CLIP), and `attention` a learned
    query that attends to all patches (SigLIP). Only `first` adds a class token.
    """
    embedding_norm: bool = True
    """Whether embeddings are normalized before the first block, as in CLIP."""
    patch_bias: bool = False
    """Whether the linear layer that embeds patches has a bias, as in SigLIP."""
    mean: tuple[float, ...] = MEAN
    """Mean to subtract from pixels scaled to 0–1: one number per channel, or one for all channels."""
    std: tuple[float, ...] = STD
    """Standard deviation to divide pixels by: one number per channel, or one for all channels."""

    def __post_init__(self):
        super().__post_init__()
        check_geometry(self.image, self.patch, self.channels, self.mean, self.std)

    def inputs(self) -> dict[str, InputSpec]:
        """Returns the specification of the input `images`, keyed by this name."""
        return {"images": IMAGES}

    def stacks(self) -> dict[str, Transformer]:
        """Returns the stack of encoder blocks, keyed by the path of its parameters."""
        return {"transformer": self.transformer}

    def fixed_sizes(self) -> dict[str, int]:
        """Returns the height `y`, width `x` and number of channels `n` of the images, keyed by these axis letters."""
        return {"y": self.image, "x": self.image, "n": self.channels}

    def flops(self, sizes: Mapping[str, int]) -> float:
        """Returns the FLOPs of a forward pass for `sizes["b"]` images that computes only the output `pooled`."""
        stack, patches, width = self.transformer, (self.image // self.patch) ** 2, self.transformer.width
        flops = linear_flops(patches, self.patch**2 * self.channels, width)
        if self.pooling == "first":
            return sizes["b"] * (flops + stack_flops(stack, patches + 1, 1))
        flops += stack_flops(stack, patches)
        flops += (2 + 2 * patches) * linear_flops(width, width) + 4.0 * patches * width  # Attention of one query
        return sizes["b"] * (flops + stack.mlp.flops(width))

    def comparable(self) -> Self:
        """Returns a copy with standard pixel statistics, so that models which differ only in these count as equal."""
        return dataclasses.replace(self, mean=(0.5,), std=(0.5,))

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> ModelOutput:
        """Encodes images.

        Args:
          images: uint8 [batch, height, width, channels], or floats that are already normalized. Height and width must
            be multiples of the patch size.
          train: whether to apply dropout. Requires the rng stream `dropout`.
        """
        config, first = self.transformer, self.pooling == "first"
        embeddings = ImageEmbeddings(
            config.width,
            self.image,
            self.patch,
            class_token=first,
            dtype=config.dtype,
            bias=self.patch_bias,
            name="embeddings",
        )
        embedded = embeddings(normalise(images, self.mean, self.std))
        x = jnp.concatenate([embedded.leading, embedded.patches], axis=1)
        if self.embedding_norm:
            x = fresh(config.norm).copy(name="embedding_norm")(x)
        x = Dropout(config.dropout)(x, train)
        at = jnp.zeros((x.shape[0], 1), jnp.int32) if first else None
        output = config(x, BlockInputs(at=at, train=train))
        if first:
            return ModelOutput(pooled=output.hidden[:, 0], means=output.means)
        pooling = AttentionPooling(
            config.heads, fresh(config.mlp), fresh(config.norm), config.dtype, name="attention_pooling"
        )
        return ModelOutput(hidden=output.hidden, pooled=pooling(output.hidden), means=output.means)


class TextTower(Model):
    """Text encoder of CLIP or SigLIP. The defaults are those of CLIP ViT-B/32."""

    transformer: Transformer = tower_stack(512, 8, "quick_gelu", 1e-5)
    """Stack of Transformer blocks."""
    vocab: int | None = 49_408
    """Vocabulary size, at least the size of the tokenizer's vocabulary. If None, it is equal to that size."""
    max_length: int = 77
    """Maximum text length in tokens."""
    causal: bool = True
    """Whether each token attends only to itself and earlier tokens, as in CLIP."""
    pooling: TextPooling = "last"
    """Token whose output vector represents the text: `last` (the last token before padding), `end` (the first token
    with id `end_id`) or `highest` (the first token with the highest id).
    """
    end_id: int | None = None
    """Id of the end token. Required if `pooling` is `end`, otherwise None."""
    pad_id: int | None = None
    """Id of the padding token for models in which tokens also attend to padding, such as SigLIP. Texts are then padded
    to `max_length`, and the pooling `last` uses the last position of the row. If None, padding is masked.
    """

    def __post_init__(self):
        super().__post_init__()
        if (self.end_id is None) == (self.pooling == "end"):
            expected = "an id" if self.end_id is None else "None"
            raise InputError(f"model.text.end_id={self.end_id}: expected {expected} with pooling={self.pooling}")
        if self.pad_id is not None and (self.causal or self.pooling != "last"):
            raise InputError(f"model.text.pad_id={self.pad_id}: expected None, or causal=False and pooling=last")

    def inputs(self) -> dict[str, InputSpec]:
        """Returns the specifications of the inputs `tokens` and, if padding is masked, `segments`, keyed by name."""
        return {"tokens": TOKENS} | ({"segments": SEGMENTS} if self.pad_id is None else {})

    def stacks(self) -> dict[str, Transformer]:
        """Returns the stack of encoder blocks, keyed by the path of its parameters."""
        return {"transformer": self.transformer}

    def token_inputs(self) -> dict[str, TokenInput]:
        """Returns a dict that maps the input name `tokens` to its vocabulary size and maximum length."""
        return {"tokens": TokenInput(vocabulary(self.vocab), self.max_length)}

    def flops(self, sizes: Mapping[str, int]) -> float:
        """Returns the FLOPs of a forward pass that computes only the output `pooled`.

        Args:
          sizes: number of texts `c` (default `b`) and of tokens per text `t`, keyed by these letters.
        """
        texts = sizes["c"] if "c" in sizes else sizes["b"]
        return texts * stack_flops(self.transformer, sizes["t"], 1, causal=self.causal)

    @nn.compact
    def __call__(self, tokens: jax.Array, segments: jax.Array | None = None, train: bool = False) -> ModelOutput:
        """Encodes texts.

        Args:
          tokens: token ids, integers [texts, length].
          segments: 1 for tokens, 0 for padding after the text, integers [texts, length]. Defaults to 1, no padding.
          train: whether to apply dropout. Requires the rng stream `dropout`.
        """
        if tokens.shape[1] > self.max_length:
            raise ValueError(f"{tokens.shape[1]} tokens: the model has positions for {self.max_length}")
        config = self.transformer
        if self.pad_id is not None and segments is not None:
            tokens, segments = jnp.where(segments > 0, tokens, self.pad_id), None
        embeddings = Embeddings(
            config.width, self.vocab, self.max_length, dropout=config.dropout, dtype=config.dtype, name="embeddings"
        )
        x, _ = embeddings(tokens, train=train)
        mask = None if segments is None else Mask.of_segments(segments, segments)
        if self.causal:
            mask = Mask.causal(tokens.shape[1], segments)
        inputs = BlockInputs(mask=mask, at=self._pooled_at(tokens, segments), train=train)
        output = config(x, inputs)
        return ModelOutput(pooled=output.hidden[:, 0], means=output.means)

    def _pooled_at(self, tokens: jax.Array, segments: jax.Array | None) -> jax.Array:
        """Returns the index of the token whose vector represents each text, integers [texts, 1]."""
        if self.pooling == "highest":
            return tokens.argmax(1, keepdims=True)
        if self.pooling == "end":
            return (tokens == self.end_id).argmax(1, keepdims=True)
        index = jnp.arange(tokens.shape[1])[None]
        there = index if segments is None else jnp.where(segments > 0, index, 0)
        return jnp.broadcast_to(there.max(1, keepdims=True), (tokens.shape[0], 1))


class Clip(Model):
    """Model of CLIP and SigLIP: an image encoder and a text encoder, whose vectors are projected to a common vector
    space.

    `Clip()` is CLIP ViT-B/32, and `siglip()` is SigLIP B/16.
    """

    vision: ImageTower = ImageTower()
    """Image encoder."""
    text: TextTower = TextTower()
    """Text encoder."""
    width: int | None = 512
    """Size of the common vector space, to which linear layers without bias project the vectors of both encoders. If
    None, it is the width of the image encoder, and only text vectors are projected, by a linear layer with bias
    (SigLIP).
    """
    init_scale: float = 1 / 0.07
    """Initial value of the learned scale: the similarity score of an image and a text is the dot product of their
    vectors times this scale.
    """
    init_bias: float | None = None
    """Initial value of the learned bias that is added to the similarity scores, which the sigmoid loss of SigLIP needs.
    If None, there is no bias.
    """

    def __post_init__(self):
        if self.text.transformer is self.vision.transformer:
            # Linen shares the parameters of one instance, but the two stacks have separate parameters.
            text = dataclasses.replace(self.text, transformer=fresh(self.text.transformer))
            object.__setattr__(self, "text", text)
        super().__post_init__()
        if self.width is not None and self.width < 1:
            raise InputError(f"model.width={self.width}: expected at least 1, or None")
        if not self.init_scale > 0:
            raise InputError(f"model.init_scale={self.init_scale}: expected above 0")

    def inputs(self) -> dict[str, InputSpec]:
        """Returns the specifications of the inputs, keyed by name. A call may omit either the images or the texts."""
        return self.vision.inputs() | self.text.inputs()

    def stacks(self) -> dict[str, Transformer]:
        """Returns the stacks of Transformer blocks of both encoders, keyed by the paths of their parameters."""
        towers = {"vision": self.vision, "text": self.text}
        return {f"{name}/{path}": stack for name, tower in towers.items() for path, stack in tower.stacks().items()}

    def token_inputs(self) -> dict[str, TokenInput]:
        """Returns a dict that maps the input name `tokens` to its vocabulary size and maximum length."""
        return self.text.token_inputs()

    def fixed_sizes(self) -> dict[str, int]:
        """Returns the height `y`, width `x` and number of channels `n` of the images, keyed by these axis letters."""
        return self.vision.fixed_sizes()

    def flops(self, sizes: Mapping[str, int]) -> float:
        """Returns the FLOPs of a forward pass.

        Args:
          sizes: number of images `b`, of texts `c` (default b) and of tokens per text `t`, keyed by these letters.
        """
        images, texts = sizes["b"], sizes.get("c", sizes["b"])
        image_width, text_width = self.vision.transformer.width, self.text.transformer.width
        width = self.width or image_width
        maps = texts * linear_flops(text_width, width) + (
            images * linear_flops(image_width, width) if self.width else 0
        )
        return self.vision.flops(sizes) + self.text.flops(sizes) + maps + linear_flops(images, width, texts)

    def part(self, name: str) -> tuple[str, Model]:
        """Returns the encoder that takes the input `name`: the prefix of its parameter paths (`vision/` or `text/`),
        and its model.
        """
        return ("vision/", self.vision) if name in self.vision.inputs() else ("text/", self.text)

    @property
    def backbone_parts(self) -> tuple[str, ...]:
        """Names of the modules with the parameters of the two encoders, which a warm start requires."""
        return "vision", "text"

    @property
    def head_fields(self) -> tuple[str, ...]:
        """Names of the fields that do not affect the two encoders. A warm start may use a pretrained model with other
        values in these fields.
        """
        return "width", "init_scale", "init_bias"

    def comparable(self) -> Self:
        """Returns a copy for comparing two models. Its pixel statistics and the initial scale and bias have standard
        values, so that models which differ only in these count as equal.
        """
        bias = None if self.init_bias is None else 0.0
        return dataclasses.replace(self, vision=self.vision.comparable(), init_scale=1.0, init_bias=bias)

    @nn.compact
    def __call__(
        self,
        images: jax.Array | None = None,
        tokens: jax.Array | None = None,
        segments: jax.Array | None = None,
        train: bool = False,
    ) -> ClipOutput:
        """Encodes images, texts or both.

        Args:
          images: uint8 [images, height, width, channels], or floats that are already normalized. If None, only texts
            are encoded.
          tokens: token ids, integers [texts, length]. If None, only images are encoded.
          segments: 1 for tokens, 0 for padding, integers [texts, length]. Defaults to 1, no padding.
          train: whether to apply dropout. Requires the rng stream `dropout`.
        """
        constant = nn.initializers.constant
        log_scale = self.param("log_scale", metadata.with_axes(constant(math.log(self.init_scale)), ""), ())
        bias = None
        if self.init_bias is not None:
            bias = self.param("bias", metadata.with_axes(constant(self.init_bias), ""), ())
        image_vectors = text_vectors = None
        means = {}
        if images is not None:
            output = self.vision(images, train)
            image_vectors, means = _pooled(output), output.means
            if self.width is not None:
                image_vectors = self._map("image_projection", image_vectors, bias=False)
        if tokens is not None:
            output = self.text(tokens, segments, train)
            text_vectors = self._map("text_projection", _pooled(output), bias=self.width is None)
            means = added(means, output.means)
        image_vectors, text_vectors = (
            None if vectors is None else unit(vectors.astype(jnp.float32)) for vectors in (image_vectors, text_vectors)
        )
        return ClipOutput(
            image_vectors=image_vectors,
            text_vectors=text_vectors,
            scale=jnp.exp(log_scale),
            bias=bias,
            means=means,
        )

    @nn.nowrap
    def score_map(self, params: Any) -> tuple[jax.Array, jax.Array | None]:
        """Returns the learned scale and bias that convert the dot product of an image vector and a text vector to a
        similarity score: scale · product + bias. The bias is None if the model has none.
        """
        return jnp.exp(params["log_scale"]), params.get("bias")

    def _map(self, name: str, vectors: jax.Array, bias: bool) -> jax.Array:
        shape = (vectors.shape[-1], self.width or self.vision.transformer.width)
        return Linear("bi,id->bd", shape, bias, self.vision.transformer.dtype, name=name)(vectors)


def _pooled(output: ModelOutput) -> jax.Array:
    if output.pooled is None:
        raise ValueError("the output of a tower has no pooled vectors")
    return output.pooled


def siglip() -> Clip:
    """Returns SigLIP B/16 for images of 224 × 224 pixels."""
    vision = ImageTower(
        tower_stack(768, 12, "gelu_tanh", 1e-6),
        patch=16,
        pooling="attention",
        embedding_norm=False,
        patch_bias=True,
        mean=(0.5,),
        std=(0.5,),
    )
    stack = tower_stack(768, 12, "gelu_tanh", 1e-6)
    text = TextTower(stack, vocab=32_000, max_length=64, causal=False, pad_id=1)
    return Clip(vision, text, width=None, init_scale=10.0, init_bias=-10.0)
