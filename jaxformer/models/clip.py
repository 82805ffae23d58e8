"""Models with an image encoder and a text encoder (towers) that map to a common vector space.

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
"""Mean and standard deviation per channel of the pixels in CLIP's training data, scaled to 0–1."""
TOKENS = InputSpec("ct", "token ids of each text")
SEGMENTS = InputSpec("ct", "1 for tokens, 0 for padding", optional=True)

TextPooling = Literal["last", "end", "highest"]
"""Token whose output vector represents a text: the last token before padding, the first token with id `end_id`, or the
first token with the highest id.
"""


def tower_stack(width: int, heads: int, activation: Activation, epsilon: float) -> Transformer:
    """Returns a stack of 12 pre-norm blocks, as in the CLIP and SigLIP papers.

    Args:
      width: width of the residual stream.
      heads: number of attention heads.
      activation: activation function of the MLPs.
      epsilon: number added to the variance in norms.
    """
    mlp, norm = Mlp(4 * width, activation), LayerNorm(epsilon)
    return Transformer(width, 12, heads, mlp=mlp, norm=norm, dropout=0.0, attention_dropout=0.0)


class ImageTower(Model):
    """Image encoder of CLIP. The defaults are those of CLIP ViT-B/32."""

    transformer: Transformer = tower_stack(768, 12, "quick_gelu", 1e-5)
    """Stack of Transformer blocks."""
    image: int = 224
    """Height and width of the images in pixels. Positions are interpolated for other sizes."""
    patch: int = 32
    """Height and width of a patch in pixels."""
    channels: int = 3
    """Number of image channels: 1 for grayscale, 3 for RGB."""
    pooling: Literal["first", "attention"] = "first"
    """How the image is reduced to one vector: `first` uses a class token (CLIP), and `attention` a learned query that
    attends to all patches (SigLIP). Only `first` adds a class token.
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
        """Returns the specification of the images."""
        return {"images": IMAGES}

    def stacks(self) -> dict[str, Transformer]:
        """Returns the encoder stack."""
        return {"transformer": self.transformer}

    def fixed_sizes(self) -> dict[str, int]:
        """Returns the height, width and number of channels of the images."""
        return {"y": self.image, "x": self.image, "n": self.channels}

    def flops(self, sizes: Mapping[str, int]) -> float:
        """Returns the FLOPs of a forward pass that computes only `pooled`. `sizes` has the number of images `b`."""
        stack, patches, width = self.transformer, (self.image // self.patch) ** 2, self.transformer.width
        flops = linear_flops(patches, self.patch**2 * self.channels, width)
        if self.pooling == "first":
            return sizes["b"] * (flops + stack_flops(stack, patches + 1, 1))
        flops += stack_flops(stack, patches)
        flops += (2 + 2 * patches) * linear_flops(width, width) + 4.0 * patches * width  # Attention of one query
        return sizes["b"] * (flops + stack.mlp.flops(width))

    def comparable(self) -> Self:
        """Returns a copy whose pixel mean and standard deviation are the defaults, for comparing two models. They are
        part of image preprocessing, so models that differ only in them count as equal.
        """
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
    """Text encoder of CLIP. The defaults are those of CLIP ViT-B/32."""

    transformer: Transformer = tower_stack(512, 8, "quick_gelu", 1e-5)
    """Stack of Transformer blocks."""
    vocab: int | None = 49_408
    """Vocabulary size, at least the size of the tokenizer's vocabulary. If None, it is equal to that size."""
    max_length: int = 77
    """Maximum text length in tokens."""
    causal: bool = True
    """Whether each token attends only to itself and earlier tokens, as in CLIP."""
    pooling: TextPooling = "last"
    """Token whose vector represents the text. CLIP uses the end token, which is the last token of each text."""
    end_id: int | None = None
    """Id of the end token. Only used by the pooling `end`."""
    pad_id: int | None = None
    """Id of the padding token if tokens attend to padding, as in SigLIP. Rows then have `max_length` tokens, and the
    pooling `last` uses the last position of the row. If None, padding is masked.
    """

    def __post_init__(self):
        super().__post_init__()
        if (self.end_id is None) == (self.pooling == "end"):
            expected = "an id" if self.end_id is None else "None"
            raise InputError(f"model.text.end_id={self.end_id}: expected {expected} with pooling={self.pooling}")
        if self.pad_id is not None and (self.causal or self.pooling != "last"):
            raise InputError(f"model.text.pad_id={self.pad_id}: expected None, or causal=False and pooling=last")

    def inputs(self) -> dict[str, InputSpec]:
        """Returns the specifications of the tokens, and of their segments if padding is masked."""
        return {"tokens": TOKENS} | ({"segments": SEGMENTS} if self.pad_id is None else {})

    def stacks(self) -> dict[str, Transformer]:
        """Returns the encoder stack."""
        return {"transformer": self.transformer}

    def token_inputs(self) -> dict[str, TokenInput]:
        """Returns the vocabulary size and maximum length of the input `tokens`."""
        return {"tokens": TokenInput(vocabulary(self.vocab), self.max_length)}

    def flops(self, sizes: Mapping[str, int]) -> float:
        """Returns the FLOPs of a forward pass that computes only `pooled`.

        Args:
          sizes: numbers of texts `c` (default `b`) and of tokens per text `t`.
        """
        texts = sizes["c"] if "c" in sizes else sizes["b"]
        return texts * stack_flops(self.transformer, sizes["t"], 1, causal=self.causal)

    @nn.compact
    def __call__(self, tokens: jax.Array, segments: jax.Array | None = None, train: bool = False) -> ModelOutput:
        """Encodes texts.

        Args:
          tokens: token ids, integers [texts, length].
          segments: integers [texts, length]: 1 at text tokens, 0 at padding, which follows the text. Defaults to 1.
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
    """Image and text encoders with projections to a common vector space.

    `Clip()` is CLIP ViT-B/32, and `siglip()` is SigLIP B/16.
    """

    vision: ImageTower = ImageTower()
    """Image encoder."""
    text: TextTower = TextTower()
    """Text encoder."""
    width: int | None = 512
    """Size of the compared vectors, to which both encoders are projected by linear layers without bias. If None, it is
    the width of the image encoder, and only texts are projected, by a layer with bias (SigLIP)."""
    init_scale: float = 1 / 0.07
    """Initial scale of the scores. The scale is a parameter, learned as its logarithm."""
    init_bias: float | None = None
    """Initial bias of the scores, which the sigmoid loss needs. If None, there is no bias."""

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
        """Returns the specifications of images and texts. A call may omit either of them."""
        return self.vision.inputs() | self.text.inputs()

    def stacks(self) -> dict[str, Transformer]:
        """Returns the stacks of both encoders."""
        towers = {"vision": self.vision, "text": self.text}
        return {f"{name}/{path}": stack for name, tower in towers.items() for path, stack in tower.stacks().items()}

    def token_inputs(self) -> dict[str, TokenInput]:
        """Returns the vocabulary size and maximum length of the input `tokens`."""
        return self.text.token_inputs()

    def fixed_sizes(self) -> dict[str, int]:
        """Returns the height, width and number of channels of the images."""
        return self.vision.fixed_sizes()

    def flops(self, sizes: Mapping[str, int]) -> float:
        """Returns the FLOPs of a forward pass.

        Args:
          sizes: numbers of images `b`, of texts `c` (default b) and of tokens per text `t`.
        """
        images, texts = sizes["b"], sizes.get("c", sizes["b"])
        image_width, text_width = self.vision.transformer.width, self.text.transformer.width
        width = self.width or image_width
        maps = texts * linear_flops(text_width, width) + (
            images * linear_flops(image_width, width) if self.width else 0
        )
        return self.vision.flops(sizes) + self.text.flops(sizes) + maps + linear_flops(images, width, texts)

    def part(self, name: str) -> tuple[str, Model]:
        """Returns the prefix of the parameter paths (`vision/` or `text/`) and the model for the encoder that takes the
        input `name`.
        """
        return ("vision/", self.vision) if name in self.vision.inputs() else ("text/", self.text)

    @property
    def backbone_parts(self) -> tuple[str, ...]:
        """Names of the modules that contain the parameters of the two encoders. See `Model.backbone_parts`."""
        return "vision", "text"

    @property
    def head_fields(self) -> tuple[str, ...]:
        """Names of the fields that do not affect the encoders: the size of the compared vectors, and the initial scale
        and bias of the scores.
        """
        return "width", "init_scale", "init_bias"

    def comparable(self) -> Self:
        """Returns a copy for comparing two models. Its pixel statistics and initial values are the defaults, so that
        models which differ only in them count as equal.
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
          images: uint8 [images, height, width, channels], or floats that are already normalized. None for no images.
          tokens: token ids, integers [texts, length]. None for no texts.
          segments: integers [texts, length]: 1 at tokens, 0 at padding. Defaults to 1.
          train: whether to apply dropout. Requires the rng stream `dropout`.
        """
        log_scale = self.param("log_scale", metadata.with_axes(_constant(math.log(self.init_scale)), ""), ())
        bias = None
        if self.init_bias is not None:
            bias = self.param("bias", metadata.with_axes(_constant(self.init_bias), ""), ())
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
        """Returns the learned scale and bias that convert dot products of vectors to similarity scores. The bias may be
        None.
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


def _constant(value: float) -> nn.initializers.Initializer:
    return nn.initializers.constant(value)
