"""Tasks of speech synthesis: texts, or their phonemes, and the speech that a model learns to speak."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxformer.data.examples import Example, Feature, Visit
from jaxformer.data.fields.phonemes import PhonemeField, TimedPhonemes
from jaxformer.data.fields.spectrogram import SpectrogramField
from jaxformer.data.sources import columns
from jaxformer.data.tasks.composed import FieldTask, FieldValues
from jaxformer.data.tokenizers import Tokenizer
from jaxformer.data.transforms.log_mel import LogMel
from jaxformer.data.transforms.pitch import averaged, pitch
from jaxformer.errors import InputError

QUIET = 1e-3
"""Minimum amplitude of a frame, for the energy of phonemes. The energy of silence would otherwise have no lower bound.
"""
_PHONEMES = re.compile(r"/([^/]*)/")
CLAUSE_END = re.compile(r"(?<=[.!?;:])\s+")
"""Matches the space after a clause. Models speak one clause at a time."""


@dataclasses.dataclass(frozen=True, eq=False)
class PreparedText:
    """A text that a model is asked to speak."""

    text: str
    """The text."""
    log_mel: LogMel
    """Settings of the spectrograms that the model has learned."""
    parts: tuple[tuple[str, ...], ...] = ()
    """Phonemes of each part of the text, in the order of the text. Empty for models that read letters."""


@dataclasses.dataclass(frozen=True)
class SpokenPhonemes(FieldTask):
    """Task of parallel speech synthesis: phonemes with their durations, pitch and energy, and the spectrogram of their
    speech (Ren et al. 2021, §2.2). Pitch and energy are averages over the frames of each phoneme (Łańcucki 2021).

    A batch is a dict of arrays: `spectrogram` float32 [batch, frames, mels] and `frame_mask` uint8 [batch, frames], 1
    for frames of the speech; `tokens` int32, `durations` int32 (numbers of frames), `pitch` float32 (octaves, see
    `transforms.pitch`) and `energy` float32 (log10 of amplitudes), all [batch, length]; and `segments`, 1 at phonemes.
    """

    audio: SpectrogramField = SpectrogramField()
    """Settings for reading sounds: the column, the length, and the log-mel spectrogram."""
    phonemes: PhonemeField = PhonemeField()
    """Settings for reading phonemes: the columns and the length."""
    text: str = "text"
    """Name of the column with the text, which suggests a text for `predict`. Not used for training."""
    voice: str = "en-us"
    """Voice of espeak-ng with which `predict` converts texts to phonemes: the one that read the training data."""

    @functools.cached_property
    def row(self) -> dict[str, Feature]:
        length = self.phonemes.length
        numbers = {"durations": "int32", "pitch": "float32", "energy": "float32"}
        found = self.audio.features() | self.phonemes.features()
        return found | {name: Feature(length, dtype) for name, dtype in numbers.items()}

    def encode(self, example: Mapping[str, Any], tokenizer: Tokenizer | None) -> FieldValues:
        found = super().encode(example, tokenizer)
        if found.values is None:
            return found
        arrays = self._arrays(found.values["audio"].samples, found.values["phonemes"])
        return FieldValues(arrays, sum(array.size for array in arrays.values()))

    def _arrays(self, samples: np.ndarray, phonemes: TimedPhonemes) -> Example:
        """Computes the arrays of a document, without padding."""
        arrays, settings = self.audio.arrays(samples), self.audio.log_mel
        durations = phonemes.durations(settings, len(arrays["spectrogram"]))
        energy = np.log10(np.maximum(np.linalg.norm(10.0 ** arrays["spectrogram"], axis=1), QUIET))
        return arrays | {
            "tokens": phonemes.ids,
            "durations": durations,
            "pitch": averaged(pitch(samples, settings), durations),
            "energy": averaged(energy, durations),
        }

    def _example(self, values: Mapping[str, Any], visit: Visit[FieldValues]) -> Example:
        del visit
        return dict(values)

    def requests(self, example: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
        del folder
        return (columns.first_words(example[self.text]),) if isinstance(example.get(self.text), str) else ()

    def prepare_requests(self, requests: Sequence[str]) -> list[PreparedText]:
        """Converts texts to phonemes with espeak-ng. A text between slashes is a sequence of phonemes with spaces
        between them, such as `/h ə l oʊ/`.

        Raises:
          InputError: If a text is empty, or espeak-ng is not installed.
        """
        found = []
        for number, text in enumerate(requests, 1):
            if given := _PHONEMES.fullmatch(text.strip()):
                parts = (tuple(given[1].split()),)
            else:
                clauses = filter(None, CLAUSE_END.split(text.strip()))
                parts = tuple(_pronounced(clause, self.voice) for clause in clauses)
            if not any(map(any, parts)):
                raise InputError(f"text {number}, {text[:40]!r}: has no words to speak")
            found.append(PreparedText(text, self.audio.log_mel, tuple(filter(None, parts))))
        return found


def _pronounced(text: str, voice: str) -> tuple[str, ...]:
    """Returns the phonemes of a text, as a voice of espeak-ng speaks it."""
    from jaxformer.datasets import espeak

    return espeak.speaker().speak(text, voice).phonemes
