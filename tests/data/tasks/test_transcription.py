"""Rows of sounds and transcripts."""

import numpy as np
import pytest
from small_whisper import FRAMES, MELS, RATE, SECONDS, ids, sound, tokenizer_json

from jaxformer.data.examples import Visit
from jaxformer.data.fields.sound import SoundField
from jaxformer.data.sources.sources import located
from jaxformer.data.tasks.transcription import TranscriptField, Transcription
from jaxformer.data.tokenizers import ByteLevelBpe
from jaxformer.data.tokenizers.byte_level import ByteLevelTokenizer
from jaxformer.data.tokenizers.speech_tokens import SpeechTokens
from jaxformer.data.transforms.log_mel import LogMel
from jaxformer.errors import InputError

TOKENIZER = ByteLevelTokenizer(tokenizer_json())
AUDIO = SoundField(seconds=SECONDS, log_mel=LogMel(MELS))
TASK = Transcription(AUDIO, TranscriptField(length=24))


def examples(task, example):
    visit = Visit(TOKENIZER, np.random.default_rng(0), lambda rng: None)
    return task.examples(task.encode(example, TOKENIZER), visit)


def test_a_row_has_the_sound_and_the_transcript():
    numbers = ids()
    samples = sound(1.3)
    [row] = examples(TASK, {"audio": samples, "text": " hello there "})
    assert row["log_mel"].shape == (FRAMES, MELS) and row["log_mel"].dtype == np.float32
    np.testing.assert_array_equal(row["log_mel"], AUDIO.log_mel(np.pad(samples, (0, SECONDS * RATE - len(samples)))))
    words = TOKENIZER.encode(" hello there").tolist()
    assert row["tokens"].tolist() == [numbers["startoftranscript"], numbers["notimestamps"], *words]
    assert row["targets"].tolist() == [numbers["notimestamps"], *words, numbers["endoftext"]]
    assert row["weights"].tolist() == [1.0] * len(row["tokens"])
    assert TASK.unit == ("seconds of audio", 2)


def test_a_language_and_a_task_begin_the_transcript():
    numbers = ids()
    task = Transcription(AUDIO, TranscriptField(length=24, language="de", speech_task="translate"))
    [row] = examples(task, {"audio": sound(0.2), "text": "a"})
    names = ("startoftranscript", "de", "translate", "notimestamps")
    assert row["tokens"][:4].tolist() == [numbers[name] for name in names]
    wrong = Transcription(AUDIO, TranscriptField(language="xx"))
    with pytest.raises(InputError, match="language='xx': the tokenizer has no such language; expected one of en, de"):
        wrong.check(TOKENIZER, False)


def test_a_sound_with_a_translation_makes_two_examples():
    numbers = ids()
    fields = [TranscriptField(length=24, language="de"), TranscriptField("said", 24, "de", "translate")]
    task = Transcription(AUDIO, *fields)
    task.check(TOKENIZER, False)
    rows = examples(task, {"audio": sound(0.2), "text": "ein", "said": "one"})
    for row, name, word in zip(rows, ("transcribe", "translate"), (" ein", " one"), strict=True):
        assert row["tokens"][2] == numbers[name] and row.keys() == task.row.keys()
        assert row["targets"][3:-1].tolist() == TOKENIZER.encode(word).tolist()
    np.testing.assert_array_equal(rows[0]["log_mel"], rows[1]["log_mel"])
    assert examples(task, {"audio": sound(0.2), "text": "ein", "said": ""}) == []
    longer = Transcription(AUDIO, fields[0], TranscriptField("said", 30, "de", "translate"))
    with pytest.raises(InputError, match=r"translation\.length=30: expected that of transcripts, text\.length=24"):
        longer.check(TOKENIZER, False)


def test_notes_of_what_is_skipped_have_its_origin(capsys):
    pytest.importorskip("soundfile")
    with located([None] * 8, 7):
        assert TASK.encode({"audio": b"no sound", "text": "a"}, TOKENIZER).values is None
    assert capsys.readouterr().err.startswith("skipped: example 7: the sound in 'audio': cannot be decoded as a sound")


def test_what_does_not_fit_or_cannot_be_read_is_left_out(capsys):
    pytest.importorskip("soundfile")
    assert examples(TASK, {"audio": sound(SECONDS + 0.1), "text": "a"}) == []
    assert examples(TASK, {"audio": b"no sound", "text": "a"}) == []
    assert examples(TASK, {"audio": sound(0.1), "text": "press " * 40}) == []
    assert examples(TASK, {"audio": sound(0.1), "text": ""}) == []
    said = capsys.readouterr().err
    assert "2.1 seconds: longer than the rows of 2" in said and "a row of 24 has no room" in said
    strict = Transcription(SoundField(seconds=SECONDS, strict=True), TASK.text)
    with pytest.raises(InputError, match="strict=True: the sound in 'audio': cannot be decoded"):
        strict.encode({"audio": b"no sound", "text": "a"}, TOKENIZER)


def test_special_tokens_of_the_vocabulary(tmp_path):
    numbers, tokens = ids(), SpeechTokens.of(TOKENIZER)
    assert (tokens.start, tokens.end) == (numbers["startoftranscript"], numbers["endoftext"])
    assert tokens.languages == {"en": numbers["en"], "de": numbers["de"]}
    assert tokens.no_speech == numbers["nospeech"] and tokens.first_timestamp == numbers["notimestamps"] + 1
    assert tokens.words([3, tokens.end, tokens.first_timestamp + 4, 5]) == [3, 5]
    plain = ByteLevelBpe(300).build(lambda: [{"text": "some words"}], str(tmp_path / "tokenizer"))
    with pytest.raises(InputError, match=r"has no <\|startoftranscript\|>; expected the tokenizer of a speech"):
        TASK.check(plain, False)
