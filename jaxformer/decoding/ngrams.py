"""N-gram language models of words, which are trained on texts or read from files in the ARPA format."""

import collections
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from jaxformer import storage
from jaxformer.data.transforms.spelling import spoken
from jaxformer.errors import InputError

START, END, UNKNOWN = "<s>", "</s>", "<unk>"
"""Names of the start and the end of a text, and of words outside the vocabulary, in the ARPA format."""
LEAST = -99.0
"""Logarithm to base 10 that the ARPA format writes for a probability of 0."""
MISSING = -10.0
"""Logarithm to base 10 of the probability of an unknown word, for a model without `<unk>`."""
TO_NATURAL = math.log(10)

Words = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Ngrams:
    """N-gram language model with back-off (Katz 1987): if an n-gram is not in the model, its probability is that of the
    shorter n-gram without its first word, multiplied by the back-off weight of its other words.
    """

    probabilities: Mapping[Words, float]
    """Logarithms to base 10 of the probability of the last word of each n-gram, keyed by the words of the n-gram."""
    backoffs: Mapping[Words, float]
    """Logarithms to base 10 of back-off weights, keyed by words. 0 for all others."""
    order: int
    """Number of words of the longest n-grams."""

    def score(self, history: Sequence[str], word: str) -> float:
        """Returns the log-probability of a word after other words, in nats.

        Args:
          history: all words of the text before the word.
          word: the word. An empty string is the end of the text.
        """
        known = (START, *(one if (one,) in self.probabilities else UNKNOWN for one in history))
        word = END if not word else word if (word,) in self.probabilities else UNKNOWN
        context, weight = known[max(0, len(known) - self.order + 1) :], 0.0
        while (found := self.probabilities.get((*context, word))) is None:
            if not context:
                found = MISSING
                break
            weight += self.backoffs.get(context, 0.0)
            context = context[1:]
        return TO_NATURAL * (weight + found)

    def scores(self, words: Sequence[tuple[Words, str]]) -> list[float]:
        """Returns the log-probability of each word after its history, in nats. See `score`."""
        return [self.score(history, word) for history, word in words]

    @classmethod
    def train(cls, texts: Iterable[str], order: int = 3) -> "Ngrams":
        """Estimates a model from the spoken words of texts, without punctuation and in lower case (`spelling.spoken`).
        Probabilities are interpolated with those of shorter n-grams (Witten & Bell 1991).

        Args:
          texts: texts, such as sentences or verses.
          order: number of words of the longest n-grams.

        Raises:
          InputError: If `order` is below 1, or there are no words.
        """
        if order < 1:
            raise InputError(f"order={order}: expected at least 1")
        counts: list[collections.Counter[Words]] = [collections.Counter() for _ in range(order)]
        for text in texts:
            if words := spoken(text).split():
                padded = (START, *words, END)
                for size in range(1, order + 1):
                    counts[size - 1].update(padded[at : at + size] for at in range(len(padded) - size + 1))
        del counts[0][(START,)]
        if not counts[0]:
            raise InputError("texts: there are no words to train n-grams on; expected some")
        total, kinds = sum(counts[0].values()), len(counts[0])
        # An unknown word is as likely as any word of the vocabulary would be without counts.
        uniform = kinds / (total + kinds) / (kinds + 1)
        shares = {words: count / (total + kinds) + uniform for words, count in counts[0].items()}
        shares[(UNKNOWN,)] = uniform
        weights: dict[Words, float] = {}
        for size in range(2, order + 1):
            seen, followers = collections.Counter[Words](), collections.Counter[Words]()
            for words, count in counts[size - 1].items():
                seen[words[:-1]] += count
                followers[words[:-1]] += 1
            for context, count in followers.items():
                weights[context] = count / (seen[context] + count)
            for words, count in counts[size - 1].items():
                context = words[:-1]
                shorter = shares[words[1:]]
                shares[words] = count / (seen[context] + followers[context]) + weights[context] * shorter
        return cls(
            {words: math.log10(share) for words, share in shares.items()},
            {words: math.log10(weight) for words, weight in weights.items()},
            order,
        )

    @classmethod
    def read(cls, path: str) -> "Ngrams":
        """Reads a model from a file in the ARPA format.

        Raises:
          InputError: If the file cannot be read, or is not in this format.
        """
        try:
            lines = storage.read_bytes(path).decode("utf-8").splitlines()
        except OSError as error:
            raise InputError(f"{path}: {(error.strerror or str(error)).lower()}; give an n-gram file (ARPA)") from error
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not a text file; give an n-gram file (ARPA)") from error
        probabilities, backoffs, size = {}, {}, 0
        for number, line in enumerate(lines, 1):
            if line.startswith("\\"):
                name, dash, _ = line.strip("\\: ").partition("-grams")
                size = int(name) if dash and name.isdigit() else 0
                continue
            if not size or not line.strip():
                continue
            first, *rest = line.split()
            words = tuple(rest[:size])
            try:
                probabilities[words] = float(first)
                if len(rest) > size:
                    backoffs[words] = float(rest[size])
            except ValueError:
                words = ()
            if len(words) != size or len(rest) > size + 1:
                raise InputError(f"{path}: line {number}: expected PROBABILITY, {size} words and a BACK-OFF weight")
        if not probabilities:
            raise InputError(f"{path}: has no n-grams; expected a file in the ARPA format")
        return cls(probabilities, backoffs, max(map(len, probabilities)))

    def save(self, path: str | Path) -> None:
        """Writes the model to a file in the ARPA format."""
        parts = ["\\data\\"]
        groups: dict[int, list[str]] = {size: [] for size in range(1, self.order + 1)}
        for words, probability in sorted({(START,): LEAST, **self.probabilities}.items()):
            end = f"\t{self.backoffs[words]:.7f}" if words in self.backoffs else ""
            groups[len(words)].append(f"{probability:.7f}\t{' '.join(words)}{end}")
        parts += [f"ngram {size}={len(lines)}" for size, lines in groups.items()]
        for size, lines in groups.items():
            parts += ["", f"\\{size}-grams:", *lines]
        Path(path).write_text("\n".join([*parts, "", "\\end\\", ""]), encoding="utf-8")
