"""Sounds of any length become texts, segments and subtitles."""

import json

import numpy as np
import pytest
import small_whisper

import jaxformer as jf
from jaxformer import cli
from jaxformer.predictors.subtitles import clock, srt, vtt
from jaxformer.predictors.transcripts import Segment, Transcript, Word

MEASURES = (0.0, -0.1, 1.2, 0.0)
SEGMENTS = (
    Segment(
        0.0, 1.5, "Tea & <cake>", (Word(" Tea", 0.0, 0.4), Word(" &", 0.4, 0.5), Word(" <cake>", 0.5, 1.5)), *MEASURES
    ),
    Segment(61.25, 3723.004, "a --> b", (), *MEASURES),
    Segment(4000.0, 4001.0, " ", (), *MEASURES),
)


def test_times_are_formatted():
    assert [clock(0), clock(61.2504), clock(3723.9996, ",")] == ["00:00:00.000", "00:01:01.250", "01:02:04,000"]


def test_subtitles():
    assert srt(SEGMENTS) == (
        "1\n00:00:00,000 --> 00:00:01,500\nTea & <cake>\n\n2\n00:01:01,250 --> 01:02:03,004\na -> b\n"
    )
    assert vtt(SEGMENTS) == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:01.500\nTea<00:00:00.400> &amp;<00:00:00.500> &lt;cake&gt;\n\n"
        "00:01:01.250 --> 01:02:03.004\na -&gt; b\n"
    )
    assert srt(()) == "" and vtt(()) == "WEBVTT\n"


def test_answers_are_saved_by_the_ending_of_the_path(tmp_path):
    answer = Transcript("a.wav", "Tea", "en", 1.5, SEGMENTS[:2])
    for name, start in (("a.srt", "1\n00:"), ("a.VTT", "WEBVTT"), ("a.txt", "Tea\n"), ("a.json", "{")):
        answer.save(tmp_path / name)
        assert (tmp_path / name).read_text().startswith(start)
    saved = json.loads((tmp_path / "a.json").read_text())
    assert saved["segments"][0]["words"][1] == {"text": " &", "start": 0.4, "end": 0.5}
    assert "words" not in saved["segments"][1]
    with pytest.raises(jf.InputError, match="2 sounds; expected one"):
        Transcript.save_all([answer, answer], tmp_path / "b.srt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("transformers")
    home = tmp_path_factory.mktemp("whisper")
    jf.import_run(small_whisper.saved(home / "theirs"), home / "run", certificate=False)
    return home / "run"


@pytest.fixture(scope="module")
def run(folder):
    """A run that accepts every output, because those of random weights are not plausible."""
    accepting = {"temperatures": (0.0,), "no_speech": None}
    return jf.open_run(folder).with_transcribing(**accepting).with_decoding(max_new_tokens=12)


@pytest.mark.slow
def test_sounds_together_are_as_alone(run):
    sounds = [small_whisper.sound(seconds, seed) for seed, seconds in enumerate((1.5, 0.3, 5.2))]
    together = run.predict(sounds)
    alone = [run.predict([sound])[0] for sound in sounds]
    for one, other in zip(together, alone, strict=True):
        assert one.text == other.text and len(one.segments) == len(other.segments)
        assert [segment.start for segment in one.segments] == [segment.start for segment in other.segments]
    long = together[2]
    assert long.seconds == pytest.approx(5.2) and len(long.segments) > 1
    starts = [segment.start for segment in long.segments]
    assert starts == sorted(starts) and starts[-1] <= 5.2 + 1e-6 and all(one.end <= 5.2 + 1e-6 for one in long.segments)
    assert together[1].path == "sound 2"


@pytest.mark.slow
def test_windows_of_a_long_sound_are_those_of_transformers(run, folder):
    """Only segments that end in the first window: transformers pads the last one with other features."""
    import torch
    import transformers

    theirs = folder.parent / "theirs"
    network = transformers.WhisperForConditionalGeneration.from_pretrained(theirs)
    extract = transformers.WhisperFeatureExtractor.from_pretrained(theirs)
    sound = np.concatenate([small_whisper.sound(2.0, 0), small_whisper.sound(2.0, 1)])
    given = extract(sound, sampling_rate=16_000, return_tensors="pt", truncation=False, padding="longest")
    settings = {"return_timestamps": True, "return_segments": True, "max_new_tokens": 12, "do_sample": False}
    with torch.no_grad():
        [expected] = network.generate(given.input_features, **settings)["segments"]
    [found] = run.predict([sound])
    whole = [one for one in expected if one["end"] <= 2.0]
    assert len(whole) > 0
    for mine, one in zip(found.segments, whole, strict=False):
        assert (mine.start, mine.end) == pytest.approx((float(one["start"]), float(one["end"])), abs=1e-4)


@pytest.mark.slow
def test_fallbacks_words_and_context(run):
    sound = small_whisper.sound(3.0)
    words = run.with_transcribing(word_times=True).predict([sound])[0]
    timed = [word for segment in words.segments for word in segment.words]
    assert timed and all(0 <= word.start <= word.end <= 3.1 for word in timed)
    for segment in words.segments:
        assert "".join(word.text for word in segment.words).strip() == segment.text
    hot = run.with_transcribing(temperatures=(0.0, 0.7), log_probability=-1e-9).predict([sound])[0]
    assert {segment.temperature for segment in hot.segments} == {0.7}
    silent = run.with_transcribing(no_speech=0.0, log_probability=-1e-9).predict([sound])[0]
    assert silent.segments == () and silent.text == ""
    first, second = (run.with_transcribing(condition_on_previous=on).predict([sound])[0] for on in (False, True))
    assert first.segments[0] == second.segments[0]


@pytest.mark.slow
def test_beams_and_silence(run):
    beams = run.with_decoding(num_beams=2).predict([small_whisper.sound(0.5)])[0]
    greedy = run.predict([small_whisper.sound(0.5)])[0]
    assert beams.segments[0].mean_log_probability >= greedy.segments[0].mean_log_probability - 1e-4
    assert isinstance(run.predict([np.zeros(8000, np.float32)])[0], Transcript)


@pytest.mark.slow
def test_the_command_writes_subtitles(folder, tmp_path, capsys):
    path = small_whisper.wav(tmp_path / "a.wav", 0.8)
    options = ["--max_new_tokens", "6", "--word_times", "true", "--temperatures", "0"]
    assert cli.main(["predict", str(folder), path, *options, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["path"] == path and answer["seconds"] == pytest.approx(0.8)
    assert cli.main(["predict", str(folder), path, *options, "--out", str(tmp_path / "a.vtt")]) == 0
    assert (tmp_path / "a.vtt").read_text().startswith("WEBVTT\n")
    (tmp_path / "b.wav").write_bytes(b"no sound")
    capsys.readouterr()
    assert cli.main(["predict", str(folder), str(tmp_path / "b.wav")]) == 2
    assert "b.wav: cannot be decoded as a sound" in capsys.readouterr().err
    assert cli.main(["predict", str(folder), path, "--language", "xx"]) == 2
    assert "language='xx': the tokenizer has no such language" in capsys.readouterr().err
