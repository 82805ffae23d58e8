"""Transcribes speech in sounds of any length, using models that spell what they hear (CTC)."""

import dataclasses
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.data.fields.sound import PreparedSound
from jaxformer.data.tokenizers.characters import CharacterTokenizer
from jaxformer.decoding.ctc import BeamSearch, CtcSearch, Spelled, WordScorer, best_path
from jaxformer.decoding.ngrams import Ngrams
from jaxformer.errors import InputError
from jaxformer.models.wav2vec2 import Wav2Vec2Ctc
from jaxformer.predictors.base import Predictor, ScoresContinuations, Searches
from jaxformer.predictors.transcripts import SpelledTranscript, Word

ROWS = 8
"""Maximum number of windows that are encoded together."""
BUCKET = 2
"""Padded lengths of windows are multiples of this number of seconds, so that few programs are compiled."""
MAX_EXAMPLES = 3
"""Maximum number of held-out sounds that `demonstrate` transcribes."""


def check_blank(model: Wav2Vec2Ctc, tokenizer: Any) -> None:
    """Raises InputError if the blank of CTC is not the padding token of the tokenizer."""
    if tokenizer.pad_id != model.blank:
        raise InputError(
            f"model.blank={model.blank}: expected the id of the tokenizer's padding token, {tokenizer.pad_id}"
        )


class _Window(NamedTuple):
    """A part of a sound that the model reads at once."""

    sound: int
    """Index of the sound."""
    start: int
    """Index of the first sample."""
    stop: int
    """Index after the last sample."""
    first: int
    """Index of the first frame of the window that is used."""
    last: int
    """Index after the last frame of the window that is used."""


@dataclasses.dataclass(frozen=True, eq=False)
class Speller(Predictor[Wav2Vec2Ctc], Searches):
    """Transcribes sounds, using a speech recognizer with CTC. Its output for a sound does not depend on the sounds that
    are transcribed together with it.
    """

    search: CtcSearch
    """Settings of decoding, such as the number of beams."""
    scorer: WordScorer | None = None
    """Language model of words. If None, the n-gram file that `search` names, if any."""

    def with_language_model(self, predictor: ScoresContinuations) -> "Speller":
        """Returns a copy that uses a language model which scores continuations of texts."""
        return dataclasses.replace(self, scorer=ContinuationScorer(predictor))

    def encode(self, sounds: Sequence[PreparedSound]) -> dict[str, np.ndarray]:
        """Converts sounds to the arguments of the model: `samples` float32 and `sample_mask` uint8 [sounds, samples],
        both padded with zeros to the length of the longest sound.
        """
        return _stacked([sound.samples for sound in sounds], self.model.framing.window)

    def predict(self, sounds: Sequence[PreparedSound]) -> list[SpelledTranscript]:
        """Transcribes each sound.

        Raises:
          InputError: If the language model cannot be read.
        """
        decode = self._decoder()
        rate = sounds[0].rate if sounds else 1
        parts = self.log_probabilities([sound.samples for sound in sounds], rate)
        return [self._answer(sound, decode(part)) for sound, part in zip(sounds, parts, strict=True)]

    def log_probabilities(self, waveforms: Sequence[np.ndarray], rate: int = 16_000) -> list[np.ndarray]:
        """Computes the log-probabilities of the characters and the blank for each frame of each waveform, float32
        [frames, vocab].

        Args:
          waveforms: normalized samples, [samples] each.
          rate: number of samples per second.
        """
        numbered = enumerate(waveforms)
        windows = [window for number, samples in numbered for window in self._windows(number, len(samples), rate)]
        windows.sort(key=lambda window: window.stop - window.start)
        parts: dict[_Window, np.ndarray] = {}
        for start in range(0, len(windows), ROWS):
            some = windows[start : start + ROWS]
            given = [waveforms[window.sound][window.start : window.stop] for window in some]
            batch = _stacked(given, self.model.framing.window, BUCKET * rate, ROWS if len(windows) > 1 else 1)
            computed = np.asarray(_log_probabilities(self._independent, self.params, **batch))
            for window, row in zip(some, computed, strict=False):
                parts[window] = row[window.first : window.last]
        empty = np.zeros((0, self.model.output_vocab or 0), np.float32)
        found: list[list[np.ndarray]] = [[empty] for _ in waveforms]
        for window in sorted(windows):
            found[window.sound].append(parts[window])
        return [np.concatenate(rows) for rows in found]

    def demonstrate(self, batch: Mapping[str, np.ndarray]) -> list[str]:
        """Transcribes the first sounds of a held-out batch. Returns the reference and the output of each sound on two
        lines.
        """
        decode, lines = self._decoder(), []
        rows = np.flatnonzero(batch["weights"].max(1))[:MAX_EXAMPLES]
        waveforms = [batch["samples"][row][batch["sample_mask"][row] > 0] for row in rows]
        for row, part in zip(rows, self.log_probabilities(waveforms), strict=True):
            targets = batch["targets"][row][batch["weights"][row] > 0]
            output = self.tokenizer.decode([one.token for one in decode(part)])
            lines += [f"reference: {self.tokenizer.decode(targets)}", f"  output:  {output}"]
        return lines

    @property
    def _independent(self) -> Wav2Vec2Ctc:
        """The model with norms that leave out padding, so that sounds of different lengths can be padded."""
        return dataclasses.replace(self.model, masked_statistics=True)

    def _windows(self, number: int, length: int, rate: int) -> list[_Window]:
        """Divides sound `number`, of `length` samples, into windows, which overlap."""
        framing = self.model.framing
        hop, total = framing.hop, framing.frames(length)
        if total < 1:
            return []
        size = max(1, round(self.search.window * rate) // hop)  # In frames.
        margin = round(self.search.overlap * rate) // hop
        if total <= size:
            return [_Window(number, 0, length, 0, total)]
        found, first = [], 0
        while first < total:
            start = max(0, first - margin)
            end = min(total, start + size)
            last = total if end == total else end - margin
            stop = start * hop + framing.samples(end - start)
            found.append(_Window(number, start * hop, stop, first - start, last - start))
            first = last
        return found

    def _decoder(self):
        """Returns the function that decodes log-probabilities [frames, vocab] to characters."""
        check_blank(self.model, self.tokenizer)
        if self.search.num_beams == 1:
            return functools.partial(best_path, blank=self.model.blank)
        vocabulary: CharacterTokenizer = self.tokenizer
        scorer, path = self.scorer, self.search.language_model
        if scorer is None and path:
            if os.path.isdir(os.path.expanduser(path)):
                raise InputError(
                    f"objective.search.language_model={path}: expected an n-gram file; only `predict` reads a run"
                )
            scorer = Ngrams.read(os.path.expanduser(path))
        return BeamSearch(self.search, self.model.blank, vocabulary.delimiter_id, self._spell, scorer)

    def _spell(self, token: int) -> str:
        return self.tokenizer.decode([token])

    def _answer(self, sound: PreparedSound, spelled: Sequence[Spelled]) -> SpelledTranscript:
        text = self.tokenizer.decode([one.token for one in spelled])
        seconds = len(sound.samples) / sound.rate
        return SpelledTranscript(sound.path, text, seconds, tuple(self._words(spelled, sound.rate, seconds)))

    def _words(self, spelled: Sequence[Spelled], rate: int, seconds: float) -> Iterator[Word]:
        """Yields the words of an output with their times. All but the first begin with a space."""
        some: list[Spelled] = []
        count, step = 0, self.model.framing.hop / rate
        for one in [*spelled, None]:
            if one is not None and one.token != self.tokenizer.delimiter_id:
                some.append(one)
                continue
            if text := self.tokenizer.decode([part.token for part in some]):
                start, end = some[0].start * step, min(seconds, some[-1].end * step)
                yield Word(" " * bool(count) + text, round(start, 3), round(end, 3))
                count += 1
            some = []


@dataclasses.dataclass(frozen=True, eq=False)
class ContinuationScorer:
    """A language model of words that scores them as continuations of texts."""

    predictor: ScoresContinuations
    """Scores continuations, such as the predictor of a GPT."""

    def scores(self, words: Sequence[tuple[tuple[str, ...], str]]) -> list[float]:
        """Returns the log-probability of each word after the words before it, in nats. The end of a text has 0."""
        asked = [(number, " ".join(history), word) for number, (history, word) in enumerate(words) if word]
        found = [0.0] * len(words)
        if asked:
            scores = self.predictor.log_likelihoods([text for _, text, _ in asked], [f" {word}" for *_, word in asked])
            for (number, *_), score in zip(asked, scores, strict=True):
                found[number] = score.log_probability
        return found


def _stacked(waveforms: Sequence[np.ndarray], least: int, multiple: int = 1, rows: int = 1) -> dict[str, np.ndarray]:
    """Stacks waveforms to the arguments of the model, `samples` and `sample_mask` [rows, samples].

    Args:
      waveforms: samples, [samples] each.
      least: smallest number of samples of a row.
      multiple: number that divides the number of samples of a row.
      rows: minimum number of rows. Further rows are padding.
    """
    longest = max(least, *(len(samples) for samples in waveforms))
    shape = (max(rows, len(waveforms)), -(-longest // multiple) * multiple)
    samples, mask = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
    for row, waveform in enumerate(waveforms):
        samples[row, : len(waveform)] = waveform
        mask[row, : len(waveform)] = 1
    return {"samples": samples, "sample_mask": mask}


@functools.partial(jax.jit, static_argnums=0)
def _log_probabilities(model: Wav2Vec2Ctc, params: Any, samples: jax.Array, sample_mask: jax.Array) -> jax.Array:
    logits = model.apply({"params": params}, samples, sample_mask).logits
    return jax.nn.log_softmax(logits).astype(jnp.float32)
