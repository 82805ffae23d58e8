"""Converts text models to the form that other programs expect: without unused token ids, and for Marian models with
padding as the last token.

Converters such as CTranslate2 expect as many embedding rows as the tokenizer has tokens. They expect the last row of a
Marian model to be padding and drop it, and they start the decoder from a zero vector.
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
from jaxformer.training.checkpoint_arrays import StoredArray

NEVER = -50.0
"""Output bias of the padding token in the converted model. It is low enough that the probability of the token is 0, but
not so low that it exceeds float16 or dominates a comparison relative to the largest logit.
"""


def marian_form(model: Model) -> Model:
    """Returns the config of a Marian model that computes the same as `model`, whose decoder starts from a zero vector
    (`zero_start`). The Marian model starts from the padding token, which must have a zero embedding, and has an output
    bias. `marian_run` converts the parameters.
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
    """Replaces the token ids in decoding settings (such as the ids of end tokens) by new ids. `places` maps old ids to
    new ids.
    """

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
    """Truncates an array to a smaller shape by removing the end of each axis. The array is read and truncated only when
    the result is used.
    """
    return _lazy(array, shape, lambda: np.asarray(array)[tuple(map(slice, shape))])


def _lazy(array: Any, shape: tuple[int, ...], read: Callable[[], np.ndarray]) -> StoredArray:
    return StoredArray(shape, array.dtype, None, read)


def replaced(run: Run, model: Model, params: Any, tokenizer: Any) -> Run:
    """Returns a copy of a run in which model, parameters and tokenizer are replaced."""
    experiment = dataclasses.replace(run.experiment, model=model)
    return dataclasses.replace(run, experiment=experiment, params=params, tokenizer=tokenizer)
