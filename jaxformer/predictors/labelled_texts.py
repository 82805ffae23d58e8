"""Shared by the objectives of classifiers: checks of their rows, and the logits of texts given to `predict`."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxformer.data.tasks import layouts
from jaxformer.data.tasks.classification import PAIR
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.tokenizers.template import Template
from jaxformer.errors import InputError
from jaxformer.models.classifier import Classifier
from jaxformer.predictors.padding import padded, stacked

INPUTS = ("tokens", "segments", "position_ids", "token_types", "cls_positions")
"""The part of a batch that a classifier takes."""
Text = str | tuple[str, str]
"""A text, or a pair of texts."""
SHOWN = 4
"""Texts of a demonstration."""


def as_given(text: str | tuple[str, str]) -> str:
    """A text, or a pair as one text with a tab between the two."""
    return text if isinstance(text, str) else PAIR.join(text)


def check_rows(objective: str, model: Any, row: Mapping[str, Any]) -> None:
    """Raises InputError if the model is not a classifier of whole texts, or the rows are not those of its form."""
    if not model.is_text_classifier or model.pooling == "none":
        found = type(model).__name__ + " of tokens" * model.is_text_classifier
        raise InputError(f"objective={objective}: needs a Classifier of whole texts; the model is a {found}")
    if missing := [name for name in ("cls_positions", "targets", "weights") if name not in row]:
        raise InputError(f"objective={objective}: the task's rows have no {missing[0]}; use one such as Classify")
    form = form_of(model)
    if ("token_types" in row) != (form == "encoder"):
        raise InputError(f"data.task.form: the rows are laid out for another kind of model; expected {form}")


def form_of(model: Classifier) -> str:
    """Layout of texts for the model: `encoder` or `decoder`."""
    return "decoder" if model.backbone.is_generative else "encoder"


def template_of(model: Any, tokenizer: Tokenizer) -> Template | None:
    """The special tokens around texts for a classifier; None for other models."""
    return tokenizer.template(form_of(model)) if model.is_text_classifier else None


def text_logits(model: Classifier, params, tokenizer: Tokenizer, texts: Sequence[Text]) -> np.ndarray:
    """float32 [texts, labels]: of texts, or of pairs; the longer text of a pair loses its end."""
    return token_logits(model, params, tokenizer, _tokens(tokenizer, texts), model.max_length)


def encode_texts(model: Classifier, tokenizer: Tokenizer, texts: Sequence[Text]) -> dict[str, np.ndarray]:
    """The model's arguments for texts, or for pairs; the longer text of a pair loses its end."""
    form = form_of(model)
    pairs = _tokens(tokenizer, texts)
    rows = [layouts.lay_out(tokenizer, form, model.max_length, *pair) for pair in pairs]
    types = [row.token_types for row in rows] if form == "encoder" else None
    return stacked([row.tokens for row in rows], types)


def _tokens(tokenizer: Tokenizer, texts: Sequence[Text]) -> list[tuple[np.ndarray, np.ndarray | None]]:
    parts = [tokenizer.encode_batch([text.strip()] if isinstance(text, str) else list(text)) for text in texts]
    return [(first, second[0] if second else None) for first, *second in parts]


def token_logits(
    model: Classifier,
    params,
    tokenizer: Tokenizer,
    pairs: Sequence[tuple[np.ndarray, np.ndarray | None]],
    length: int,
) -> np.ndarray:
    """Logits of texts as tokens; the second one is None if there is no pair.

    Args:
      model: a classifier of whole texts.
      params: its parameters.
      tokenizer: the texts'.
      pairs: int32 [t] each.
      length: tokens of a row, at most.
    """
    rows = [layouts.lay_out(tokenizer, form_of(model), length, first, second) for first, second in pairs]
    if not all(len(row.tokens) for row in rows):
        raise InputError("an empty text; expected some words to classify")
    logits = np.zeros((len(rows), len(model.labels)), np.float32)
    tokens, token_types = ([getattr(row, name) for row in rows] for name in ("tokens", "token_types"))
    for places, batch in padded(tokens, length, token_types):
        logits[places] = _logits(model, params, batch)[: len(places), 0]
    return logits


@functools.partial(jax.jit, static_argnums=0)
def _logits(model, params, batch):
    return model.apply({"params": params}, **batch).logits


def batch_logits(model: Classifier, params, batch: Mapping[str, np.ndarray]) -> jax.Array:
    """float32 [b, c, labels] of a batch as the lanes lay it out."""
    return _logits(model, params, {name: batch[name] for name in INPUTS if name in batch})


def held_out_texts(
    model: Classifier, params, tokenizer: Tokenizer, batch: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """The first examples of a batch: (text, logits, float32 [n]; target, of a batch's kind, [1] or [n])."""
    batch = {name: array[:SHOWN] for name, array in batch.items()}
    logits, weights = np.asarray(batch_logits(model, params, batch)), batch["weights"]
    targets = batch["targets"].reshape(*weights.shape, -1)
    for row, example in np.argwhere(weights > 0)[:SHOWN]:
        tokens = batch["tokens"][row][batch["segments"][row] == example + 1]
        shown = tokenizer.decode(tokens[~tokenizer.is_special[tokens]])
        yield shown, logits[row, example], targets[row, example]
