"""Spoken questions are answered by a chain of runs, clause by clause."""

import json
import types

import numpy as np
import pytest
import small_whisper
from small_whisper import RATE

from jaxformer.data.fields.sound import wav
from jaxformer.errors import InputError
from jaxformer.predictors.assistant import Assistant, Piece, SpokenAnswer, collected
from jaxformer.predictors.base import Replies, Speaks, Transcribes
from jaxformer.predictors.speech import Speech


class Role(Transcribes):
    """A predictor without a model."""


class Thinks(Replies):
    def reply(self, request):
        yield from ()


class Talks(Speaks):
    def with_vocoder(self, model, params):
        return self


class Stub:
    """A run that hears the text of a sound's content, answers with given pieces, or speaks one sample per character."""

    def __init__(self, predictor, answers=(), labels=None):
        self.folder, self.predictor, self.answers = "runs/stub", predictor, answers
        self.model = types.SimpleNamespace(labels=labels) if labels else object()

    def predict(self, requests):
        if isinstance(self.predictor, Talks):
            return [speech(text) for text in requests]
        return [types.SimpleNamespace(text=f" {self.answers} ") for _ in requests]

    def reply(self, text):
        yield from self.answers


def speech(text):
    return Speech(text, len(text) / RATE, RATE, np.full(len(text), 0.5, np.float32), np.zeros((1, 2), np.float32))


HEARD, SPEAK = Stub(Role(), "what is it?"), Stub(Talks())
SAYS = Stub(Thinks(), ("Yes.",))
LABELS = ("yes", "no")


def test_clauses_are_spoken_as_soon_as_they_are_complete():
    think = Stub(Thinks(), ("It is", " one. It", " is two! And", " 3"))
    pieces = list(Assistant(HEARD, think, SPEAK).stream("question.wav"))
    assert [(piece.kind, piece.text) for piece in pieces] == [
        ("heard", "what is it?"),
        ("said", "It is"),
        ("said", " one. It"),
        ("speech", "It is one."),
        ("said", " is two! And"),
        ("speech", "It is two!"),
        ("said", " 3"),
        ("speech", "And 3"),
    ]
    answer = collected("question.wav", pieces)
    assert answer.text == "It is one. It is two! And 3" and len(answer.speech.samples) == 10 + 10 + 5
    assert answer.seconds == pytest.approx(25 / RATE) and str(answer).startswith("what is it?\n  It is one.")


def test_a_classifier_answers_with_a_reply_for_its_label():
    think = Stub(Thinks(), ("time",), labels=("time", "place"))
    chain = Assistant(HEARD, think, replies={"time": "It is noon.", "place": "Here."})
    answer = chain.answer(np.zeros(3, np.float32))
    assert (answer.path, answer.heard, answer.text) == ("the question", "what is it?", "It is noon.")
    assert answer.speech is None and answer.seconds == 0
    with pytest.raises(InputError, match="replies: none for the label 'place'; expected one for each of time, place"):
        Assistant(HEARD, think, replies={"time": "It is noon."})
    with pytest.raises(InputError, match="replies: think=runs/stub has no labels; leave them out"):
        Assistant(HEARD, Stub(Thinks()), replies={"time": "It is noon."})


def test_questions_from_a_microphone_are_answered_after_pauses():
    chain = Assistant(HEARD, Stub(Thinks(), ("Yes.",)))
    sound = np.concatenate([np.zeros(RATE), small_whisper.sound(0.5), np.zeros(RATE)])
    pieces = list(chain.converse(np.split(np.concatenate([sound, sound]), 16), RATE))
    assert [piece.text for piece in pieces] == ["what is it?", "Yes."] * 2
    assert list(Assistant(Stub(Role(), ""), SAYS).converse([sound], RATE)) == []


@pytest.mark.parametrize(
    "make, said",
    [
        (lambda: Assistant(SAYS, SAYS), "listen=runs/stub: object transcribes no sounds"),
        (lambda: Assistant(HEARD, HEARD), "think=runs/stub: object does not answer texts with texts"),
        (lambda: Assistant(HEARD, SAYS, SAYS), "speak=runs/stub: object does not speak"),
        (lambda: Assistant(Stub(Role(), ""), SAYS).answer("a.wav"), "a.wav: no words were recognized in it"),
        (lambda: Assistant(HEARD, Stub(Thinks(), (" .",))).answer("a.wav"), "a.wav: the answer to 'what is it\\?' has"),
    ],
)
def test_what_cannot_work_gets_a_line(make, said):
    with pytest.raises(InputError, match=said) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_answers_are_saved_by_the_ending_of_the_path(tmp_path):
    pieces = [Piece("heard", "a <b>?"), Piece("said", "Yes."), Piece("speech", "Yes.", speech("Yes."))]
    answer, silent = collected("q.wav", pieces), SpokenAnswer("q.wav", "a?", "No.", 0.0)
    answer.save(tmp_path / "answer.wav")
    assert (tmp_path / "answer.wav").read_bytes() == wav(answer.speech.samples, RATE)
    answer.save(tmp_path / "answer.html")
    page = (tmp_path / "answer.html").read_text()
    assert "a &lt;b&gt;?" in page and page.count("<audio") == 1
    silent.save(tmp_path / "answer.txt")
    assert (tmp_path / "answer.txt").read_text() == "No.\n"
    answer.save(tmp_path / "answer.json")
    saved = json.loads((tmp_path / "answer.json").read_text())
    assert saved == {"path": "q.wav", "heard": "a <b>?", "text": "Yes.", "seconds": 4 / RATE}
    SpokenAnswer.save_all([answer, silent], tmp_path / "both")
    assert {path.name for path in (tmp_path / "both").iterdir()} == {"1.wav", "answers.json"}
    SpokenAnswer.save_all([answer, silent], tmp_path / "both.html")
    assert (tmp_path / "both.html").read_text().count("<strong>") == 2
    for save, said in (
        (lambda: silent.save(tmp_path / "b.wav"), "the answer is not spoken; set --speak"),
        (
            lambda: answer.save(tmp_path / "b.mp4"),
            "expected a path that ends in .wav, .flac, .ogg, .html, .txt or .json",
        ),
        (lambda: SpokenAnswer.save_all([answer] * 2, tmp_path / "b.wav"), "2 questions; expected a folder, or a .html"),
    ):
        with pytest.raises(InputError, match=said):
            save()
    assert not list(tmp_path.glob("b.*"))
