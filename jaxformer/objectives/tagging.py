"""Tags of words by a classifier of tokens: parts of speech, and entities (Devlin et al. 2019, §5.3)."""

import dataclasses
import functools
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxformer.data.sources.sources import read_each
from jaxformer.data.tasks import layouts
from jaxformer.data.tasks.tagging import TagTokens, Words, encode_words, has_entities, windows
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import InputError
from jaxformer.losses.cross_entropy import class_cross_entropy
from jaxformer.metrics.entities import counts, report_entities
from jaxformer.metrics.means import Mean, merge
from jaxformer.models.classifier import Classifier
from jaxformer.predictors.padding import padded, stacked

INPUTS = ("tokens", "segments", "position_ids")
WHOLE, PARTS, DOCUMENTS = "entities_", "window_entities_", "document_entities_"
"""Prefixes of the means with counts of entities: of sentences in one row, of windows of others, and of these whole."""

WORD = re.compile(r"\w+(?:[.'’-]\w+)*|[^\w\s]")
"""A word, with the points, apostrophes and hyphens in it, or a sign by itself."""


@dataclasses.dataclass(frozen=True)
class Tagged:
    """A text and the tags of its words."""

    text: str
    """The text as it was given."""
    words: tuple[str, ...]
    """Its words, and its signs, which are words too."""
    tags: tuple[str, ...]
    """The likeliest tag of each word."""
    probabilities: tuple[float, ...]
    """How likely the model finds it."""

    def __str__(self) -> str:
        return " ".join(f"{word}/{tag}" for word, tag in zip(self.words, self.tags, strict=True))


@dataclasses.dataclass(frozen=True)
class Tagging:
    """Predict the tag of each word, at its first token."""

    @property
    def loss_weights(self) -> Mapping[str, float]:
        """The means that make the loss, with their weights in it."""
        return {"loss": 1.0}

    def check(self, model: Classifier, row: Collection[str]) -> None:
        """Raises InputError where rows with these arrays cannot train the model."""
        check_tokens(model, "Tagging")
        if missing := [name for name in ("tokens", "targets", "weights") if name not in row]:
            raise InputError(f"objective=Tagging: the task's rows have no {missing[0]}; use TagTokens")

    def inputs(self, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """The part of a batch that the model takes."""
        return {name: batch[name] for name in INPUTS if name in batch}

    def __call__(self, model: Classifier, params, batch: Mapping[str, jax.Array], key=None) -> dict[str, Mean]:
        """The loss (nats) and the accuracy of a batch's words; with the tags of entities, their counts too.

        Args:
          model: a classifier that reads tokens.
          params: its parameters.
          batch: tokens, segments, position_ids, targets, weights [b, t].
          key: for dropout; None evaluates.
        """
        rngs = None if key is None else {"dropout": key}
        logits = model.apply({"params": params}, **self.inputs(batch), train=key is not None, rngs=rngs).logits
        loss, accuracy = class_cross_entropy(logits, batch["targets"], batch["weights"])
        means = {"loss": loss, "accuracy": accuracy}
        if key is None and has_entities(model.labels):
            tags, partial = logits.argmax(-1), batch.get("partial", 0)
            for prefix, weights in ((WHOLE, batch["weights"] * (1 - partial)), (PARTS, batch["weights"] * partial)):
                found = counts(model.labels, tags, batch["targets"], weights, batch["segments"])
                means |= {prefix + kind: mean for kind, mean in found.items()}
        return means

    def document_scores(
        self, model: Classifier, params, tokenizer: Tokenizer, task: TagTokens, documents: Sequence[Mapping[str, Any]]
    ) -> dict[str, Mean]:
        """Counts of the entities of sentences with several windows, in which an entity may be longer than a row."""
        if not has_entities(model.labels):
            return {}

        def long(document: Mapping[str, Any]) -> tuple[Words, list[slice]] | None:
            words = task.encode(document, tokenizer)
            parts = task.windows(words, tokenizer)
            return (words, parts) if len(parts) > 1 else None

        sentences = [found for found in read_each(documents, long) if found is not None]
        if not sentences:
            return {}
        best = _token_tags(model, params, tokenizer, sentences, task.length)
        size = 2 ** int(np.ceil(np.log2(sum(len(words.tokens) for words, _ in sentences))))  # Few sizes to compile for.

        def joined(arrays: Iterable[np.ndarray]) -> np.ndarray:
            row = np.concatenate(list(arrays)).astype(np.int32)
            return np.pad(row, (0, size - len(row)))[None]

        found = counts(
            model.labels,
            joined(tags[:, 0] for tags in best),
            joined(words.tags for words, _ in sentences),
            joined(words.first for words, _ in sentences),
            joined(np.full(len(words.tokens), number) for number, (words, _) in enumerate(sentences, 1)),
        )
        return {DOCUMENTS + kind: mean for kind, mean in found.items()}

    def report(self, means: Mapping[str, Mean]) -> dict[str, float]:
        """Loss and accuracy of merged means; with the tags of entities the F1 of all and of each kind, from 0 to 1.

        Where there are `document_scores`, in an evaluation in one process, an entity longer than a row is one entity;
        otherwise its part in each row counts as one.
        """
        values = {name: float(means[name].value) for name in ("loss", "accuracy")}
        others = DOCUMENTS if any(name.startswith(DOCUMENTS) for name in means) else PARTS
        names = {name.removeprefix(WHOLE): name for name in means if name.startswith(WHOLE)}
        merged = {kind: merge([{"": means[name]}, {"": means[others + kind]}])[""] for kind, name in names.items()}
        return values | report_entities(merged)

    def encode(self, model: Classifier, tokenizer: Tokenizer, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """The model's arguments for the words of the texts, which are cut to the longest input."""
        words = [encode_words(WORD.findall(text), tokenizer).tokens for text in texts]
        return stacked([layouts.lay_out(tokenizer, "encoder", model.max_length, tokens).tokens for tokens in words])

    def predict(self, model: Classifier, params, tokenizer: Tokenizer, texts: Sequence[str]) -> list[Tagged]:
        """Tags the words of each text, long ones in windows.

        Raises:
          InputError: a text without words.
        """
        words = [tuple(WORD.findall(text)) for text in texts]
        for text, found in zip(texts, words, strict=True):
            if not found:
                raise InputError(f"{text!r}: no words to tag; expected some")
        found = self.tag(model, params, tokenizer, words)
        return [Tagged(text, part, *tags) for text, part, tags in zip(texts, words, found, strict=True)]

    def tag(
        self, model: Classifier, params, tokenizer: Tokenizer, sentences: Sequence[Sequence[str]]
    ) -> list[tuple[tuple[str, ...], tuple[float, ...]]]:
        """The likeliest tag of each word of each sentence, and its probability; of a word without a token, the first
        tag and 0."""
        room = model.max_length - tokenizer.template("encoder").added()
        encoded = [encode_words(words, tokenizer) for words in sentences]
        parts = [(words, windows(words.first, room)) for words in encoded]
        best = _token_tags(model, params, tokenizer, parts, model.max_length)
        return [
            _of_words(model.labels, words.owners, words.first, best[number], len(sentences[number]))
            for number, words in enumerate(encoded)
        ]

    def demonstrate(self, model: Classifier, params, tokenizer: Tokenizer, batch: Mapping[str, Any]) -> list[str]:
        """A few held-out sentences as the model tags them: `light/NOUN`, or `light/ADJ (NOUN)` where that is right."""
        batch = {name: np.asarray(array)[:4] for name, array in batch.items()}
        tags = np.asarray(_best(model, params, self.inputs(batch))[0])
        return [
            _shown(model.labels, tokenizer, *(array[row][batch["segments"][row] == 1] for array in arrays))
            for arrays in [(batch["tokens"], batch["weights"], tags, batch["targets"])]
            for row in range(len(tags))
            if (batch["segments"][row] == 1).any()
        ]


def check_tokens(model: Any, objective: str) -> None:
    """Raises InputError where a model does not classify tokens."""
    if not model.is_text_classifier:
        raise InputError(f"objective={objective}: needs a Classifier; the model is a {type(model).__name__}")
    if model.pooling != "none":
        raise InputError(f"model.pooling={model.pooling}: expected none for objective={objective}")


def _token_tags(
    model: Classifier, params, tokenizer: Tokenizer, sentences: Sequence[tuple[Words, Sequence[slice]]], length: int
) -> list[np.ndarray]:
    """The likeliest tag of each token and its probability, [n, 2], of sentences and their windows of up to `length`."""
    template, places, rows = tokenizer.template("encoder"), [], []
    for number, (words, parts) in enumerate(sentences):
        for part in parts:
            places.append((number, part))
            rows.append(template.lay_out(words.tokens[part]))
    best = [np.zeros((len(words.tokens), 2)) for words, _ in sentences]
    for some, batch in padded([row.tokens for row in rows], length):
        tags, probabilities = jax.device_get(_best(model, params, batch))
        for row, place in enumerate(some):
            number, part = places[place]
            [start] = rows[place].starts
            inner = slice(start, start + part.stop - part.start)
            best[number][part] = np.stack([tags[row, inner], probabilities[row, inner]], -1)
    return best


@functools.partial(jax.jit, static_argnums=0)
def _best(model: Classifier, params, batch) -> tuple[jax.Array, jax.Array]:
    probabilities = jax.nn.softmax(model.apply({"params": params}, **batch).logits)
    return probabilities.argmax(-1), probabilities.max(-1)


def _of_words(labels, owners, first, best, count) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """The tags and probabilities of words, of those [n, 2] of their tokens."""
    words = np.zeros((count, 2))
    words[owners[first]] = best[first]
    return tuple(labels[int(tag)] for tag in words[:, 0]), tuple(map(float, words[:, 1]))


def _shown(labels, tokenizer: Tokenizer, tokens, weights, tags, targets) -> str:
    """A sentence with a tag after each word."""
    starts, end = np.flatnonzero(weights), len(tokens)
    words = []
    for start, stop in zip(starts, [*starts[1:], end], strict=True):
        tag, right = labels[tags[start]], labels[targets[start]]
        words.append(f"{tokenizer.decode(tokens[start:stop])}/{tag}" + f" ({right})" * (tag != right))
    return " ".join(words)
