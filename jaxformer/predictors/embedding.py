"""Computes embedding vectors of texts or images from the last layer of any encoder."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.errors import InputError
from jaxformer.predictors.base import Embeds

if TYPE_CHECKING:
    from jaxformer.runs.run import Run

ROWS, BUCKET = 32, 32


def embed(run: "Run", texts: Sequence[str]) -> np.ndarray:
    """Computes the embedding vectors of texts, or of the images whose paths are in `texts`, float32 [texts, embed]. See
    `Run.embed`.
    """
    if not len(texts):
        raise InputError("no texts to embed; expected one or more")
    if isinstance(run.predictor, Embeds):
        return run.predictor.embed(run.prepare_requests(list(texts)))
    parts = [_embed(run, texts[start : start + ROWS]) for start in range(0, len(texts), ROWS)]
    return np.concatenate(parts)


def _embed(run: "Run", texts: Sequence[str]) -> np.ndarray:
    batch = run.encode(texts)
    if "segments" in batch:  # Few lengths, so that few programs are compiled.
        limit = run.model.max_length
        batch = {name: _padded(array, limit) for name, array in batch.items()}
    vectors = np.asarray(_features(run.model, run.params, batch))
    if len(vectors) != len(texts):
        raise InputError(f"{run.folder}: the model divides long texts into windows; expected shorter texts to embed")
    return vectors


def _padded(array: np.ndarray, limit: int) -> np.ndarray:
    if array.shape[1] == 1:  # The decoder start token.
        return array
    length = min(limit, -(-array.shape[1] // BUCKET) * BUCKET)
    return np.pad(array, [(0, 0), (0, max(0, length - array.shape[1]))])


@functools.partial(jax.jit, static_argnums=0)
def _features(model, params, batch) -> jax.Array:
    """Computes one embedding vector per batch row, float32 [batch, embed], from the field `features` of the model
    output. If it has one vector per token, the vectors are averaged over the tokens of the row.
    """
    output = model.apply({"params": params}, **batch)
    features = getattr(output, "features", None)
    if features is None:
        raise InputError(f"{type(model).__name__}: the model has no feature vectors; expected an encoder")
    features = features.astype(jnp.float32)
    segments = batch.get("input_segments", batch.get("segments"))
    if features.ndim == 2:
        return features
    if segments is None or features.shape[1] != segments.shape[1]:  # One vector for each example of a row.
        return features[:, 0]
    shares = (segments > 0) / jnp.sum(segments > 0, axis=1, keepdims=True)
    return jnp.einsum("bt,btd->bd", shares, features)
