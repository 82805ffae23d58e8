"""Functions that the predictors and objectives of text classifiers share: checks of tasks, and logits of texts."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxformer.data.tasks import layouts
from jaxformer.data.tasks.classification import PAIR
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.tokenizers.template import Template
from jaxformer.data.tokenizers.tokenizer import Form
from jaxformer.errors import InputError
from jaxformer.models.classifier import Classifier
from jaxformer.predictors.padding import padded, stacked

INPUTS = ("tokens", "segments", "position_ids", "token_types", "cls_positions")
"""Names of the batch arrays that are passed to a text classifier."""
Text = str | tuple[str, str]
"""A text, or a pair of texts."""
MAX_EXAMPLES = 4
"""Maximum number of held-out texts that `held_out_texts` yields."""


def as_given(text: str | tuple[str, str]) -> str:
    """Converts a text or a pair of texts to one string, the form in which a user enters it. The texts of a pair are
    joined by a tab.
    """
    return text if isinstance(text, str) else PAIR.join(text)


def check_rows(objective: str, model: Any, row: Mapping[str, Any]) -> None:
    """Checks that the model classifies whole texts, and that the batch rows of the task have the arrays for it.

    Args:
      objective: name of the objective, for error messages.
      model: the model.
      row: maps the name of each array in a batch row of the task to its layout (`Feature`).

    Raises:
      InputError: If the model does not classify whole texts, if an array is missing, or if the special tokens of the
        rows are those of the other kind of model (`data.task.form`).
    """
    if not model.is_text_classifier or model.pooling == "none":
        found = type(model).__name__ + " of tokens" * model.is_text_classifier
        raise InputError(f"objective={objective}: needs a Classifier of whole texts; the model is a {found}")
    if missing := [name for name in ("cls_positions", "targets", "weights") if name not in row]:
        raise InputError(f"objective={objective}: the task's rows have no {missing[0]}; use one such as Classify")
    form = form_of(model)
    if ("token_types" in row) != (form == "encoder"):
        raise InputError(f"data.task.form: the layout of the rows does not fit the model; expected {form}")


def form_of(model: Classifier) -> Form:
    """Returns which special tokens the model expects around texts: `decoder` if the classifier is built on a generative
    model, otherwise `encoder`.
    """
    return "decoder" if model.backbone.is_generative else "encoder"


def template_of(model: Any, tokenizer: Tokenizer) -> Template | None:
    """Returns the template by which the tokenizer adds special tokens to a text, for the kind of model that the
    classifier is built on. None if the model is not a text classifier.
    """
    return tokenizer.template(form_of(model)) if model.is_text_classifier else None


def text_logits(model: Classifier, params, tokenizer: Tokenizer, texts: Sequence[Text]) -> np.ndarray:
    """Computes the logits of texts or pairs of texts, float32 [texts, labels]. Truncates the longer text of a pair."""
    return token_logits(model, params, tokenizer, _tokens(tokenizer, texts), model.max_length)


def encode_texts(model: Classifier, tokenizer: Tokenizer, texts: Sequence[Text]) -> dict[str, np.ndarray]:
    """Converts texts or pairs of texts to the arguments of the model: `tokens`, `segments` and, for encoders,
    `token_types`, int32 [texts, length]. Truncates the longer text of a pair.
    """
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
    """Computes the logits of tokenized texts or pairs, float32 [texts, labels].

    Args:
      model: Classifier of whole texts.
      params: Parameters of the model.
      tokenizer: Tokenizer of the texts.
      pairs: Tokens of the first and second text of each example, int32 [tokens] each. The second is None if there is no
        pair.
      length: Maximum number of tokens per row.
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
    """Computes the logits of all texts in a batch from the data pipeline, float32 [batch, texts per row, labels]. A
    batch row may contain several texts.
    """
    return _logits(model, params, {name: batch[name] for name in INPUTS if name in batch})


def held_out_texts(
    model: Classifier, params, tokenizer: Tokenizer, batch: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yields (text, logits, target) for the first `MAX_EXAMPLES` texts of a held-out batch.

    The logits are float32 [labels]. The target is the entry of `batch["targets"]` for the text: shape [1], or [labels]
    for multi-label tasks.
    """
    batch = {name: array[:MAX_EXAMPLES] for name, array in batch.items()}
    logits, weights = np.asarray(batch_logits(model, params, batch)), batch["weights"]
    targets = batch["targets"].reshape(*weights.shape, -1)
    for row, example in np.argwhere(weights > 0)[:MAX_EXAMPLES]:
        tokens = batch["tokens"][row][batch["segments"][row] == example + 1]
        shown = tokenizer.decode(tokens[~tokenizer.is_special[tokens]])
        yield shown, logits[row, example], targets[row, example]
