"""Selects the sentences of a document that summarize it: those most similar to a reference summary, or those with the
highest scores.
"""

import collections
import re
from collections.abc import Iterable, Sequence

import numpy as np

from jaxformer.data.sources import columns

_WORD = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """Returns the lower-case words of a text. A word is a sequence of letters and digits, as in the rouge-score package
    for English.
    """
    return _WORD.findall(text.lower())


def split_document(text: str) -> list[str]:
    """Splits a text at line breaks and sentence punctuation into sentences. Returns those that contain at least one
    word.
    """
    parts = (sentence for line in text.splitlines() for sentence in columns.split_sentences(line))
    return [sentence for sentence in parts if words(sentence)]


def rouge_f1(words: Sequence[str], reference: Sequence[str], n: int) -> float:
    """Computes ROUGE-n (Lin 2004): the F1 score of the n-grams of two word lists, from 0 to 1."""
    return _f1(_ngrams(words, n), _ngrams(reference, n))


def oracle(sentences: Sequence[str], summary: str, most: int) -> list[int]:
    """Greedily selects the sentences that are most similar to a summary (Nallapati et al. 2017; Liu & Lapata 2019).

    Repeatedly adds the sentence that increases the sum of ROUGE-1 and ROUGE-2 of the selected sentences most. Ties go
    to the first sentence. Stops when no sentence increases the sum.

    Args:
      sentences: sentences of the document.
      summary: reference summary.
      most: maximum number of sentences to select.

    Returns:
      Indices of the selected sentences, ascending. Empty if no sentence contains a word of the summary.
    """
    parts = [words(sentence) for sentence in sentences]
    reference = words(summary)
    references = {n: _ngrams(reference, n) for n in (1, 2)}

    def score(indices: Iterable[int]) -> float:
        joined = [word for index in sorted(indices) for word in parts[index]]
        return sum(_f1(_ngrams(joined, n), found) for n, found in references.items())

    chosen: list[int] = []
    best = 0.0
    while len(chosen) < most:
        scores = {index: score([*chosen, index]) for index in range(len(parts)) if index not in chosen}
        index = max(scores, key=scores.__getitem__, default=None)
        if index is None or scores[index] <= best:
            break
        chosen.append(index)
        best = scores[index]
    return sorted(chosen)


def choose(
    scores: Sequence[float] | np.ndarray, sentences: Sequence[str], most: int, block_trigrams: bool
) -> list[int]:
    """Selects the sentences with the highest scores.

    Args:
      scores: one score per sentence.
      sentences: at least as many sentences as scores. Sentences without a score are not selected.
      most: maximum number of sentences to select.
      block_trigrams: whether to skip a sentence that shares three successive words with a sentence already selected
        (Paulus et al. 2018).

    Returns:
      Indices of the selected sentences, ascending.
    """
    chosen: list[int] = []
    seen: set[tuple[str, ...]] = set()
    for index in map(int, np.argsort(-np.asarray(scores), kind="stable")):
        if len(chosen) == most:
            break
        trigrams = set(_ngrams(words(sentences[index]), 3))
        if block_trigrams and trigrams & seen:
            continue
        chosen.append(index)
        seen |= trigrams
    return sorted(chosen)


def _ngrams(words: Sequence[str], n: int) -> collections.Counter[tuple[str, ...]]:
    return collections.Counter(zip(*(words[start:] for start in range(n)), strict=False))


def _f1(one: collections.Counter, other: collections.Counter) -> float:
    return 2 * (one & other).total() / max(one.total() + other.total(), 1)
