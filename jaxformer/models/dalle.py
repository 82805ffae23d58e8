"""DALL·E: one decoder that continues a text by the codes of an image (Ramesh et al. 2021)."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import ClassVar, Self

import flax.struct
import jax
import jax.numpy as jnp

from jaxformer.layers.block import BlockInputs
from jaxformer.layers.cache import Cache
from jaxformer.layers.dropout import Dropout
from jaxformer.layers.embeddings import Embeddings, vocabulary
from jaxformer.layers.linear import LMHead, compute_dtype, truncated_normal
from jaxformer.layers.masks import Mask
from jaxformer.layers.norms import LayerNorm
from jaxformer.layers.patches import initial_positions
from jaxformer.layers.transformer import Transformer
from jaxformer.models.base import SEGMENTS, TOKENS, InputSpec, Model, ModelOutput, TokenInput, decoded
from jaxformer.models.discrete_vae import DiscreteVae
from jaxformer.models.flops import linear_flops, stack_flops
from jaxformer.models.vit import IMAGES
from jaxformer.parallel import metadata, sharding


@flax.struct.dataclass
class DalleOutput(ModelOutput):
    """Output of DALL·E. `hidden` contains the vectors from which the codes of the image are predicted, [batch, patches,
    embed].
    """

    text: jax.Array | None = None
    """Vectors from which the next token of the text is predicted, [batch, tokens, embed]."""
    codes: jax.Array | None = None
    """Codes of the image, which are the targets of the prediction, int32 [batch, patches]."""
    code_head: LMHead | None = None
    """Output layer that maps `hidden` to logits of the codes."""
    text_head: LMHead | None = None
    """Output layer that maps `text` to logits of the tokens. Its kernel is the token embedding table."""

    exported: ClassVar[tuple[str, ...]] = ("logits", "text_logits")

    @property
    def logits(self) -> jax.Array | None:
        """Logits of the codes, float32 [batch, patches, codes]. Computed on access."""
        return decoded(self.code_head, self.hidden, "btv")

    @property
    def text_logits(self) -> jax.Array | None:
        """Logits of the next token of the text, float32 [batch, tokens, vocab]. Computed on access."""
        return decoded(self.text_head, self.text, "btv")


class Dalle(Model):
    """Decoder over the tokens of a text and the codes of an image, which a discrete autoencoder computes."""

    vae: DiscreteVae = DiscreteVae()
    """Discrete autoencoder of the images. It is trained before, and its parameters do not change."""
    transformer: Transformer = Transformer(1024, 24, 16, norm=LayerNorm(1e-5), dropout=0.0, attention_dropout=0.0)
    """Stack of Transformer blocks."""
    vocab: int | None = 16_384
    """Vocabulary size, at least the size of the tokenizer's vocabulary. If None, it is equal to that size."""
    max_length: int = 256
    """Maximum length of a text in tokens."""

    def inputs(self) -> dict[str, InputSpec]:
        """Returns the specifications of the inputs `images`, `tokens` and `segments`, keyed by name."""
        return {"images": IMAGES, "tokens": TOKENS, "segments": SEGMENTS}

    def stacks(self) -> dict[str, Transformer]:
        """Returns the stacks of Transformer blocks of the autoencoder and of the decoder, keyed by the paths of their
        parameters.
        """
        return {f"vae/{path}": stack for path, stack in self.vae.stacks().items()} | {"transformer": self.transformer}

    def token_inputs(self) -> dict[str, TokenInput]:
        """Returns a dict that maps the input name `tokens` to its vocabulary size and maximum length."""
        return {"tokens": TokenInput(vocabulary(self.vocab), self.max_length)}

    def fixed_sizes(self) -> dict[str, int]:
        """Returns the height `y`, width `x` and number of channels `n` of the images, keyed by these axis letters."""
        return self.vae.fixed_sizes()

    def flops(self, sizes: Mapping[str, int]) -> float:
        """Returns the FLOPs of a forward pass, including that of computing the codes of the images.

        Args:
          sizes: number of images `b` and of tokens per text `t`, keyed by these letters.
        """
        width, tokens, patches = self.transformer.width, sizes["t"], self.vae.patches
        heads = linear_flops(tokens, width, vocabulary(self.vocab)) + linear_flops(patches, width, self.vae.codes)
        stack = stack_flops(self.transformer, tokens + patches, causal=True)
        return self.vae.encoder_flops(sizes) + sizes["b"] * (stack + heads)

    def pretrained(self) -> tuple[str, Model]:
        """Returns the part of this model that is trained before: the prefix of its parameter paths, `vae/`, and the
        discrete autoencoder.
        """
        return "vae/", self.vae

    def part(self, name: str) -> tuple[str, Model]:
        """Returns the part of this model that takes the input `name`: for images, the prefix `vae/` and the
        autoencoder, and otherwise an empty prefix and this model.
        """
        return ("vae/", self.vae) if name in self.vae.inputs() else ("", self)

    def comparable(self) -> Self:
        """Returns a copy for comparing two models. Its pixel statistics have standard values, so that models which
        differ only in these count as equal.
        """
        return dataclasses.replace(self, vae=self.vae.comparable())

    def setup(self):
        config, codes, patches = self.transformer, self.vae.codes, self.vae.patches
        self.embeddings = Embeddings(
            config.width, self.vocab, self.max_length, dropout=config.dropout, dtype=config.dtype
        )
        table, width = metadata.with_axes(truncated_normal(0.02), "vd"), config.width
        self.code_embedding = self.param("code_embedding", table, (codes, width))
        self.code_head = self.param("code_head", table, (codes, width))
        self.start = self.param("start", metadata.with_axes(truncated_normal(0.02), "d"), (width,))
        init = metadata.with_axes(functools.partial(initial_positions, leading=0), "_d")
        self.code_position = self.param("code_position", init, (patches, width))
        self.dropout = Dropout(config.dropout)

    def __call__(
        self, images: jax.Array, tokens: jax.Array, segments: jax.Array | None = None, train: bool = False
    ) -> DalleOutput:
        """Predicts the next token of each text, and then each code of its image.

        Args:
          images: uint8 [batch, height, width, channels], or floats that are already normalized.
          tokens: token ids of the text of each image, integers [batch, length].
          segments: 1 for tokens, 0 for padding, integers [batch, length]. Only 0 in the row of an image without a text.
            Defaults to 1.
          train: whether to apply dropout. Requires the rng stream `dropout`.
        """
        length, segments = tokens.shape[1], jnp.ones_like(tokens) if segments is None else segments
        codes = jax.lax.stop_gradient(self.vae.encode_images(images))
        text, table = self._embed_text(tokens, train)
        image = self.dropout(self._embed_codes(codes[:, :-1]), train)
        there = jnp.concatenate([segments, jnp.ones_like(codes)], axis=1)
        x = sharding.constrain(jnp.concatenate([text, image], axis=1), "brd")
        output = self.transformer(x, BlockInputs(mask=Mask.causal(x.shape[1], there), train=train))
        return DalleOutput(
            hidden=output.hidden[:, length:],
            text=output.hidden[:, :length],
            codes=codes,
            code_head=self._code_head(),
            text_head=LMHead(table, dtype=self.transformer.dtype),
            means=output.means,
        )

    def new_image_cache(self, segments: jax.Array) -> Cache:
        """Returns an empty cache for texts and the codes of their images.

        `segments` are 1 for tokens of the texts and 0 for padding, integers [batch, length].
        """
        rows, length = segments.shape
        cache = self.transformer.new_cache(rows, length + self.vae.patches)
        there = jnp.concatenate([segments, jnp.ones((rows, self.vae.patches), segments.dtype)], axis=1)
        return dataclasses.replace(cache, segments=there)

    def begin(self, tokens: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Reads texts, and predicts the first code of their images.

        Args:
          tokens: token ids, integers [batch, length].
          cache: cache that `new_image_cache` returned for these texts.

        Returns:
          Logits, float32 [batch, codes], and the updated cache.
        """
        text, _ = self._embed_text(tokens, False)
        first = self._embed_codes(jnp.zeros((tokens.shape[0], 0), jnp.int32))
        return self._advance(jnp.concatenate([text, first], axis=1), cache)

    def advance(self, codes: jax.Array, number: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        """Predicts the code after `codes`.

        Args:
          codes: code of the last patch so far, integers [batch].
          number: number of patches so far, a scalar: the index of the patch whose code is predicted.
          cache: cache of the text and all earlier codes.

        Returns:
          Logits, float32 [batch, codes], and the updated cache.
        """
        x = self.code_embedding[codes] + self.code_position[number]
        return self._advance(x[:, None].astype(compute_dtype(self.transformer.dtype)), cache)

    def _advance(self, x: jax.Array, cache: Cache) -> tuple[jax.Array, Cache]:
        output = self.transformer(x, BlockInputs(), cache)
        if output.cache is None:
            raise ValueError("the stack returned no cache")
        return self._code_head().logits(output.hidden[:, -1]), output.cache

    def _embed_text(self, tokens: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        """Returns the embeddings of tokens, [batch, length, embed], and the token embedding table."""
        if tokens.shape[1] > self.max_length:
            raise ValueError(f"{tokens.shape[1]} tokens: the model has positions for {self.max_length}")
        return self.embeddings(tokens, train=train)

    def _embed_codes(self, codes: jax.Array) -> jax.Array:
        """Returns the inputs at which the codes of the first patches are predicted, [batch, 1 + patches, embed]: a
        start vector and the embeddings of `codes` [batch, patches], each plus the position of the patch that is
        predicted.
        """
        rows, count = codes.shape
        start = jnp.broadcast_to(self.start, (rows, 1, len(self.start)))
        x = jnp.concatenate([start, self.code_embedding[codes]], axis=1) + self.code_position[: count + 1]
        return x.astype(compute_dtype(self.transformer.dtype))

    def _code_head(self) -> LMHead:
        return LMHead(self.code_head, dtype=self.transformer.dtype)
