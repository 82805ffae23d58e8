"""Speech: the answers of models that speak, which are saved as sound files, or as a page with a player."""

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from jaxformer.data.fields.sound import wav
from jaxformer.errors import InputError
from jaxformer.predictors.base import PAGES, Answer
from jaxformer.predictors.speech_page import figure, page

SOUNDS = {".flac": "FLAC", ".ogg": "OGG"}
"""Maps file name extensions of sounds, except .wav, to their formats in libsndfile."""


@dataclasses.dataclass(frozen=True)
class Mark:
    """A part of speech, such as a phoneme, with its time."""

    text: str
    """The part in writing."""
    start: float
    """Time at which the part starts, in seconds from the start of the speech."""
    end: float
    """Time at which the part ends, in seconds from the start of the speech."""


@dataclasses.dataclass(frozen=True, eq=False)
class Speech(Answer):
    """A text and the speech of it."""

    display_fields: ClassVar[tuple[str, ...]] = ("samples", "log_mel")

    text: str
    """The text that is spoken."""
    seconds: float
    """Length of the speech in seconds."""
    rate: int
    """Sampling rate in samples per second."""
    samples: np.ndarray
    """Samples from about -1 to 1, float32 [samples]."""
    log_mel: np.ndarray
    """Log-mel spectrogram that the model has predicted, float32 [frames, mels]."""
    marks: tuple[Mark, ...] = ()
    """Parts of the speech in order, each with its time. Empty if the model predicts no times."""

    def __str__(self) -> str:
        return f"{self.text}: {self.seconds:.1f} seconds of speech; --out speech.wav saves it"

    def to_json(self) -> dict[str, Any]:
        """Converts the answer to a dict that can be written as JSON, without the samples."""
        plain = {"text": self.text, "seconds": self.seconds, "rate": self.rate}
        return plain | {"marks": [dataclasses.asdict(mark) for mark in self.marks]}

    def save(self, path: Path) -> None:
        """Writes the speech to a file, in the format of its extension: a sound for .wav, .flac and .ogg, a page with
        waveform, spectrogram, times and a player for .html, and JSON without the sound for .json.

        Raises:
          InputError: If the extension is none of these.
        """
        kind = path.suffix.lower()
        if kind == ".wav":
            path.write_bytes(wav(self.samples, self.rate))
        elif kind in SOUNDS:
            import soundfile

            with io.BytesIO() as file:
                soundfile.write(file, np.clip(self.samples, -1, 1), self.rate, format=SOUNDS[kind])
                path.write_bytes(file.getvalue())
        elif kind in PAGES:
            path.write_text(page([self]), encoding="utf-8")
        elif kind == ".json":
            super().save(path)
        else:
            raise InputError(f"--out {path}: expected a path that ends in .wav, .flac, .ogg, .html or .json")

    @classmethod
    def save_all(cls, answers: Sequence[Answer], path: Path) -> None:
        """Writes several answers to a page or a JSON file if the path has such an extension. Otherwise, writes a folder
        with a WAV file per answer and `answers.json`.

        Raises:
          InputError: If the path has the extension of a sound file, which contains only one answer.
        """
        found = [answer for answer in answers if isinstance(answer, Speech)]
        if path.suffix.lower() in PAGES:
            path.write_text(page(found), encoding="utf-8")
        elif path.suffix.lower() == ".json":
            super().save_all(answers, path)
        elif path.suffix:
            raise InputError(
                f"--out {path}: {len(answers)} texts; expected one, a folder, or a path that ends in .html"
            )
        else:
            path.mkdir(parents=True, exist_ok=True)
            for number, answer in enumerate(found, 1):
                answer.save(path / f"{number}.wav")
            super().save_all(answers, path / "answers.json")

    def _repr_html_(self) -> str:
        return figure(self)


def joined(text: str, parts: Sequence[Speech]) -> Speech:
    """Joins the speech of the parts of a text. `parts` has at least one element."""
    marks, seconds = [], 0.0
    for part in parts:
        marks += [Mark(mark.text, seconds + mark.start, seconds + mark.end) for mark in part.marks]
        seconds += part.seconds
    samples, log_mel = (np.concatenate([getattr(part, name) for part in parts]) for name in ("samples", "log_mel"))
    return Speech(text, seconds, parts[0].rate, samples, log_mel, tuple(marks))
