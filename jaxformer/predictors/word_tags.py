"""Predicts a tag, such as a part of speech, for each word of a text."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxformer.data.tasks import layouts
from jaxformer.data.tasks.tagging import Words, encode_words, windows
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.errors import InputError
from jaxformer.models.classifier import Classifier
from jaxformer.predictors.base import Answer, Predictor
from jaxformer.predictors.padding import padded, stacked

INPUTS = ("tokens", "segments", "position_ids")
"""Names of the batch arrays that are passed to the model."""
WORD = re.compile(r"\w+(?:[.'’-]\w+)*|[^\w\s]")
"""Matches a word, including inner periods, apostrophes and hyphens, or a single punctuation mark."""


@dataclasses.dataclass(frozen=True)
class Tagged(Answer):
    """A text, its words and their predicted tags."""

    text: str
    """Text in the request."""
    words: tuple[str, ...]
    """Words of the text. Punctuation marks count as words."""
    tags: tuple[str, ...]
    """Most likely tag of each word."""
    probabilities: tuple[float, ...]
    """Probability of each word's tag."""

    def __str__(self) -> str:
        return " ".join(f"{word}/{tag}" for word, tag in zip(self.words, self.tags, strict=True))


@dataclasses.dataclass(frozen=True, eq=False)
class WordTags(Predictor[Classifier]):
    """Tags the words of texts, using a token classifier."""

    def encode(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Converts texts to the arguments of the model. Long texts are truncated."""
        words = [encode_words(WORD.findall(text), self.tokenizer).tokens for text in texts]
        return stacked(
            [layouts.lay_out(self.tokenizer, "encoder", self.model.max_length, tokens).tokens for tokens in words]
        )

    def predict(self, texts: Sequence[str]) -> list[Tagged]:
        """Tags the words of each text. Long texts are divided into windows.

        Raises:
          InputError: If a text has no words.
        """
        words = [tuple(WORD.findall(text)) for text in texts]
        for text, found in zip(texts, words, strict=True):
            if not found:
                raise InputError(f"{text!r}: no words to tag; expected some")
        found = self.tag(words)
        return [Tagged(text, part, *tags) for text, part, tags in zip(texts, words, found, strict=True)]

    def tag(self, sentences: Sequence[Sequence[str]]) -> list[tuple[tuple[str, ...], tuple[float, ...]]]:
        """Predicts the most likely tag of each word. Returns for each sentence its tags and their probabilities, one
        per word.

        A word without tokens gets the first tag, with probability 0.
        """
        room = self.model.max_length - self.tokenizer.template("encoder").num_special_tokens()
        encoded = [encode_words(words, self.tokenizer) for words in sentences]
        parts = [(words, windows(words.first, room)) for words in encoded]
        best = token_tags(self.model, self.params, self.tokenizer, parts, self.model.max_length)
        return [
            _of_words(self.model.labels, words.owners, words.first, best[number], len(sentences[number]))
            for number, words in enumerate(encoded)
        ]

    def demonstrate(self, batch: Mapping[str, Any]) -> list[str]:
        """Tags the first sentence of each of the first rows in a held-out batch. Returns one line per sentence, with
        words such as `light/NOUN`, or `light/ADJ (NOUN)` if the true tag NOUN differs.
        """
        batch = {name: np.asarray(array)[:4] for name, array in batch.items()}
        inputs = {name: batch[name] for name in INPUTS if name in batch}
        tags = np.asarray(_best(self.model, self.params, inputs)[0])
        return [
            _shown(self.model.labels, self.tokenizer, *(array[row][batch["segments"][row] == 1] for array in arrays))
            for arrays in [(batch["tokens"], batch["weights"], tags, batch["targets"])]
            for row in range(len(tags))
            if (batch["segments"][row] == 1).any()
        ]


def token_tags(
    model: Classifier, params, tokenizer: Tokenizer, sentences: Sequence[tuple[Words, Sequence[slice]]], length: int
) -> list[np.ndarray]:
    """Predicts the most likely tag of each token. Returns an array [tokens, 2] for each sentence, with the index of the
    tag and its probability.

    Args:
      model: Classifier of tokens.
      params: Parameters of the model.
      tokenizer: Tokenizer of the sentences.
      sentences: For each sentence, its encoded words, and the windows that they are divided into, as slices of the
        tokens.
      length: Maximum number of tokens in a window, including special tokens.
    """
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
    """Returns the tag of each word and its probability. The tag of a word is the tag of its first token.

    Args:
      labels: names of the tags.
      owners: index of the word that each token belongs to.
      first: whether each token is the first one of its word.
      best: index of the tag and its probability for each token, [tokens, 2].
      count: number of words. Words without tokens get the first tag, with probability 0.
    """
    words = np.zeros((count, 2))
    words[owners[first]] = best[first]
    return tuple(labels[int(tag)] for tag in words[:, 0]), tuple(map(float, words[:, 1]))


def _shown(labels, tokenizer: Tokenizer, tokens, weights, tags, targets) -> str:
    """Formats a sentence as words with their predicted tags, each followed by the true tag in parentheses if it
    differs.
    """
    starts, end = np.flatnonzero(weights), len(tokens)
    words = []
    for start, stop in zip(starts, [*starts[1:], end], strict=True):
        tag, right = labels[tags[start]], labels[targets[start]]
        words.append(f"{tokenizer.decode(tokens[start:stop])}/{tag}" + f" ({right})" * (tag != right))
    return " ".join(words)
