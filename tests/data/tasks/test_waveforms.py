"""Rows of waveforms: transcripts as characters, masked spans and negative examples."""

import dataclasses

import numpy as np
import pytest
from small_speech import FRAMING, RATE, TOKENIZER, waveform

from jaxformer.data.examples import Visit
from jaxformer.data.fields.characters import CharacterField
from jaxformer.data.fields.waveform import WaveformField
from jaxformer.data.tasks.waveforms import MaskedSpeech, SpelledSpeech
from jaxformer.data.tokenizers import ByteLevelBpe
from jaxformer.data.transforms.framing import Framing
from jaxformer.data.transforms.span_masking import SpanMasking, negatives
from jaxformer.data.transforms.spelling import spoken
from jaxformer.errors import InputError

AUDIO = WaveformField(seconds=0.1)
TASK = SpelledSpeech(audio=AUDIO, framing=FRAMING, text=CharacterField(length=12))


def examples(task, example, seed=0):
    visit = Visit(TOKENIZER, np.random.default_rng(seed), lambda rng: None)
    return task.examples(task.encode(example, TOKENIZER), visit)


def test_frames_are_counted():
    assert (Framing().hop, Framing().window) == (320, 400)
    assert Framing().frames(RATE) == 49 and Framing().frames(399) == 0 and Framing().samples(49) == 48 * 320 + 400
    assert FRAMING.frames(np.array([29, 30, 49, 50])).tolist() == [0, 1, 1, 2]
    for kernels, strides in (((), ()), ((3,), (1, 2)), ((0,), (1,))):
        with pytest.raises(InputError, match=r"framing\.(kernels|strides)="):
            Framing(kernels, strides)


def test_a_row_has_the_waveform_and_the_characters():
    samples = waveform(0.08)
    [row] = examples(TASK, {"audio": samples, "text": " Cab, a-b! "})
    assert row["targets"].tolist() == [7, 5, 6, 4, 5, 4, 6] and row["weights"].tolist() == [1.0] * 7
    assert row["samples"].dtype == np.float32 and len(row["samples"]) == len(samples) == row["sample_mask"].sum()
    np.testing.assert_allclose(row["samples"], (samples - samples.mean()) / samples.std(), rtol=1e-4, atol=1e-4)
    assert TASK.row.keys() == {"samples", "sample_mask", "targets", "weights"} and TASK.writes
    assert TASK.written({"text": "Cab!"}, TOKENIZER).reference == "CAB"
    [sound] = TASK.prepare_requests([samples])
    np.testing.assert_array_equal(sound.samples, row["samples"])


def test_what_does_not_fit_or_cannot_be_spelled_is_left_out(capsys):
    long, short = "AB" * 7, "ABCA" * 3
    for text, seconds in (("Zebra", 0.08), (long, 0.08), ("A", 0.2), (short, 0.01), ("A", 0.001), ("!", 0.08)):
        assert examples(TASK, {"audio": waveform(seconds), "text": text}) == []
    said = capsys.readouterr().err
    for part in (
        "'Zebra': the vocabulary has no 'Z', 'E', 'R'",
        "14 characters: a row of 12 has no room",
        "0.2 seconds: longer than the rows of 0.1",
        "7 frames: too few for a transcript that needs 14",
        "16 samples: shorter than a frame",
    ):
        assert part in said
    strict = dataclasses.replace(TASK, text=CharacterField(strict=True))
    with pytest.raises(InputError, match=r"strict=True: 'Zebra': the vocabulary has no 'Z', 'E', 'R'"):
        strict.encode({"audio": waveform(0.08), "text": "Zebra"}, TOKENIZER)
    plain = dataclasses.replace(TASK, text=CharacterField(normalize=False))
    assert examples(plain, {"audio": waveform(0.08), "text": "A b"}) == []
    assert len(examples(plain, {"audio": waveform(0.08), "text": "A B"})) == 1


def test_tasks_that_do_not_fit_are_refused(tmp_path):
    other = ByteLevelBpe(300).build(lambda: [{"text": "some words"}], str(tmp_path / "tokenizer"))
    with pytest.raises(InputError, match="tokenizer=ByteLevelTokenizer: expected Characters"):
        TASK.check(other, False)
    with pytest.raises(InputError, match=r"audio\.seconds=0\.001: expected 0\.001875 or more"):
        dataclasses.replace(TASK, audio=WaveformField(seconds=0.001)).check(TOKENIZER, False)
    with pytest.raises(InputError, match="crop=random: a part of a sound has no transcript"):
        dataclasses.replace(TASK, audio=WaveformField(seconds=0.1, crop="random")).check(TOKENIZER, False)


def test_masks_are_spans_only_in_training():
    task = dataclasses.replace(TASK, masking=SpanMasking(0.4, 3, 1))
    frames = FRAMING.frames(AUDIO.capacity)
    assert task.row["masked"].capacity == frames == 79 and "masked" not in task.for_evaluation().row
    [row] = examples(task, {"audio": waveform(0.08), "text": "A"})
    masked = row["masked"]
    assert len(masked) == FRAMING.frames(round(0.08 * RATE)) and 0.2 < masked.mean() <= 0.45
    edges = np.flatnonzero(np.diff(np.pad(masked, 1).astype(int)))
    assert ((edges[1::2] - edges[::2]) >= 3).all()
    again, other = (examples(task, {"audio": waveform(0.08), "text": "A"}, seed)[0]["masked"] for seed in (0, 1))
    assert (again == masked).all() and (other != masked).any()


def test_the_number_of_spans_is_right_on_average():
    rng, masking = np.random.default_rng(0), SpanMasking(0.65, 10, 0)
    without_overlap = SpanMasking(0.05, 10, 0)
    assert without_overlap(9, rng).sum() == 0 and SpanMasking(0.05, 10, 2)(11, rng).sum() == 11
    counts = [without_overlap(100, rng).sum() for _ in range(2000)]
    assert set(counts) == {0, 10} and 4.5 < np.mean(counts) < 5.5
    assert 0.4 < np.mean([masking(500, rng).mean() for _ in range(20)]) < 0.55


def test_negatives_are_other_masked_frames():
    rng = np.random.default_rng(0)
    masked = np.array([0, 1, 1, 0, 1, 1, 0])
    drawn = negatives(masked, 200, rng)
    for frame in range(7):
        expected = {1, 2, 4, 5} - {frame} if masked[frame] else {0}
        assert set(drawn[frame].tolist()) == expected
    assert negatives(np.array([0, 1]), 2, rng).tolist() == [[0, 0], [1, 1]]
    assert negatives(np.zeros(2), 2, rng).sum() == 0


def test_a_long_sound_is_cropped():
    task = MaskedSpeech(audio=WaveformField(seconds=0.1, crop="random"), framing=FRAMING, negatives=5)
    samples = waveform(0.3)
    one, other = (examples(task, {"audio": samples}, seed)[0] for seed in (0, 1))
    assert len(one["samples"]) == AUDIO.capacity and (one["samples"] != other["samples"]).any()
    assert one["masked"].shape == (79,) and one["negatives"].shape == (79, 5)
    held = task.for_evaluation()
    first = held.audio.normalized(samples[: AUDIO.capacity])
    for seed in (0, 1):
        np.testing.assert_array_equal(examples(held, {"audio": samples}, seed)[0]["samples"], first)
    assert not task.reads_text and task.row["negatives"].shape == (5,)


def test_words_that_are_spoken():
    assert spoken("  “Don’t”, said he—twice: 'No!' ") == "don't said he twice no"
    assert spoken("Größe_1: 2.5") == "größe 1 2 5" and spoken("…") == ""
