"""Transcripts: the answers of a speech recognizer, which are printed as text and saved as subtitles, text or JSON."""

import abc
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jaxformer.errors import InputError
from jaxformer.predictors.base import Answer
from jaxformer.predictors.subtitles import TimedWords, srt, vtt

FORMATS = {".srt": srt, ".vtt": vtt}
"""Maps the file name extension of each subtitle format to a function that formats the subtitles of a transcript."""
MAX_PAUSE, MAX_SUBTITLE = 0.6, 60
"""Maximum pause in seconds between two words of a `Phrase`, and its maximum number of characters."""


@dataclasses.dataclass(frozen=True)
class Word:
    """A word of a transcript."""

    text: str
    """The word, with the space before it."""
    start: float
    """Time at which the word starts, in seconds from the start of the sound."""
    end: float
    """Time at which the word ends, in seconds from the start of the sound."""


@dataclasses.dataclass(frozen=True)
class Segment:
    """Part of a transcript between two timestamps."""

    start: float
    """Time at which the segment starts, in seconds from the start of the sound."""
    end: float
    """Time at which the segment ends, in seconds from the start of the sound."""
    text: str
    """Transcribed text of the segment."""
    words: tuple[Word, ...]
    """Words of the segment with their times. Empty if the times of words were not requested."""
    temperature: float
    """Sampling temperature at which the model decoded the window of sound that contains the segment. 0 for greedy
    decoding or beam search.
    """
    mean_log_probability: float
    """Mean log-probability in nats of the tokens of the window of sound that contains the segment."""
    compression_ratio: float
    """Size in bytes of the text before compression, divided by its size after compression, for the window of sound that
    contains the segment. Repetitive text has a high ratio.
    """
    no_speech: float
    """Probability, according to the model, that the window of sound that contains the segment has no speech."""


@dataclasses.dataclass(frozen=True)
class Phrase:
    """Words of a transcript that a subtitle shows together."""

    words: tuple[Word, ...]
    """Words with their times."""

    @property
    def start(self) -> float:
        """Time at which the first word starts, in seconds from the start of the sound."""
        return self.words[0].start

    @property
    def end(self) -> float:
        """Time at which the last word ends, in seconds from the start of the sound."""
        return self.words[-1].end

    @property
    def text(self) -> str:
        """Text of the words."""
        return "".join(word.text for word in self.words).strip()


def phrases(words: Sequence[Word]) -> Iterator[Phrase]:
    """Divides the words of a transcript into phrases. A phrase ends at a pause longer than `MAX_PAUSE`, or before a
    word with which it would be longer than `MAX_SUBTITLE`.
    """
    some: list[Word] = []
    for word in words:
        length = sum(len(one.text) for one in some)
        if some and (word.start - some[-1].end > MAX_PAUSE or length + len(word.text) > MAX_SUBTITLE):
            yield Phrase(tuple(some))
            some = []
        some.append(word)
    if some:
        yield Phrase(tuple(some))


class SpeechAnswer(Answer):
    """Base class of transcripts: a sound and its transcribed text."""

    text: str
    """Transcribed text of the whole sound."""

    @property
    @abc.abstractmethod
    def subtitles(self) -> Sequence[TimedWords]:
        """Parts of the transcript that are shown one after the other as subtitles."""

    def __str__(self) -> str:
        return self.text

    def save(self, path: Path) -> None:
        """Writes the transcript to a file, in the format of its extension: subtitles for .srt and .vtt, the plain text
        for .txt, and JSON for any other.
        """
        kind = path.suffix.lower()
        if kind in FORMATS:
            path.write_text(FORMATS[kind](self.subtitles), encoding="utf-8")
        elif kind == ".txt":
            path.write_text(self.text + "\n", encoding="utf-8")
        else:
            super().save(path)

    @classmethod
    def save_all(cls, answers: Sequence[Answer], path: Path) -> None:
        """Writes several transcripts to one JSON file.

        Raises:
          InputError: If the extension of `path` is .srt, .vtt or .txt, because such a file contains only one
            transcript.
        """
        if path.suffix.lower() in (*FORMATS, ".txt"):
            raise InputError(f"--out {path}: {len(answers)} sounds; expected one, or a path that ends in .json")
        super().save_all(answers, path)


@dataclasses.dataclass(frozen=True)
class Transcript(SpeechAnswer):
    """A sound and its transcribed text."""

    path: str
    """Path of the sound file."""
    text: str
    """Transcribed text of the whole sound: the texts of all segments, joined by spaces."""
    language: str
    """Code of the spoken language, such as `en`. Empty if the model only transcribes English."""
    seconds: float
    """Length of the sound in seconds."""
    segments: tuple[Segment, ...]
    """Segments of the transcript in order, each with its text and times."""

    @property
    def subtitles(self) -> tuple[Segment, ...]:
        """Segments of the transcript."""
        return self.segments

    def to_json(self) -> dict[str, Any]:
        """Converts the transcript to JSON values. A segment has the key `words` only if the times of its words are
        known.
        """
        segments = [dataclasses.asdict(segment) for segment in self.segments]
        for segment in segments:
            if not segment["words"]:
                del segment["words"]
        plain = {"path": self.path, "text": self.text, "language": self.language, "seconds": self.seconds}
        return plain | {"segments": segments}


@dataclasses.dataclass(frozen=True)
class SpelledTranscript(SpeechAnswer):
    """A sound and the text that a recognizer with CTC spells for it."""

    path: str
    """Path of the sound file."""
    text: str
    """Transcribed text of the whole sound."""
    seconds: float
    """Length of the sound in seconds."""
    words: tuple[Word, ...]
    """Words of the text with their times."""

    @property
    def subtitles(self) -> tuple[Phrase, ...]:
        """Phrases of the text."""
        return tuple(phrases(self.words))

    def to_json(self) -> dict[str, Any]:
        """Converts the transcript to JSON values."""
        return dataclasses.asdict(self)
