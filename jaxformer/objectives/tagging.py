"""Objective of word tagging, for example with parts of speech or named entities (Devlin et al. 2019, §5.3)."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxformer.data.sources.sources import read_each
from jaxformer.data.tasks.tagging import Words, has_entities, kinds
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import InputError
from jaxformer.losses.cross_entropy import class_cross_entropy
from jaxformer.metrics.averages import Average, Loss
from jaxformer.metrics.base import Context, Metric
from jaxformer.metrics.entities import ENTITIES, EntityScores, counts
from jaxformer.metrics.means import Mean, auxiliary
from jaxformer.models.classifier import Classifier
from jaxformer.objectives.base import Objective
from jaxformer.predictors.word_tags import INPUTS, WordTags, token_tags


@dataclasses.dataclass(frozen=True)
class Tagging(Objective[Classifier]):
    """Predicts a tag for each word of a sentence, at the first token of the word."""

    model_inputs = INPUTS
    required = ("tokens", "targets", "weights")
    example_task = "TagTokens"

    def check(self, model: Classifier, row: Mapping[str, Any]) -> None:
        check_tokens(model, "Tagging")
        self.check_arrays(row)

    def __call__(self, model: Classifier, params, batch: Mapping[str, jax.Array], key=None) -> dict[str, Mean]:
        """Computes the loss (nats) and the accuracy over the words of a batch. In an evaluation, if the tags mark
        entities, also returns the numbers of correct, predicted and target entities.

        Args:
          model: a classifier with logits for each token.
          params: model parameters.
          batch: tokens, segments, position_ids, targets, weights [batch, length].
          key: PRNG key for dropout; if None, the model is evaluated.
        """
        output = self.apply_model(model, params, batch, key)
        logits = output.logits
        loss, accuracy = class_cross_entropy(logits, batch["targets"], batch["weights"])
        means = {"loss": loss, "accuracy": accuracy} | auxiliary(output)
        if key is None and has_entities(model.labels):
            weights = batch["weights"] * (1 - batch.get("partial", 0))
            found = counts(model.labels, logits.argmax(-1), batch["targets"], weights, batch["segments"])
            means |= {ENTITIES + kind: mean for kind, mean in found.items()}
        return means

    def metrics(self, model: Classifier) -> tuple[Metric, ...]:
        """Returns the loss and the accuracy and, for evaluations of tags that mark entities, also entity scores."""
        of_entities = (EntityScores(model.labels, _long_counts),) if has_entities(model.labels) else ()
        return Loss(), Average("accuracy", higher_is_better=True), *of_entities

    def predictor(self, model: Classifier, params: Any, tokenizer: Tokenizer) -> WordTags:
        return WordTags(model, params, tokenizer)


def _long_counts(context: Context, documents: Sequence[Mapping[str, Any]], indices: Sequence[int]) -> dict[str, Mean]:
    """Counts the correct, predicted and target entities of the sentences that do not fit in one row. They are counted
    separately, because an entity may extend over two rows. Returns the counts per entity type (see `counts`).
    """
    task, tokenizer, labels = context.task, context.tokenizer, context.model.labels

    def long(document: Mapping[str, Any]) -> tuple[Words, list[slice]] | None:
        words = task.encode(document, tokenizer)
        parts = task.windows(words, tokenizer)
        return (words, parts) if len(parts) > 1 else None

    sentences = [found for found in read_each(documents, long, indices) if found is not None]
    if not sentences:
        return {kind: Mean(np.zeros(3), 0.0) for kind in kinds(labels)}
    best = token_tags(context.model, context.params, tokenizer, sentences, task.length)
    size = 2 ** int(np.ceil(np.log2(sum(len(words.tokens) for words, _ in sentences))))  # Few sizes to compile for.

    def joined(arrays: Iterable[np.ndarray]) -> np.ndarray:
        row = np.concatenate(list(arrays)).astype(np.int32)
        return np.pad(row, (0, size - len(row)))[None]

    found = counts(
        labels,
        joined(tags[:, 0] for tags in best),
        joined(words.tags for words, _ in sentences),
        joined(words.first for words, _ in sentences),
        joined(np.full(len(words.tokens), number) for number, (words, _) in enumerate(sentences, 1)),
    )
    return {kind: mean.double() for kind, mean in jax.device_get(found).items()}


def check_tokens(model: Any, objective: str) -> None:
    """Raises InputError if a model is not a classifier with logits for each token. The message contains `objective`."""
    if not model.is_text_classifier:
        raise InputError(f"objective={objective}: needs a Classifier; the model is a {type(model).__name__}")
    if model.pooling != "none":
        raise InputError(f"model.pooling={model.pooling}: expected none for objective={objective}")
