"""Answers spoken questions with a chain of runs: one transcribes the question, one answers the text, and one speaks the
answer. With a translator as the second run, the chain translates speech.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from jaxformer import html_page
from jaxformer.data.fields.sound import wav
from jaxformer.data.sources.sounds import SoundLike, name_of
from jaxformer.data.tasks.speaking import CLAUSE_END
from jaxformer.data.transforms.utterances import Utterances
from jaxformer.errors import InputError
from jaxformer.predictors.base import PAGES, Answer, Replies, Searches, Speaks, Transcribes
from jaxformer.predictors.speech import SOUNDS, Speech, joined
from jaxformer.predictors.speech_page import SCRIPT, STYLE, figure

SPOKEN = (".wav", *SOUNDS)
"""File name extensions of sounds to which an answer can be saved."""
_WORD = re.compile(r"\w")


class Member(Protocol):
    """A run, as `open_run` returns it."""

    @property
    def folder(self) -> Any:
        """Path of the run's folder, for messages."""
        ...

    @property
    def model(self) -> Any:
        """Model of the run."""
        ...

    @property
    def predictor(self) -> Any:
        """Predictor of the run. Its interfaces, such as `Speaks`, show what the run can do."""
        ...

    def predict(self, text: Any) -> Any:
        """Answers each element of a sequence of requests."""
        ...

    def reply(self, text: str) -> Iterator[str]:
        """Yields the answer to a text in parts, without the text."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Piece:
    """A part of a conversation, which is available as soon as it is computed."""

    kind: Literal["heard", "said", "speech"]
    """Kind of the part: the question (`heard`), the next part of the text of the answer (`said`), or the speech of the
    next clause of the answer (`speech`).
    """
    text: str
    """Text that was heard, said or spoken."""
    speech: Speech | None = None
    """Speech of the text. None unless `kind` is `speech`."""


@dataclasses.dataclass(frozen=True, eq=False)
class SpokenAnswer(Answer):
    """A spoken question and the answer to it, as text and as speech."""

    display_fields: ClassVar[tuple[str, ...]] = ("speech",)

    path: str
    """Path of the sound file with the question. For a sound in memory, a name for messages."""
    heard: str
    """Transcript of the question."""
    text: str
    """Text of the answer."""
    seconds: float
    """Length of the spoken answer in seconds. 0 if it is not spoken."""
    speech: Speech | None = None
    """The spoken answer. None if the assistant does not speak."""

    def __str__(self) -> str:
        return f"{self.heard}\n  {self.text}"

    def save(self, path: Path) -> None:
        """Writes the answer to a file, in the format of its extension: the speech for .wav, .flac and .ogg, a page with
        a player for .html, the text for .txt, and question and answer as JSON for .json.

        Raises:
          InputError: If the extension is none of these, or the answer is not spoken and the file is a sound.
        """
        kind = path.suffix.lower()
        if kind in SPOKEN:
            if self.speech is None:
                raise InputError(f"--out {path}: the answer is not spoken; set --speak, or a path that ends in .txt")
            self.speech.save(path)
        elif kind in PAGES:
            path.write_text(_page([self]), encoding="utf-8")
        elif kind == ".txt":
            path.write_text(f"{self.text}\n", encoding="utf-8")
        elif kind == ".json":
            super().save(path)
        else:
            raise InputError(f"--out {path}: expected a path that ends in .wav, .flac, .ogg, .html, .txt or .json")

    @classmethod
    def save_all(cls, answers: Sequence[Answer], path: Path) -> None:
        """Writes several answers to a page or a JSON file if the path has such an extension. Otherwise, writes a folder
        with a WAV file for each answer that is spoken, and `answers.json`.

        Raises:
          InputError: If the path has another extension.
        """
        kind, found = path.suffix.lower(), [answer for answer in answers if isinstance(answer, SpokenAnswer)]
        if kind in PAGES:
            path.write_text(_page(found), encoding="utf-8")
        elif kind == ".json":
            super().save_all(answers, path)
        elif kind:
            raise InputError(f"--out {path}: {len(answers)} questions; expected a folder, or a .html or .json file")
        else:
            path.mkdir(parents=True, exist_ok=True)
            for number, answer in enumerate(found, 1):
                if answer.speech is not None:
                    answer.speech.save(path / f"{number}.wav")
            super().save_all(answers, path / "answers.json")

    def _repr_html_(self) -> str:
        answer = f"<p>{html_page.escape(self.text)}</p>" if self.speech is None else figure(self.speech)
        return f"<p><strong>{html_page.escape(self.heard)}</strong></p>\n{answer}"


@dataclasses.dataclass(frozen=True, eq=False)
class Assistant:
    """Answers spoken questions. In Python:

        assistant = jf.Assistant(jf.open_run("whisper"), jf.open_run("dialogue"), jf.open_run("speech"))
        assistant.answer("question.wav").save(Path("answer.wav"))

    `stream` yields parts of an answer as soon as they are computed, and `converse` answers questions from a
    microphone.
    """

    listen: Member
    """Run that transcribes sounds: a Whisper, or a recognizer with CTC."""
    think: Member
    """Run that answers texts with texts: a dialogue model, an encoder–decoder, such as a translator, or a classifier,
    which answers with a label.
    """
    speak: Member | None = None
    """Run that speaks texts, such as a FastSpeech 2. If None, answers are texts."""
    replies: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Maps each label of a classifier to the text to say. If empty, the label is said."""

    def __post_init__(self):
        _check("listen", self.listen, (Transcribes, Searches), "transcribes no sounds")
        _check("think", self.think, (Replies,), "does not answer texts with texts")
        if self.speak is not None:
            _check("speak", self.speak, (Speaks,), "does not speak")
        if not self.replies:
            return
        labels = getattr(self.think.model, "labels", None)
        if labels is None:
            raise InputError(f"replies: think={self.think.folder} has no labels; leave them out")
        for label in labels:
            if label not in self.replies:
                raise InputError(f"replies: none for the label {label!r}; expected one for each of {', '.join(labels)}")

    def answer(self, question: SoundLike) -> SpokenAnswer:
        """Answers a question, which is the path of a sound file, its content as bytes, or samples.

        Raises:
          InputError: If the question cannot be decoded, no words are recognized in it, or the answer is empty.
        """
        return collected(name_of(question, "the question"), list(self.stream(question)))

    def stream(self, question: SoundLike) -> Iterator[Piece]:
        """Answers a question, and yields the parts of the answer as soon as they are computed: the question, the
        text of the answer in parts, and the speech of each of its clauses as soon as the clause is complete.

        Raises:
          InputError: If the question cannot be decoded, or no words are recognized in it.
        """
        heard = self._heard(question)
        if not heard:
            raise InputError(f"{name_of(question, 'the question')}: no words were recognized in it")
        yield from self._answered(heard)

    def converse(
        self, chunks: Iterable[np.ndarray], rate: int, utterances: Utterances = Utterances()
    ) -> Iterator[Piece]:
        """Answers the questions in a stream of sound, such as that of a microphone, each as soon as a pause follows.
        Sounds without words are ignored.

        Args:
          chunks: parts of the stream in order, floats from -1 to 1, [samples] each.
          rate: number of samples per second.
          utterances: divides the stream at pauses.
        """
        for utterance in utterances(chunks, rate):
            if heard := self._heard(wav(utterance, rate)):
                yield from self._answered(heard)

    def _heard(self, question: SoundLike) -> str:
        (transcript,) = self.listen.predict([question])
        return transcript.text.strip()

    def _answered(self, heard: str) -> Iterator[Piece]:
        yield Piece("heard", heard)
        rest = ""
        for text in self._said(heard):
            yield Piece("said", text)
            *clauses, rest = CLAUSE_END.split(rest + text)
            for clause in clauses:
                yield from self._spoken(clause.strip())
        yield from self._spoken(rest.strip())

    def _said(self, heard: str) -> Iterator[str]:
        if not self.replies:
            yield from self.think.reply(heard)
            return
        yield self.replies["".join(self.think.reply(heard))]

    def _spoken(self, clause: str) -> Iterator[Piece]:
        if self.speak is not None and _WORD.search(clause):
            (speech,) = self.speak.predict([clause])
            yield Piece("speech", clause, speech)


def collected(path: str, pieces: Sequence[Piece]) -> SpokenAnswer:
    """Returns the answer that consists of the pieces that `Assistant.stream` has yielded for a question.

    Args:
      path: path of the question, or its name in messages.
      pieces: all pieces.

    Raises:
      InputError: If the answer has no words.
    """
    heard = pieces[0].text
    text = "".join(piece.text for piece in pieces if piece.kind == "said").strip()
    if not _WORD.search(text):
        raise InputError(f"{path}: the answer to {heard[:40]!r} has no words")
    spoken = [piece.speech for piece in pieces if piece.speech is not None]
    speech = joined(text, spoken) if spoken else None
    return SpokenAnswer(path, heard, text, 0.0 if speech is None else speech.seconds, speech)


def _page(answers: Sequence[SpokenAnswer]) -> str:
    title = answers[0].heard[:60] if answers else "Answers"
    return html_page.page(title, "\n".join(answer._repr_html_() for answer in answers), STYLE, SCRIPT)


def _check(role: str, run: Member, interfaces: tuple[type, ...], problem: str) -> None:
    """Raises InputError if the predictor of a run has none of the interfaces that its role needs."""
    predictor = run.predictor
    if not isinstance(predictor, interfaces):
        raise InputError(f"{role}={run.folder}: {type(run.model).__name__} {problem}")
