"""The data sets of speech, of packages that are made here."""

import gzip

import pytest
from small_whisper import RATE, sound

from jaxformer.data.fields.sound import SoundField, write_wav
from jaxformer.data.sources.sources import Tfds
from jaxformer.datasets import espeak
from jaxformer.datasets.asterisk_sounds import asterisk_sounds_dataset_builder as asterisk
from jaxformer.datasets.pocketsphinx import pocketsphinx_dataset_builder as pocketsphinx
from jaxformer.datasets.spoken_bible import spoken_bible_dataset_builder as spoken
from jaxformer.errors import InputError

LISTING = """; Core Asterisk Sounds in English

activated: Activated.
agent-user: Agent login.  Please enter your agent number.
ascending-2tone: [ascending tones]
digits/1: one
missing: There is not a sound of this.
"""


def examples(name, split, home):
    """All examples of a split."""
    documents = Tfds(name, split, str(home)).open()
    return [documents[index] for index in range(len(documents))]


@pytest.fixture
def asterisk_package(tmp_path, monkeypatch):
    """Packages with the layout of asterisk-core-sounds-en and its sounds."""
    texts, sounds = tmp_path / "texts", tmp_path / "sounds"
    listing = texts / "usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
    listing.parent.mkdir(parents=True)
    listing.write_bytes(gzip.compress(LISTING.encode()))
    home = sounds / "usr/share/asterisk/sounds/en_US_f_Allison"
    (home / "digits").mkdir(parents=True)
    for seed, name in enumerate(("activated", "agent-user", "ascending-2tone", "digits/1")):
        write_wav(home / f"{name}.wav", sound(0.2, seed), RATE)
    monkeypatch.setattr(asterisk, "package_folder", lambda name, _: str(sounds if name.endswith("-wav") else texts))
    return tmp_path


def test_prompts_are_read_with_their_transcripts(asterisk_package, monkeypatch):
    monkeypatch.setattr(asterisk, "held_out", lambda text: text == "one")
    train, validation = (
        examples("asterisk_sounds/en", split, asterisk_package / "tfds") for split in ("train", "validation")
    )
    assert [one["text"] for one in train] == ["Activated.", "Agent login. Please enter your agent number."]
    assert [one["name"] for one in validation] == ["digits/1"]
    pytest.importorskip("soundfile")
    samples = SoundField().encode(validation[0]["audio"]).samples
    assert len(samples) == 0.2 * RATE and abs(samples - sound(0.2, 3)).max() < 1e-3


def test_a_tenth_of_the_texts_is_held_out():
    texts = [f"number {count}" for count in range(2000)]
    assert 150 < sum(map(asterisk.held_out, texts)) < 250
    assert asterisk.held_out("Please, wait!") == asterisk.held_out("please wait")
    assert asterisk.transcripts("\ufeff; comment\na:  b \t c\nd:\ne: <tone>\n") == {"a": "b c"}


def test_recordings_are_read_with_their_transcripts(tmp_path, monkeypatch):
    home = tmp_path / "usr/share/pocketsphinx/test/data"
    for part, listing in (("librivox", "transcription"), ("cards", "cards.transcription")):
        (home / part).mkdir(parents=True)
        (home / part / listing).write_text(f"<s> some words of {part}  </s> (001)\n\n")
        write_wav(home / part / "001.wav", sound(0.1), RATE)
    monkeypatch.setattr(pocketsphinx, "package_folder", lambda *_: str(tmp_path))
    found = examples("pocketsphinx", "test", tmp_path / "tfds")
    assert sorted(one["text"] for one in found) == ["some words of cards", "some words of librivox"]
    assert {one["name"] for one in found} == {"librivox/001", "cards/001"}
    assert all(one["audio"][:4] == b"RIFF" for one in found)


CHAPTERS = {
    "train": [{"title": f"Genesis {number}", "sentences": ["One verse.", "Another verse!"]} for number in range(1, 5)],
    "validation": [{"title": "Exodus 1", "sentences": ["A held-out verse."]}],
}


PAIRS = {
    "train": [{"en": "A king.", "de": "Ein König.", "reference": "Genesis 1:1"}],
    "validation": [{"en": "A day.", "de": "Ein Tag.", "reference": "Ruth 1:2"}],
    "test": [{"en": "A fish.", "de": "Ein Fisch.", "reference": "Jonah 1:17"}],
}


@pytest.fixture
def without_espeak(monkeypatch):
    """Texts take 1,000 seconds each to read, and the packages with the editions are not downloaded."""

    def speak_all(texts):
        for number, (text, voice) in enumerate(texts):
            yield espeak.Speech(f"RIFF{text}{voice}".encode() + b"\xff", 1000.0, ("a", ""), (0.0, 0.5 + number))

    monkeypatch.setattr(espeak, "load", lambda: None)
    monkeypatch.setattr(espeak, "speak_all", speak_all)
    monkeypatch.setattr(spoken, "chapters", lambda wheel, edition: CHAPTERS)
    monkeypatch.setattr(spoken, "pairs", lambda wheel, language: PAIRS)
    monkeypatch.setattr(spoken.downloads, "package", lambda *_: "")


def test_verses_with_translations_have_the_splits_of_pairs(tmp_path, without_espeak):
    found = {split: examples("spoken_bible/de-en-1h-short", split, tmp_path / "tfds") for split in PAIRS}
    for split, [one] in found.items():
        [pair] = PAIRS[split]
        assert (one["text"], one["translation"], one["name"]) == (pair["de"], pair["en"], pair["reference"])
        assert one["voice"] == "de"


def test_verses_are_spoken_in_an_order_of_their_own(tmp_path, without_espeak):
    train, validation = (
        examples("spoken_bible/web-1h-voices", split, tmp_path / "tfds") for split in ("train", "validation")
    )
    assert len(train) == 4 and len(validation) == 1  # 3,600 seconds of verses that take 1,000 each.
    every = spoken.verses(spoken.of_chapters(CHAPTERS["train"]), tuple("abcd"))
    assert len(every) == 8 and len({one["voice"] for one in every}) > 1
    assert {one["name"] for one in train} == {one["name"] for one in every[:4]}
    assert [one["text"] for one in validation] == ["A held-out verse."]
    assert validation[0]["audio"] == f"RIFFA held-out verse.{validation[0]['voice']}".encode() + b"\xff"
    assert list(validation[0]["phonemes"]) == ["a", ""] and list(validation[0]["phoneme_starts"]) == [0.0, 0.5]
    short = spoken.verses(spoken.of_chapters(CHAPTERS["train"]), ("a",), max_characters=12)
    assert {one["text"] for one in short} == {"One verse."} and short[0]["name"].endswith(":1")
    names = {config.name for config in spoken.Builder.BUILDER_CONFIGS}
    assert names >= {"web", "de-10h", "ru-1h-voices", "web-10h-short", "fr-en", "de-en-10h-short"}


def test_without_espeak_ng_a_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(espeak, "LIBRARY", "libnone.so")
    monkeypatch.setattr(espeak.ctypes.util, "find_library", lambda name: None)
    with pytest.raises(InputError, match=r"espeak-ng is not installed.*apt-get install espeak-ng") as caught:
        examples("spoken_bible/web-1h", "train", tmp_path / "tfds")
    assert "\n" not in str(caught.value)


def test_espeak_ng_reports_phonemes_and_always_reads_the_same():
    try:
        espeak.load()
    except InputError as error:
        pytest.skip(str(error))
    texts = [("In the beginning God created the heavens.", "en-us"), ("Im Anfang.", "de+f2")]
    one, again = (list(espeak.speak_all(texts)) for _ in range(2))
    assert one == again and one[0].phonemes[:2] == ("ɪ", "n")
    assert list(one[0].starts) == sorted(one[0].starts) and 1.5 < one[0].starts[-1] <= one[0].seconds < 4
    with pytest.raises(InputError, match="there is no voice 'nowhere'"):
        list(espeak.speak_all([("A text.", "nowhere")]))
