"""Converts text models to the form that other programs expect: without unused token ids, and for Marian models with
padding as the last token.

Converters such as CTranslate2 expect as many embedding rows as the tokenizer has pieces. They drop the last row of a
Marian model, which they expect to be padding, and start the decoder from a zero vector.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxformer.config import override
from jaxformer.decoding.settings import Decoding
from jaxformer.interop.huggingface import parameters
from jaxformer.interop.huggingface.text.permuted_tokenizer import permuted
from jaxformer.models.base import Model
from jaxformer.runs.run import Run
from jaxformer.training.checkpoints import StoredArray

NEVER = -50.0
"""Logit of the padding token in the converted model. It is low enough that the token has probability 0, but not too
large for float16 or for a comparison relative to the largest logit.
"""


def marian_form(model: Model) -> Model:
    """Returns the model without `zero_start` and with an output bias. It computes the same as before if the decoder
    starts from padding and padding has a zero embedding (see `marian_run`).
    """
    return dataclasses.replace(model, head_bias=True, zero_start=False)


def marian_run(run: Run) -> Run:
    """Converts a run whose decoder starts from a zero vector to the form of Marian models: padding is the last token,
    has a zero embedding and is never generated.
    """
    tokenizer = run.require_tokenizer()
    size, pad = tokenizer.vocab_size, tokenizer.pad_id
    order = np.array([*(number for number in range(size) if number != pad), pad])
    arrays = parameters.flat(run.params)
    shapes = parameters.abstract(run.model)
    bias = arrays.pop("bias", None)

    def token_row(path: str, array: Any) -> Any:
        def read() -> np.ndarray:
            rows = np.array(np.asarray(array)[order])
            rows[-1] = 0 if path == "embeddings/token" or run.model.tie_embeddings else rows[-1]
            return rows

        return _lazy(array, shapes[path], read)

    changed = {path: token_row(path, array) if path in TOKEN_ROWS else array for path, array in arrays.items()}
    constant = np.zeros(size, np.float32) if bias is None else np.array(np.asarray(bias)[order])
    constant[-1] = NEVER
    model = marian_form(run.model)
    if (decoding := run.objective.decoding) is not None:
        indices = {int(old): new for new, old in enumerate(order)}
        experiment = override(run.experiment, {"objective.decoding": _renumbered(decoding, indices)})
        run = dataclasses.replace(run, experiment=experiment)
    return replaced(run, model, parameters.nested(changed | {"bias": constant}), permuted(tokenizer, order))


TOKEN_ROWS = ("embeddings/token", "head")
"""Paths of encoder–decoder parameters that have one row per token of the vocabulary."""


def _renumbered(decoding: Decoding, places: Mapping[int, int]) -> Decoding:
    """Replaces the token ids in decoding settings by new ids. `places` maps old ids to new ids."""

    def moved(value: Any) -> Any:
        return tuple(map(moved, value)) if isinstance(value, tuple) else None if value is None else places[value]

    return dataclasses.replace(decoding, **{name: moved(getattr(decoding, name)) for name in decoding.token_ids})


def without_unused_ids(run: Run) -> Run:
    """Reduces the vocabulary of a run's model to the size of the tokenizer, by removing the last rows of the token
    embeddings and of the output layer.
    """
    limit = run.model.text_limits
    if run.tokenizer is None or limit is None or run.tokenizer.vocab_size >= limit.vocab:
        return run
    size = run.tokenizer.vocab_size
    model = run.model.map_part("tokens", lambda part: dataclasses.replace(part, vocab=size))
    before, after = parameters.abstract(run.model), parameters.abstract(model)
    arrays = parameters.flat(run.params)
    for path, shape in after.items():
        if shape != before[path]:
            arrays[path] = _first(arrays[path], shape)
    return replaced(run, model, parameters.nested(arrays), run.tokenizer)


def _first(array: Any, shape: tuple[int, ...]) -> StoredArray:
    """Truncates an array at the end of each axis to a smaller shape. The result is computed when it is read."""
    return _lazy(array, shape, lambda: np.asarray(array)[tuple(map(slice, shape))])


def _lazy(array: Any, shape: tuple[int, ...], read: Callable[[], np.ndarray]) -> StoredArray:
    return StoredArray(shape, array.dtype, None, read)


def replaced(run: Run, model: Model, params: Any, tokenizer: Any) -> Run:
    """Returns a copy of a run in which model, parameters and tokenizer are replaced."""
    experiment = dataclasses.replace(run.experiment, model=model)
    return dataclasses.replace(run, experiment=experiment, params=params, tokenizer=tokenizer)
