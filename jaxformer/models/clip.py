"""Two towers, of images and of texts, whose vectors share one space: CLIP (Radford et al. 2021) and SigLIP (Zhai et al.
2023)."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxformer.errors import InputError
from jaxformer.layers.attention_pooling import AttentionPooling
from jaxformer.layers.block import BlockInputs
from jaxformer.layers.dropout import Dropout
from jaxformer.layers.embeddings import Embeddings
from jaxformer.layers.linear import Linear
from jaxformer.layers.masks import Mask
from jaxformer.layers.mlp import Mlp
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.patches import ImageEmbeddings, check_geometry, normalise
from jaxformer.layers.transformer import Transformer, fresh
from jaxformer.losses.contrastive import unit
from jaxformer.metrics.means import added
from jaxformer.models.base import InputSpec, Model, ModelOutput, TokenInput
from jaxformer.models.flops import linear_flops, stack_flops
from jaxformer.models.vit import IMAGES
from jaxformer.parallel import metadata

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""The pixels of CLIP's own training data."""
TOKENS = InputSpec("ct", "ids of the tokens of each text")
SEGMENTS = InputSpec("ct", "1 where there is a token, 0 for padding", optional=True)

TextPooling = Literal["last", "end", "highest"]
"""The token whose vector represents a text: the last one before padding, the first `end_id`, or the first of the
highest id."""


def tower_stack(width: int, heads: int, activation: str, epsilon: float) -> Transformer:
    """A stack of 12 blocks as both papers have them."""
    mlp, norm = Mlp(4 * width, activation), LayerNorm(epsilon)
    return Transformer(width, 12, heads, mlp=mlp, norm=norm, dropout=0.0, attention_dropout=0.0)


class ImageTower(Model):
    """An encoder of images. `ImageTower()` is CLIP's ViT-B/32."""

    transformer: Transformer = tower_stack(768, 12, "quick_gelu", 1e-5)
    """The stack of blocks."""
    image: int = 224
    """Height and width of the images, in pixels; positions are interpolated to other sizes."""
    patch: int = 32
    """Height and width of a patch."""
    channels: int = 3
    """Channels of an image: 1 is grey, 3 are red, green and blue."""
    pooling: Literal["first", "attention"] = "first"
    """How the image becomes a vector: `first` is the class token (CLIP), `attention` a learned query that attends to
    all patches (SigLIP); only `first` has a class token."""
    embedding_norm: bool = True
    """Whether embeddings are normalised before the first block, as CLIP's are."""
    patch_bias: bool = False
    """Whether the map of patches has a bias, as SigLIP's does."""
    mean: tuple[float, ...] = MEAN
    """Mean of each channel, or of all, for pixels between 0 and 1; it is subtracted."""
    std: tuple[float, ...] = STD
    """Standard deviation of each channel, or of all; pixels are divided by it."""

    def __post_init__(self):
        super().__post_init__()
        check_geometry(self.image, self.patch, self.channels, self.mean, self.std)

    def inputs(self) -> dict[str, InputSpec]:
        """The images."""
        return {"images": IMAGES}

    def stacks(self) -> dict[str, Transformer]:
        """The encoder."""
        return {"transformer": self.transformer}

    def fixed_sizes(self) -> dict[str, int]:
        """Height, width and channels of the images."""
        return {"y": self.image, "x": self.image, "n": self.channels}

    def flops(self, sizes: Mapping[str, int]) -> float:
        """Operations of a forward pass on b images that computes only what `pooled` needs."""
        stack, patches, width = self.transformer, (self.image // self.patch) ** 2, self.transformer.width
        flops = linear_flops(patches, self.patch**2 * self.channels, width)
        if self.pooling == "first":
            return sizes["b"] * (flops + stack_flops(stack, patches + 1, 1))
        flops += stack_flops(stack, patches)
        # One query: its map and that of the output, keys and values of all patches, scores and their sum, the MLP.
        flops += (2 + 2 * patches) * linear_flops(width, width) + 4.0 * patches * width
        return sizes["b"] * (flops + stack.mlp.flops(width))

    def comparable(self) -> Self:
        """The model without the statistics of pixels, which belong to the preparation of images."""
        return dataclasses.replace(self, mean=(0.5,), std=(0.5,))

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> ModelOutput:
        """Encodes images.

        Args:
          images: uint8 [b, height, width, n], or floats that are normalised already. Height and width are multiples of
            the patch.
          train: whether to drop out; needs the rng stream `dropout`.
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
    """An encoder of texts. `TextTower()` is that of CLIP's ViT-B/32."""

    transformer: Transformer = tower_stack(512, 8, "quick_gelu", 1e-5)
    """The stack of blocks."""
    vocab: int | None = 49_408
    """Size of the vocabulary; at least the tokenizer's. None: the tokenizer's."""
    max_length: int = 77
    """The longest text, in tokens."""
    causal: bool = True
    """Whether a token sees only itself and those before it, as in CLIP."""
    pooling: TextPooling = "last"
    """The token whose vector represents the text. CLIP pools the end token, which is the last one of each text."""
    end_id: int | None = None
    """The id of the end token, for the pooling `end`."""
    pad_id: int | None = None
    """The id in place of padding, which all tokens see, so that `last` is the last position of the row (SigLIP); rows
    have `max_length` tokens then. None: padding is masked."""

    def __post_init__(self):
        super().__post_init__()
        if (self.end_id is None) == (self.pooling == "end"):
            expected = "an id" if self.end_id is None else "None"
            raise InputError(f"model.text.end_id={self.end_id}: expected {expected} with pooling={self.pooling}")
        if self.pad_id is not None and (self.causal or self.pooling != "last"):
            raise InputError(f"model.text.pad_id={self.pad_id}: expected None, or causal=False and pooling=last")

    def inputs(self) -> dict[str, InputSpec]:
        """Tokens, and which of them are padding where that is masked."""
        return {"tokens": TOKENS} | ({"segments": SEGMENTS} if self.pad_id is None else {})

    def stacks(self) -> dict[str, Transformer]:
        """The encoder."""
        return {"transformer": self.transformer}

    def token_inputs(self) -> dict[str, TokenInput]:
        """The limits of `tokens`."""
        return {"tokens": TokenInput(self.vocab, self.max_length)}

    def flops(self, sizes: Mapping[str, int]) -> float:
        """Operations of a forward pass on c texts (default: b) of t tokens that computes only what `pooled` needs."""
        return sizes.get("c", sizes.get("b")) * stack_flops(self.transformer, sizes["t"], 1, causal=self.causal)

    @nn.compact
    def __call__(self, tokens: jax.Array, segments: jax.Array | None = None, train: bool = False) -> ModelOutput:
        """Encodes texts.

        Args:
          tokens: integers [c, t].
          segments: integers [c, t]: 1 at the tokens of the text, 0 at padding, which comes after it. Default: 1.
          train: whether to drop out; needs the rng stream `dropout`.
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
        """The index of each text's pooled token, integers [c, 1]."""
        if self.pooling == "highest":
            return tokens.argmax(1, keepdims=True)
        if self.pooling == "end":
            return (tokens == self.end_id).argmax(1, keepdims=True)
        index = jnp.arange(tokens.shape[1])[None]
        there = index if segments is None else jnp.where(segments > 0, index, 0)
        return jnp.broadcast_to(there.max(1, keepdims=True), (tokens.shape[0], 1))


@flax.struct.dataclass
class ClipOutput(ModelOutput):
    """The output of the two towers."""

    image_vectors: jax.Array | None = None
    """float32 [b, d] with length 1; None without images."""
    text_vectors: jax.Array | None = None
    """float32 [c, d] with length 1; None without texts."""
    scale: jax.Array | None = None
    """Factor of products of vectors, a scalar."""
    bias: jax.Array | None = None
    """Added to them then, a scalar; None: nothing."""

    exported: ClassVar[tuple[str, ...]] = ("logits", "image_vectors", "text_vectors")

    @property
    def logits(self) -> jax.Array | None:
        """How well each text fits each image, float32 [b, c]; None without both."""
        if self.image_vectors is None or self.text_vectors is None:
            return None
        scores = self.scale * (self.image_vectors @ self.text_vectors.T)
        return scores if self.bias is None else scores + self.bias

    @property
    def features(self) -> jax.Array | None:
        """The vectors of the images, or of the texts where there are no images."""
        return self.text_vectors if self.image_vectors is None else self.image_vectors


class Clip(Model):
    """Two towers and the maps of their vectors to one space. `Clip()` is CLIP ViT-B/32, `siglip()` SigLIP B/16."""

    vision: ImageTower = ImageTower()
    """The encoder of images."""
    text: TextTower = TextTower()
    """The encoder of texts."""
    width: int | None = 512
    """Size of the vectors that are compared, to which linear maps without biases lead; None: as wide as images, of
    which there is no map, and that of texts has a bias (SigLIP)."""
    init_scale: float = 1 / 0.07
    """Initial value of the scale of the scores, a parameter that is learned as its logarithm."""
    init_bias: float | None = None
    """Initial value of the bias of the scores, which the sigmoid loss needs; None: no bias."""

    def __post_init__(self):
        if self.text.transformer is self.vision.transformer:
            # Linen takes one instance for one set of parameters; the two stacks have their own.
            text = dataclasses.replace(self.text, transformer=fresh(self.text.transformer))
            object.__setattr__(self, "text", text)
        super().__post_init__()
        if self.width is not None and self.width < 1:
            raise InputError(f"model.width={self.width}: expected at least 1, or None")
        if not self.init_scale > 0:
            raise InputError(f"model.init_scale={self.init_scale}: expected above 0")

    def inputs(self) -> dict[str, InputSpec]:
        """The images and the texts; a call may leave out either."""
        return self.vision.inputs() | self.text.inputs()

    def stacks(self) -> dict[str, Transformer]:
        """The stacks of both towers."""
        towers = {"vision": self.vision, "text": self.text}
        return {f"{name}/{path}": stack for name, tower in towers.items() for path, stack in tower.stacks().items()}

    def token_inputs(self) -> dict[str, TokenInput]:
        """The limits of texts."""
        return self.text.token_inputs()

    def fixed_sizes(self) -> dict[str, int]:
        """Height, width and channels of the images."""
        return self.vision.fixed_sizes()

    def flops(self, sizes: Mapping[str, int]) -> float:
        """Operations of a forward pass on b images and c texts (default: b) of t tokens."""
        images, texts = sizes["b"], sizes.get("c", sizes["b"])
        image_width, text_width = self.vision.transformer.width, self.text.transformer.width
        width = self.width or image_width
        maps = texts * linear_flops(text_width, width) + (
            images * linear_flops(image_width, width) if self.width else 0
        )
        return self.vision.flops(sizes) + self.text.flops(sizes) + maps + linear_flops(images, width, texts)

    def part(self, name: str) -> tuple[str, Model]:
        """The tower that takes the input of this name."""
        return ("vision/", self.vision) if name in self.vision.inputs() else ("text/", self.text)

    @property
    def backbone_parts(self) -> tuple[str, ...]:
        """Both towers."""
        return "vision", "text"

    @property
    def head_fields(self) -> tuple[str, ...]:
        """The size of the compared vectors, and initial values."""
        return "width", "init_scale", "init_bias"

    def comparable(self) -> Self:
        """The model without statistics of pixels and initial values."""
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
          images: uint8 [b, height, width, n], or floats that are normalised already; None: no images.
          tokens: integers [c, t]; None: no texts.
          segments: integers [c, t]: 1 at tokens, 0 at padding. Default: 1.
          train: whether to drop out; needs the rng stream `dropout`.
        """
        log_scale = self.param("log_scale", metadata.with_axes(_constant(math.log(self.init_scale)), ""), ())
        bias = None
        if self.init_bias is not None:
            bias = self.param("bias", metadata.with_axes(_constant(self.init_bias), ""), ())
        image_vectors = text_vectors = None
        means = {}
        if images is not None:
            output = self.vision(images, train)
            image_vectors, means = output.pooled, output.means
            if self.width is not None:
                image_vectors = self._map("image_projection", image_vectors, bias=False)
        if tokens is not None:
            output = self.text(tokens, segments, train)
            text_vectors = self._map("text_projection", output.pooled, bias=self.width is None)
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
        """The factor that turns products of vectors into scores, and the summand after it; None: nothing."""
        return jnp.exp(params["log_scale"]), params.get("bias")

    def _map(self, name: str, vectors: jax.Array, bias: bool) -> jax.Array:
        shape = (vectors.shape[-1], self.width or self.vision.transformer.width)
        return Linear("bi,id->bd", shape, bias, self.vision.transformer.dtype, name=name)(vectors)


def siglip() -> Clip:
    """SigLIP B/16 for images of 224 × 224 pixels."""
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
