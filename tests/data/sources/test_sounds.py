"""Sounds in every form that libsndfile reads, and files that are not sounds."""

import io
import json

import numpy as np
import pytest

from jaxformer.data.fields.sound import SoundField, write_wav
from jaxformer.data.sources.sounds import SoundManifest, SpeechFolder, Undecodable, read_sound
from jaxformer.errors import InputError

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("soxr")

RATE = 16_000
TIMES = np.arange(RATE) / RATE
TONE = (0.5 * np.sin(2 * np.pi * 440 * TIMES)).astype(np.float32)


def encoded(samples=TONE, rate=RATE, kind="WAV", subtype=None):
    """The bytes of a sound file."""
    content = io.BytesIO()
    soundfile.write(content, samples, rate, format=kind, subtype=subtype)
    return content.getvalue()


@pytest.mark.parametrize(
    "kind, subtype, near",
    [
        *[("WAV", "PCM_16", 1e-4), ("WAV", "PCM_U8", 1e-2), ("WAV", "PCM_24", 1e-6), ("WAV", "FLOAT", 1e-7)],
        *[("FLAC", "PCM_16", 1e-4), ("AIFF", "PCM_16", 1e-4), ("WAV", "ULAW", 2e-2), ("OGG", "VORBIS", 0.1)],
    ],
)
def test_formats_and_sample_sizes_give_the_same_sound(kind, subtype, near):
    found = read_sound(encoded(kind=kind, subtype=subtype), RATE)
    assert found.dtype == np.float32 and found.shape == TONE.shape
    np.testing.assert_allclose(found, TONE, atol=near)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 192_000])
def test_other_rates_are_resampled(rate):
    times = np.arange(2 * rate) / rate
    found = read_sound(encoded(0.5 * np.sin(2 * np.pi * 440 * times), rate, subtype="FLOAT"), RATE)
    assert len(found) == 2 * RATE
    np.testing.assert_allclose(found[2000:-2000], np.tile(TONE, 2)[2000:-2000], atol=2e-3)


def test_channels_are_averaged_and_loud_samples_kept():
    stereo = np.stack([TONE, np.zeros_like(TONE)], axis=1)
    np.testing.assert_allclose(read_sound(encoded(stereo, subtype="FLOAT"), RATE), TONE / 2, atol=1e-7)
    np.testing.assert_array_equal(read_sound(stereo, RATE), TONE / 2)
    loud = np.clip(8 * TONE, -1, 1)
    np.testing.assert_allclose(read_sound(encoded(loud), RATE), loud, atol=1e-4)
    np.testing.assert_array_equal(read_sound(8 * TONE, RATE), 8 * TONE)
    assert not read_sound(encoded(np.zeros(100)), RATE).any()


def test_arrays_of_integers():
    integers = (TONE * 2**15).astype(np.int16)
    for array in (integers, integers.astype(np.int64)):
        np.testing.assert_allclose(read_sound(array, RATE), TONE, atol=1e-4)
    np.testing.assert_allclose(read_sound(np.array([0, 128, 255], np.uint8), RATE), [-1, 0, 127 / 128])
    assert len(read_sound(integers, RATE, array_rate=8_000)) == 2 * RATE


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "cannot be decoded as a sound: format not recognised"),
        (b"a text, not a sound, of some length", "cannot be decoded as a sound: format not recognised"),
        (encoded()[:10_000], "is truncated: its header announces 32000 bytes of samples, and 9956 follow"),
        (encoded(kind="FLAC")[:5_000], "cannot be decoded as a sound: flac decoder lost sync"),
        (encoded(kind="MP3")[:1_000], "is truncated: its header announces 16,000 samples, and"),
        (encoded(np.zeros(0)), "has no samples"),
        (encoded(np.array([0.1, np.nan]), subtype="FLOAT"), "has samples that are not finite"),
    ],
)
def test_files_that_cannot_be_read_are_named(content, said, tmp_path):
    path = tmp_path / "some.wav"
    path.write_bytes(content)
    with pytest.raises(Undecodable) as caught:
        read_sound(str(path), RATE)
    assert str(caught.value).startswith(f"{path}: {said}") and "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"some\.wav: "):
        SoundField().prepare([str(path)])


def test_missing_files_and_wrong_arrays():
    with pytest.raises(Undecodable, match=r"^/nowhere/a.wav: no such file or directory; give the path of a sound file"):
        read_sound("/nowhere/a.wav", RATE)
    with pytest.raises(Undecodable, match=r"one: an array of shape \(2, 2, 2\): expected \[samples\]"):
        read_sound(np.zeros((2, 2, 2)), RATE, "one")
    with pytest.raises(Undecodable, match="one: an array of bool: expected floats or integers"):
        read_sound(np.zeros(4, bool), RATE, "one")


def test_manifests_name_sounds_beside_them(tmp_path):
    (tmp_path / "clips").mkdir()
    write_wav(tmp_path / "clips" / "1.wav", TONE, RATE)
    absolute = str(tmp_path / "clips/1.wav")
    lines = [{"audio": "clips/1.wav", "text": "One.", "speaker": 3}, {"audio": absolute, "text": "x"}]
    manifest = tmp_path / "train.jsonl"
    manifest.write_text("\n".join(map(json.dumps, lines)))
    documents = SoundManifest((str(manifest),)).open()
    assert documents[0] == {"audio": absolute, "text": "One.", "speaker": 3}
    assert documents[0]["audio"] == documents[1]["audio"]
    np.testing.assert_allclose(read_sound(documents[0]["audio"], RATE), TONE, atol=1e-4)
    manifest.write_text('{"audio": "clips/1.wav"}\n{"audio": "clips/2.wav"}\n')
    with pytest.raises(InputError, match=r"train.jsonl: line 2: audio='.*clips/2.wav': no such file"):
        SoundManifest((str(manifest),)).open()
    with pytest.raises(InputError, match="no such column; the columns are 'audio'"):
        SoundManifest((str(manifest),), audio="path").open()


def test_folders_of_readings(tmp_path):
    (tmp_path / "wavs").mkdir()
    for name in ("LJ001-0001", "LJ001-0002"):
        write_wav(tmp_path / "wavs" / f"{name}.wav", TONE, RATE)
    metadata = tmp_path / "metadata.csv"
    metadata.write_text('LJ001-0001|He said "no" in 1066|he said "no" in ten sixty-six\nLJ001-0002|Plain.\n')
    documents = SpeechFolder(str(tmp_path)).open()
    assert [one["text"] for one in documents] == ['he said "no" in ten sixty-six', "Plain."]
    assert documents[1]["audio"] == str(tmp_path / "wavs/LJ001-0002.wav")
    assert documents.place(1) == f"{metadata}: line 2"
    metadata.write_text("LJ001-0001|One\nLJ001-0003|Two\nLJ001-0002\n")
    with pytest.raises(InputError, match=r"line 2: there is no wavs/LJ001-0003.wav; .*line 3: expected NAME\|TEXT"):
        SpeechFolder(str(tmp_path)).open()
