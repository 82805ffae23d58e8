"""Parts that predictors which generate images share: the rows of their requests, and the images of all rows."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxformer.data.tasks import layouts
from jaxformer.predictors.padding import stacked
from jaxformer.predictors.pictures import Pictures

ROWS = 16
"""Number of images that are generated at the same time."""


def encode_texts(tokenizer: Any, texts: Sequence[str], length: int) -> dict[str, np.ndarray]:
    """Encodes texts as padded rows: `tokens` and `segments` (1 for tokens, 0 for padding), int32 [texts, length]. Long
    texts are truncated.
    """
    encoded = tokenizer.encode_batch(texts)
    return stacked([layouts.lay_out(tokenizer, "encoder", length, text).tokens for text in encoded], length=length)


def generated(
    requests: Sequence[str],
    arrays: Mapping[str, np.ndarray],
    numbers: np.ndarray,
    generate: Callable[[Mapping[str, np.ndarray], np.ndarray], jax.Array],
) -> list[Pictures]:
    """Generates the same number of images for each request, `ROWS` at a time.

    Args:
      requests: the requests.
      arrays: model inputs, one row per request.
      numbers: integers that select the noise of each image, [requests, images per request].
      generate: function that generates one image per row from model inputs, one row per image, and the numbers of the
        images: uint8 [`ROWS`, height, width, channels].
    """
    count = numbers.shape[1]
    rows = {name: np.repeat(array, count, axis=0) for name, array in arrays.items()}
    flat, found = numbers.reshape(-1), []
    for start in range(0, len(flat), ROWS):
        part = {name: _filled(array[start : start + ROWS]) for name, array in rows.items()}
        wanted = flat[start : start + ROWS]
        found.append(np.asarray(generate(part, _filled(wanted)))[: len(wanted)])
    images = np.concatenate(found).reshape(*numbers.shape, *found[0].shape[1:])
    return [Pictures(request, own) for request, own in zip(requests, images, strict=True)]


def _filled(array: np.ndarray) -> np.ndarray:
    """Pads an array with zeros to `ROWS` rows, so that XLA does not compile again for each number of rows."""
    return np.pad(array, [(0, ROWS - len(array))] + [(0, 0)] * (array.ndim - 1))
