"""Tags of words by a classifier of tokens: parts of speech, and entities in BIO tags (Devlin et al. 2019, §5.3)."""

import dataclasses
import functools
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxformer.data import layouts
from jaxformer.data.tagging_tasks import encode_words, windows
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import InputError
from jaxformer.metrics import Mean
from jaxformer.models.classifier import Classifier
from jaxformer.objectives.cross_entropy import class_cross_entropy
from jaxformer.objectives.entities import counts, is_bio, kinds, report_entities
from jaxformer.objectives.padding import padded, stacked

INPUTS = ("tokens", "segments", "positions")

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
        """The loss (nats) and the accuracy of a batch's words; of BIO tags, counts of entities too.

        Args:
          model: a classifier that reads tokens.
          params: its parameters.
          batch: tokens, segments, positions, targets, weights [b, t].
          key: for dropout; None evaluates.
        """
        rngs = None if key is None else {"dropout": key}
        logits = model.apply({"params": params}, **self.inputs(batch), train=key is not None, rngs=rngs).logits
        loss, accuracy = class_cross_entropy(logits, batch["targets"], batch["weights"])
        means = {"loss": loss, "accuracy": accuracy}
        if key is None and is_bio(model.labels):
            found = counts(model.labels, logits.argmax(-1), batch["targets"], batch["weights"], batch["segments"])
            means |= {f"entities_{kind}": found[kind] for kind in kinds(model.labels)}
        return means

    def report(self, means: Mapping[str, Mean]) -> dict[str, float]:
        """What a person reads of merged means; of BIO tags the F1 of all entities and of each kind, from 0 to 1."""
        values = {name: float(means[name].value) for name in ("loss", "accuracy")}
        prefix = "entities_"
        return values | report_entities(
            {name.removeprefix(prefix): mean for name, mean in means.items() if name.startswith(prefix)}
        )

    def encode(self, model: Classifier, tokenizer: Tokenizer, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """The model's arguments for the words of the texts, which are cut to the longest input."""
        words = [encode_words(WORD.findall(text), tokenizer).tokens for text in texts]
        return stacked([layouts.lay_out(tokenizer, "encoder", model.positions, tokens).tokens for tokens in words])

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
        encoded, template = [encode_words(words, tokenizer) for words in sentences], tokenizer.template("encoder")
        places, rows = [], []
        for number, words in enumerate(encoded):
            for part in windows(words.first, model.positions - template.added()):
                places.append((number, part))
                rows.append(template.lay_out(words.tokens[part]))
        best = [np.zeros((len(words.tokens), 2)) for words in encoded]
        for some, batch in padded([row.tokens for row in rows], model.positions):
            tags, probabilities = jax.device_get(_best(model, params, batch))
            for row, place in enumerate(some):
                number, part = places[place]
                [start] = rows[place].starts
                inner = slice(start, start + part.stop - part.start)
                best[number][part] = np.stack([tags[row, inner], probabilities[row, inner]], -1)
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
    if not isinstance(model, Classifier):
        raise InputError(f"objective={objective}: needs a Classifier; the model is a {type(model).__name__}")
    if model.reads != "tokens":
        raise InputError(f"model.reads={model.reads}: expected tokens for objective={objective}")


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
