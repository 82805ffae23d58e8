"""Generates images from texts, one code after another (Ramesh et al. 2021, §2.2)."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.decoding.choosing import choose
from jaxformer.decoding.flow import guided
from jaxformer.decoding.settings import Decoding
from jaxformer.layers.patches import denormalise
from jaxformer.models.dalle import Dalle
from jaxformer.predictors.base import Generates, Predictor
from jaxformer.predictors.image_rows import encode_texts, generated
from jaxformer.predictors.pictures import Pictures


@dataclasses.dataclass(frozen=True, eq=False)
class TokenImages(Predictor[Dalle], Generates):
    """Predictor that samples the codes of images from texts, and decodes them."""

    decoding: Decoding
    """Settings for sampling codes."""
    guidance: float = 1.0
    """Factor of the difference between the logits with and without the text. With 1, there is no guidance."""
    pictures: int = 4
    """Number of images to generate per text."""

    def encode(self, requests: Sequence[str]) -> dict[str, np.ndarray]:
        """Converts texts to the model inputs `tokens` and `segments`. Long texts are truncated."""
        return encode_texts(self.tokenizer, requests, self.model.max_length)

    def predict(self, requests: Sequence[str]) -> list[Pictures]:
        """Generates `pictures` images for each text. With several samples of one text, each sample has other images."""
        numbers = np.arange(len(requests) * self.pictures).reshape(len(requests), self.pictures)
        generate = functools.partial(_generate, self.model, self.decoding, self.guidance, self.params)
        return generated(requests, self.encode(requests), numbers, generate)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _generate(
    model: Dalle, decoding: Decoding, guidance: float, params: Any, arrays: Mapping[str, jax.Array], numbers: jax.Array
) -> jax.Array:
    """Generates one image per row of `arrays`, uint8 [batch, height, width, channels]. `numbers` are integers [batch]
    from which the random key of each image is derived.
    """
    tokens, segments = arrays["tokens"], arrays["segments"]
    is_guided = guidance != 1
    if is_guided:  # The second half of the batch has no text.
        tokens = jnp.concatenate([tokens, tokens])
        segments = jnp.concatenate([segments, jnp.zeros_like(segments)])
    seed = jax.random.key(decoding.seed)
    keys = jax.vmap(lambda number: jax.random.fold_in(seed, number))(numbers)

    def sample(logits: jax.Array, index: jax.Array | int) -> jax.Array:
        if is_guided:
            conditional, unconditional = jnp.split(logits, 2)
            logits = guided(conditional, unconditional, guidance)

        def one(row: jax.Array, key: jax.Array) -> jax.Array:
            return choose(row[None], decoding, jax.random.fold_in(key, index))[0]

        return jax.vmap(one)(logits, keys)

    def step(carry, index: jax.Array):
        codes, cache = carry
        given = jnp.concatenate([codes, codes]) if is_guided else codes
        logits, cache = model.apply({"params": params}, given, index, cache, method="advance")
        following = sample(logits, index)
        return (following, cache), following

    logits, cache = model.apply({"params": params}, tokens, model.new_image_cache(segments), method="begin")
    first = sample(logits, 0)
    _, rest = jax.lax.scan(step, (first, cache), jnp.arange(1, model.vae.patches))
    codes = jnp.concatenate([first[:, None], rest.swapaxes(0, 1)], axis=1)
    pixels = model.vae.apply({"params": params["vae"]}, codes, method="decode_codes")
    return denormalise(pixels, model.vae.mean, model.vae.std)
