"""Decodes the output of CTC: the best path, or a search over prefixes with a language model (Hannun et al. 2014)."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from jaxformer import fields
from jaxformer.errors import InputError


@dataclasses.dataclass(frozen=True)
class CtcSearch:
    """Settings of decoding with CTC. They have no effect on training."""

    num_beams: int = 1
    """Number of prefixes that a beam search keeps. 1 for the best path, which needs no search."""
    language_model: str = ""
    """Language model of words for the beam search: the path of an n-gram file in the ARPA format or, for `predict`, of
    the folder of a run with a GPT. Empty for none.
    """
    lm_weight: float = 0.5
    """Weight of the log-probability of words under the language model, relative to that of characters."""
    word_bonus: float = 1.0
    """Number that is added to the score of a text for each of its words. It offsets that a language model favors texts
    with few words.
    """
    min_log_probability: float = -6.0
    """Characters with a lower log-probability (in nats) in a frame are not tried there by the beam search, except for
    the most likely one.
    """
    window: float = 30.0
    """Length in seconds of the windows that the model reads. Longer sounds are divided into windows."""
    overlap: float = 3.0
    """Number of seconds at each end of a window that only serve as context, because another window contains them."""

    def __post_init__(self):
        fields.check(self)
        fields.at_least("objective.search.num_beams", self.num_beams, 1)
        fields.at_least("objective.search.lm_weight", self.lm_weight, 0)
        fields.at_least("objective.search.overlap", self.overlap, 0)
        if not self.window > 2 * self.overlap:
            raise InputError(
                f"objective.search.window={self.window}: expected more than twice the overlap, {self.overlap}"
            )
        if self.language_model and self.num_beams == 1:
            raise InputError(
                f"objective.search.language_model={self.language_model}: needs a beam search; set num_beams above 1"
            )


class Spelled(NamedTuple):
    """A character of an output."""

    token: int
    """Id of the character."""
    start: int
    """Index of the first frame of the character."""
    end: int
    """Index after the last frame of the character, as far as it is known."""


class WordScorer(Protocol):
    """A language model of words."""

    def scores(self, words: Sequence[tuple[tuple[str, ...], str]]) -> list[float]:
        """Returns the log-probability of each word after the words before it, in nats. An empty word is the end of the
        text.
        """
        ...


def best_path(log_probabilities: np.ndarray, blank: int) -> list[Spelled]:
    """Returns the characters of the most likely path: the most likely token of each frame, without repetitions and
    blanks.

    Args:
      log_probabilities: log-probabilities of the tokens, [frames, vocab].
      blank: id of the blank.
    """
    found: list[Spelled] = []
    tokens = log_probabilities.argmax(1).tolist() if len(log_probabilities) else []
    last = blank
    for frame, token in enumerate(tokens):
        if token == last and token != blank:
            found[-1] = found[-1]._replace(end=frame + 1)
        elif token != blank:
            found.append(Spelled(token, frame, frame + 1))
        last = token
    return found


@dataclasses.dataclass(eq=False)
class _Prefix:
    """A prefix of an output: a node of a tree, whose parent is the prefix without the last character."""

    parent: "_Prefix | None"
    token: int
    """Last character."""
    start: int
    """Index of the frame at which the last character was first added."""
    words: tuple[str, ...]
    """Complete words."""
    word: str
    """Characters of the last, incomplete word."""
    bonus: float
    """Sum of the weighted log-probabilities of the complete words, and of their bonuses."""
    children: dict[int, "_Prefix"] = dataclasses.field(default_factory=dict)
    blank: float = -math.inf
    """Log-probability of all paths that spell the prefix and end in a blank."""
    spelled: float = -math.inf
    """Log-probability of all paths that spell the prefix and end in its last character."""

    @property
    def total(self) -> float:
        """Log-probability of all paths that spell the prefix, plus the score of its words."""
        return _sum(self.blank, self.spelled) + self.bonus


class BeamSearch:
    """Search over prefixes: at each frame, the prefixes with the highest probability are kept. The probability of a
    prefix is that of all paths that spell it.
    """

    def __init__(
        self,
        search: CtcSearch,
        blank: int,
        delimiter: int,
        spell: Callable[[int], str],
        scorer: WordScorer | None = None,
    ):
        """Creates a search.

        Args:
          search: settings, such as the number of beams.
          blank: id of the blank.
          delimiter: id of the character between two words.
          spell: function that returns the text of a character, given its id.
          scorer: language model of words. If None, prefixes are compared by their own probability.
        """
        self.search, self.blank, self.delimiter, self.spell = search, blank, delimiter, spell
        self.scorer = scorer

    def __call__(self, log_probabilities: np.ndarray) -> list[Spelled]:
        """Returns the characters of the best output that is found.

        Args:
          log_probabilities: log-probabilities of the tokens, [frames, vocab].
        """
        root = _Prefix(None, -1, 0, (), "", 0.0, blank=0.0)
        beams = [root]
        for frame, row in enumerate(log_probabilities):
            tokens = np.flatnonzero(row >= self.search.min_log_probability).tolist() or [int(row.argmax())]
            beams = self._step(beams, frame, [(token, float(row[token])) for token in tokens])
        self._finish(beams)
        best = max(beams, key=lambda beam: beam.total)
        found: list[Spelled] = []
        end = len(log_probabilities)
        while best.parent is not None:
            found.append(Spelled(best.token, best.start, min(end, best.start + 1)))
            end, best = best.start, best.parent
        return found[::-1]

    def _step(self, beams: list[_Prefix], frame: int, tokens: list[tuple[int, float]]) -> list[_Prefix]:
        """Extends all prefixes by one frame. Returns the best ones.

        Args:
          beams: prefixes before the frame.
          frame: index of the frame.
          tokens: pairs of a token that is tried and its log-probability in the frame.
        """
        sums: dict[_Prefix, list[float]] = {}  # Of paths that end in a blank, and of others.
        completed: list[_Prefix] = []
        for beam in beams:
            total = _sum(beam.blank, beam.spelled)
            for token, probability in tokens:
                if token == self.blank:
                    found = sums.setdefault(beam, [-math.inf, -math.inf])
                    found[0] = _sum(found[0], total + probability)
                    continue
                before = total
                if token == beam.token:
                    found = sums.setdefault(beam, [-math.inf, -math.inf])
                    found[1] = _sum(found[1], beam.spelled + probability)
                    before = beam.blank
                if before == -math.inf:
                    continue
                child = beam.children.get(token)
                if child is None:
                    child = self._extended(beam, token, frame)
                    if token == self.delimiter and beam.word:
                        completed.append(child)
                found = sums.setdefault(child, [-math.inf, -math.inf])
                found[1] = _sum(found[1], before + probability)
        self._score(completed)
        for beam, (blank, spelled) in sums.items():
            beam.blank, beam.spelled = blank, spelled
        kept = sorted(sums, key=lambda beam: -beam.total)[: self.search.num_beams]
        for beam in sums.keys() - set(kept):  # It may be reached again later, from its parent.
            beam.blank = beam.spelled = -math.inf
        return kept

    def _extended(self, beam: _Prefix, token: int, frame: int) -> _Prefix:
        if token == self.delimiter:
            words = (*beam.words, beam.word) if beam.word else beam.words
            child = _Prefix(beam, token, frame, words, "", beam.bonus)
        else:
            child = _Prefix(beam, token, frame, beam.words, beam.word + self.spell(token), beam.bonus)
        beam.children[token] = child
        return child

    def _score(self, completed: Sequence[_Prefix]) -> None:
        """Adds the scores of the last words of prefixes that have just been completed to their bonuses."""
        if self.scorer is None or not completed:
            return
        scores = self.scorer.scores([(prefix.words[:-1], prefix.words[-1]) for prefix in completed])
        for prefix, score in zip(completed, scores, strict=True):
            prefix.bonus += self.search.lm_weight * score + self.search.word_bonus

    def _finish(self, beams: Sequence[_Prefix]) -> None:
        """Adds the scores of the incomplete words of prefixes, and of the end of the text, to their bonuses."""
        if self.scorer is None:
            return
        written = [beam for beam in beams if beam.word]
        last = [(beam.words, beam.word) for beam in written]
        ends = [((*beam.words, beam.word) if beam.word else beam.words, "") for beam in beams]
        scores = self.scorer.scores([*last, *ends])
        for beam, score in zip(written, scores, strict=False):
            beam.bonus += self.search.lm_weight * score + self.search.word_bonus
        for beam, score in zip(beams, scores[len(last) :], strict=True):
            beam.bonus += self.search.lm_weight * score


def _sum(one: float, other: float) -> float:
    """Returns the logarithm of the sum of two numbers, given their logarithms."""
    if one < other:
        one, other = other, one
    return one if other == -math.inf else one + math.log1p(math.exp(other - one))
