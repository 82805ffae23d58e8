"""Runs of text models in a form that other programs expect: no more ids than the tokenizer has, and Marian's order.

Converters such as CTranslate2's count the tokenizer's pieces and expect as many rows; of a Marian they drop the last
row, which is padding, and start the decoder from zeros.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxformer.decoding.settings import Decoding
from jaxformer.interop.huggingface import parameters
from jaxformer.interop.huggingface.text.permuted_tokenizer import permuted
from jaxformer.models.base import Model
from jaxformer.models.encoder_decoder import EncoderDecoder
from jaxformer.runs.run import Run
from jaxformer.training.checkpoints import StoredArray

NEVER = -50.0
"""The logit of padding, to which the embedding of zeros adds nothing: no probability, and no number too large for
float16 or for a comparison of logits relative to the largest."""


def marian_form(model: EncoderDecoder) -> EncoderDecoder:
    """The model that computes what `model`, whose `zero_start` is set, does, once padding is the last token."""
    return dataclasses.replace(model, head_bias=True, zero_start=False)


def marian_run(run: Run) -> Run:
    """The run with padding as the last token, whose embedding is zero and which never comes."""
    size, pad = run.tokenizer.vocab_size, run.tokenizer.pad_id
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
    if (decoding := getattr(run.objective, "decoding", None)) is not None:
        indices = {int(old): new for new, old in enumerate(order)}
        objective = dataclasses.replace(run.objective, decoding=_renumbered(decoding, indices))
        run = dataclasses.replace(run, experiment=dataclasses.replace(run.experiment, objective=objective))
    return replaced(run, model, parameters.nested(changed | {"bias": constant}), permuted(run.tokenizer, order))


TOKEN_ROWS = ("embeddings/token", "head")
"""Parameters of an encoder–decoder with a row for each token."""


def _renumbered(decoding: Decoding, places: Mapping[int, int]) -> Decoding:
    """The settings with the new ids of the tokens that they name."""

    def moved(value: Any) -> Any:
        return tuple(map(moved, value)) if isinstance(value, tuple) else None if value is None else places[value]

    return dataclasses.replace(decoding, **{name: moved(getattr(decoding, name)) for name in decoding.token_ids})


def without_unused_ids(run: Run) -> Run:
    """The run with a vocabulary of the tokenizer's size."""
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
    """The first entries of an array along each axis."""
    return _lazy(array, shape, lambda: np.asarray(array)[tuple(map(slice, shape))])


def _lazy(array: Any, shape: tuple[int, ...], read: Callable[[], np.ndarray]) -> StoredArray:
    return StoredArray(shape, array.dtype, None, read)


def replaced(run: Run, model: Model, params: Any, tokenizer: Any) -> Run:
    """The run with another model, its parameters and its tokenizer."""
    experiment = dataclasses.replace(run.experiment, model=model)
    return dataclasses.replace(run, experiment=experiment, params=params, tokenizer=tokenizer)
