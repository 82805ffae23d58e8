"""Tasks of speech synthesis: phonemes with durations, pitch and energy, and requests to speak."""

import dataclasses
import types

import numpy as np
import pytest
from small_whisper import RATE
from tiny_speech import FRAMES, LOG_MEL, SECONDS, source, spoken

import jaxformer as jf
from jaxformer.data.fields.phonemes import PhonemeField
from jaxformer.data.fields.spectrogram import SpectrogramField
from jaxformer.data.fields.vector import VectorField
from jaxformer.data.tasks import speaking
from jaxformer.data.tasks.speaking import SpokenPhonemes
from jaxformer.data.tasks.spoken_text import LetterField, SpokenText
from jaxformer.data.tokenizers import load_tokenizer
from jaxformer.data.tokenizers.characters import of_alphabet
from jaxformer.data.tokenizers.phonemes import PhonemeTokenizer
from jaxformer.data.transforms.log_mel import SPOKEN, LogMel
from jaxformer.data.transforms.pitch import averaged, pitch
from jaxformer.errors import InputError

TASK = SpokenPhonemes(SpectrogramField(seconds=SECONDS, log_mel=LOG_MEL), PhonemeField(length=8))
TOKENIZER = PhonemeTokenizer(["a", "o"])


def example(text="ao", **changes):
    samples, phonemes, starts = spoken(text)
    return {"audio": samples, "text": text, "phonemes": phonemes, "phoneme_starts": starts} | changes


def arrays(**changes):
    document = TASK.encode(example(**changes), TOKENIZER)
    (found,) = TASK.examples(document, None)
    return found


def test_an_example_has_the_durations_pitch_and_energy_of_its_phonemes():
    found = arrays()
    frames = len(found["spectrogram"])
    assert found["tokens"].tolist() == [2, 3, 1] and found["durations"].sum() == frames == found["frame_mask"].sum()
    # 0.1, 0.12 and 0.05 seconds, at 62.5 frames per second.
    assert found["durations"].tolist() == [6, 8, frames - 14]
    np.testing.assert_allclose(found["pitch"][:2], np.log2([200 / 150, 300 / 150]), atol=0.1)
    assert abs(found["pitch"][2] - found["pitch"][1]) < 0.1, "silence has the pitch of the nearest phoneme with one"
    assert found["energy"][2] < found["energy"][0] - 0.5
    features = TASK.row
    assert features["spectrogram"].capacity == features["frame_mask"].capacity == FRAMES
    assert {name: (array.dtype, array.shape[1:]) for name, array in found.items()} == {
        name: (np.dtype(feature.dtype), feature.shape) for name, feature in features.items()
    }


@pytest.mark.parametrize("hertz", [90, 150, 220, 350])
def test_pitch_is_the_frequency_of_a_voice(hertz):
    times = np.arange(RATE // 2) / RATE
    voice = 0.1 * sum(np.sin(2 * np.pi * hertz * order * times) / order for order in range(1, 8))
    found = pitch(voice, SPOKEN)[2:-3]
    assert np.abs(found - np.log2(hertz / 150)).max() < 0.03


def test_noise_and_silence_have_no_pitch():
    noise = np.random.default_rng(0).normal(0, 0.1, RATE // 2)
    assert np.isnan(pitch(noise, SPOKEN)).mean() > 0.9 and np.isnan(pitch(0 * noise, SPOKEN)).all()
    assert len(pitch(noise, SPOKEN)) == len(SPOKEN(noise))


def test_averages_skip_frames_without_a_value():
    values = np.array([1, 3, np.nan, np.nan, 5, 7], np.float32)
    assert averaged(values, np.array([2, 2, 0, 2])).tolist() == [2, pytest.approx(10 / 3), pytest.approx(14 / 3), 6]
    assert averaged(np.full(3, np.nan), np.array([1, 2])).tolist() == [0, 0]


def test_a_vocabulary_has_the_phonemes_of_the_data(tmp_path):
    tokenizer = jf.tokenizers.Phonemes().build(source(tmp_path).open, str(tmp_path / "tokenizer"))
    assert tokenizer.pieces == ["<pad>", "_", "a", "o"] and tokenizer.pad_id == 0
    again = load_tokenizer(str(tmp_path / "tokenizer"))
    assert again.pieces == tokenizer.pieces and again.decode([2, 1, 3]) == "a _ o"
    ids, offsets = again.encode_with_offsets("a  o")
    assert ids.tolist() == [2, 3] and offsets.tolist() == [[0, 1], [3, 4]]
    with pytest.raises(InputError, match="phonemes ʒ: not in the vocabulary of 4 phonemes"):
        again.encode("a ʒ")
    (tmp_path / "tokenizer" / "phonemes.json").write_text('["a", 3]')
    with pytest.raises(InputError, match="expected a JSON list of phonemes"):
        load_tokenizer(str(tmp_path / "tokenizer"))


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"phoneme_starts": [0.0]}, "phonemes.starts='phoneme_starts': 1 times of 3 phonemes"),
        ({"phoneme_starts": [0.1, 0.0, 0.2]}, "expected seconds from 0 on, in ascending order"),
        ({"phoneme_starts": ["0", "1", "2"]}, "expected seconds from 0 on"),
        ({"phonemes": "ao"}, "phonemes.column='phonemes': the column holds 'ao'; expected a list"),
    ],
)
def test_bad_phonemes_get_a_line(changes, said):
    with pytest.raises(InputError, match=said) as caught:
        TASK.encode(example(**changes), TOKENIZER)
    assert "\n" not in str(caught.value)


def test_unknown_and_too_many_phonemes_are_skipped(capsys):
    assert TASK.encode(example(phonemes=["a", "ʒ", ""]), TOKENIZER).values is None
    assert "'ʒ' is not in the vocabulary" in capsys.readouterr().err
    long = {"phonemes": ["a"] * 9, "phoneme_starts": [0.0] * 9}
    assert TASK.encode(example(**long), TOKENIZER).values is None
    assert "9 phonemes" in capsys.readouterr().err


def test_the_frames_of_a_decoder_are_those_before_each_group():
    task = SpokenText(SpectrogramField(seconds=SECONDS, log_mel=LOG_MEL), LetterField(length=8), VectorField(length=3))
    tokenizer = of_alphabet("ao")
    given = example() | {"speaker": [1, 2, 3]}
    (found,) = task.examples(task.encode(given, tokenizer), None)
    count, frames = len(found["spectrogram"]), found["frames"]
    assert len(frames) == -(-count // 2) and not frames[0].any()
    np.testing.assert_array_equal(frames[1:], found["spectrogram"][1::2][: len(frames) - 1])
    assert found["tokens"].tolist() == [*tokenizer.encode("ao"), tokenizer.eos_id] and found["speaker"].tolist() == [
        1,
        2,
        3,
    ]
    assert {name: array.shape[1:] for name, array in found.items()} == {
        name: feature.shape for name, feature in task.row.items()
    }
    for changes, said in (
        ({"speaker": [1, 2]}, "speaker.column='speaker': a vector of 2 numbers; expected a vector of 3"),
        ({"speaker": "nowhere.npy"}, r"nowhere\.npy: no such file or directory; expected a vector of 3 numbers"),
    ):
        with pytest.raises(InputError, match=said):
            task.encode(given | changes, tokenizer)
    with pytest.raises(InputError, match=r"seconds=0\.64: 40 frames; expected a multiple of 3"):
        dataclasses.replace(task, reduction=3)


def test_a_spectrogram_for_recognition_is_refused():
    with pytest.raises(InputError, match="scale=recognition: expected synthesis"):
        SpectrogramField(log_mel=LogMel())


def test_requests_are_phonemes_or_texts(monkeypatch):
    def speak(text, voice):
        return types.SimpleNamespace(phonemes=tuple(text.lower()) + (("",) if voice == "en-us" else ()))

    monkeypatch.setattr(speaking, "_pronounced", lambda text, voice: speak(text, voice).phonemes)
    one, other = TASK.prepare_requests(["/a o  aɪ/", " Ao. Oa: o "])
    assert one.parts == (("a", "o", "aɪ"),) and one.text == "/a o  aɪ/"
    assert other.parts == (("a", "o", ".", ""), ("o", "a", ":", ""), ("o", ""))
    for empty in ("", "  ", "//"):
        with pytest.raises(InputError, match=r"text 1, .*has no words to speak"):
            TASK.prepare_requests([empty])


def test_espeak_ng_gives_the_phonemes_of_a_text():
    espeak = pytest.importorskip("jaxformer.datasets.espeak")
    try:
        espeak.load()
    except InputError as error:
        pytest.skip(str(error))
    (found,) = SpokenPhonemes().prepare_requests(["In the beginning. Then light."])
    assert len(found.parts) == 2 and found.parts[0][:2] == ("ɪ", "n")
