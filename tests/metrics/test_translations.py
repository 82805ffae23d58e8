"""BLEU and chrF of spoken translations are those of all texts together, in any grouping of the recordings."""

import pytest

from jaxformer.data.tasks.composed import FieldValues
from jaxformer.data.tasks.transcription import TranscriptField, Transcription
from jaxformer.decoding.transcribing import Transcribing
from jaxformer.errors import InputError
from jaxformer.metrics.base import Context
from jaxformer.metrics.texts import text_scores
from jaxformer.metrics.translations import TranslationScores
from jaxformer.models.whisper import Whisper
from jaxformer.objectives.speech_to_text import SpeechToText


class Silent(Transcription):
    """Reads no sounds."""

    def encode(self, example, tokenizer):
        return FieldValues({} if example["usable"] else None, 1)


TASK = Silent(translation=TranscriptField(column="en", language="de", speech_task="translate"))
DOCUMENTS = [
    {"text": "Der Hund rennt.", "en": "The dog is running fast.", "said": "The dog runs very fast.", "usable": 1},
    {"text": "unlesbar", "en": "unreadable", "said": "", "usable": 0},
    {"text": "Ein Haus am See.", "en": "A house by the lake.", "said": "A house by the lake.", "usable": 1},
    {"text": "Noch eines.", "en": "One more.", "said": "One more.", "usable": 1},
]
CONTEXT = Context(None, None, None, TASK)


def test_the_scores_are_those_of_all_texts():
    metric = TranslationScores(2, lambda context, documents: [document["said"] for document in documents])
    metric.check(TASK)
    indices = metric.select(CONTEXT, DOCUMENTS)
    assert indices == [0, 2]
    whole = metric.score(CONTEXT, DOCUMENTS, indices)
    parts = [metric.score(CONTEXT, DOCUMENTS, [index]) for index in indices]
    assert metric.merge(*parts) == whole
    outputs, references = ([DOCUMENTS[index][name] for index in indices] for name in ("said", "en"))
    expected = text_scores(outputs, references)
    assert metric.compute(whole) == expected and 0 < expected["bleu"] < 100
    assert metric.compute(()) == {"bleu": 0.0, "chrf": 0.0}


def test_a_task_without_translations_is_refused():
    with pytest.raises(InputError, match=r"translated=2: data\.task=Transcription reads no translations; expected 0"):
        TranslationScores(2, lambda context, documents: []).check(Transcription())


def test_a_translation_needs_the_spoken_language():
    with pytest.raises(
        InputError, match=r"objective\.transcribing\.language='': objective\.translated=2 needs the code"
    ):
        SpeechToText(translated=2)
    objective = SpeechToText(translated=2, transcribing=Transcribing(language="de"))
    assert {"bleu", "chrf"} <= {name for metric in objective.metrics(Whisper()) for name in metric.names}
