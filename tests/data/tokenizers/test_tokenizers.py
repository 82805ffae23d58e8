import json
import pickle
import re

import numpy as np
import pytest

from jaxformer.data.tokenizers import ByteLevelBpe, SentencePiece, WordPiece, load_tokenizer
from jaxformer.data.tokenizers.byte_level import ByteLevelTokenizer
from jaxformer.errors import InputError

VERSE = "In the beginning, God created the heavens and the earth."
TEXTS = [
    {"text": f"{VERSE}\nThe {a} of the {b} said: let there be {c}'s {a}, and there was; {b}!"}
    for a in ("earth", "waters", "sky", "lights", "fruit")
    for b in ("deep", "garden", "morning", "evening", "Jerusalem")
    for c in ("light", "day", "night", "darkness")
]


@pytest.fixture(scope="module", params=[SentencePiece(60), WordPiece(90, lowercase=False), ByteLevelBpe(330)])
def config(request):
    return request.param


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    return config.build(lambda: TEXTS, str(tmp_path_factory.mktemp("run") / "tokenizer"))


def test_ids_and_round_trip(trained, config):
    assert [trained.pad_id, trained.unk_id, trained.cls_id, trained.sep_id, trained.mask_id] == [*range(5)]
    assert trained.vocab_size == config.vocab and sorted(trained.special_ids) == [*range(5)]
    ids = trained.encode(VERSE)
    assert ids.dtype == np.int32 and ids.min() >= 5
    spaced = VERSE
    assert trained.decode(ids) == spaced
    assert trained.decode([trained.cls_id, *ids, trained.sep_id, trained.pad_id]) == spaced
    batch = trained.encode_batch([VERSE, "", "God"])
    assert np.array_equal(batch[0], ids) and len(batch[1]) == 0
    assert np.array_equal(batch[2], trained.encode("God"))


def test_masks_of_a_corpus_are_text(trained):
    assert trained.mask_id not in trained.encode("the [MASK] of")
    assert trained.cls_id not in trained.encode("[CLS] the [SEP]")


@pytest.mark.parametrize(
    "text, without",
    [
        ("In the [MASK] God", "In the God"),
        ("God [MASK], and the earth [MASK].", "God, and the earth."),
        ("[MASK]", ""),
        ("[MASK] [MASK] the", "the"),
    ],
)
def test_a_mask_is_one_token_and_keeps_its_context(trained, text, without):
    ids = trained.encode_with_masks(text)
    assert np.sum(ids == trained.mask_id) == text.count("[MASK]")
    if isinstance(trained, ByteLevelTokenizer):  # To it a space is a part of the word after it, at the beginning too.
        without = re.sub(r"\s*\[MASK\]", "", text)
    assert np.array_equal(ids[ids != trained.mask_id], trained.encode(without))
    assert trained.decode(ids).split() == text.split()


@pytest.mark.parametrize("text", [VERSE, " God  created naïve\nlight\t日本 the 😀 earth ", "", "e\u0301a", "[MASK]"])
def test_tokens_have_the_offsets_of_their_characters(trained, text):
    ids, offsets = trained.encode_with_offsets(text)
    assert np.array_equal(ids, trained.encode(text)) and offsets.shape == (len(ids), 2)
    covered = np.zeros(len(text), bool)
    for start, stop in offsets:
        assert start == stop or not text[start].isspace()
        covered[start:stop] = True
    assert all(covered[place] for place, letter in enumerate(text) if not letter.isspace() and letter != "\u0301")
    if text == VERSE:
        for number, (start, stop) in zip(ids, offsets, strict=True):
            assert trained.piece(number).strip("…␣") == text[start:stop]


def test_pieces_are_readable(trained):
    pieces = [trained.piece(number) for number in range(trained.vocab_size)]
    assert not any(sign in "".join(pieces) for sign in ("▁", "##"))
    assert all(pieces)
    starts = trained.word_start
    assert starts.dtype == bool and starts.shape == (trained.vocab_size,) and starts[:5].all()
    assert any(piece.startswith("…") for piece in pieces)
    assert all(starts[number] != piece.startswith("…") for number, piece in enumerate(pieces))
    assert trained.word_start[trained.encode(" the,")].all()
    words = trained.encode("God the earthheavens")[len(trained.encode("God")) :]
    assert trained.word_start[words].sum() == 2 < len(words)


def test_training_is_deterministic_and_done_once(config, trained, tmp_path):
    folder = str(tmp_path / "tokenizer")
    first = config.build(lambda: TEXTS, folder)
    assert first.serialize() == trained.serialize()
    loaded = config.build(None, folder)  # nothing to train on: it must be the kept one
    assert loaded.serialize() == load_tokenizer(folder).serialize() == first.serialize()
    copied = pickle.loads(pickle.dumps(first))
    assert np.array_equal(copied.encode(VERSE), first.encode(VERSE))
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer"]


@pytest.mark.parametrize(
    "text", ["", " ", "a\nb  c\t", "naïve 日本 😀👩‍👩‍👧", "e\u0301 [MASK] <|endoftext|>", "\x00\ufffd"]
)
def test_byte_level_bpe_encodes_every_text(tmp_path_factory, text):
    tokenizer = ByteLevelBpe(300).build(lambda: TEXTS, str(tmp_path_factory.getbasetemp() / "bytes"))
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and not tokenizer.is_special[ids].any()
    pieces = [tokenizer.piece(number) for number in tokenizer.ordinary_ids]
    assert len(set(pieces)) == len(pieces) and all(piece.isprintable() for piece in pieces)


def test_characters_of_several_tokens(tmp_path):
    """An incomplete character is a mark at the end, and nothing else changes when it is completed."""
    tokenizer = ByteLevelBpe(300).build(lambda: TEXTS, str(tmp_path / "t"))
    text = "the é日😀 heavens"
    ids = tokenizer.encode(text)
    shown = [tokenizer.decode(ids[:count]) for count in range(len(ids) + 1)]
    assert shown[-1] == text and any(part.endswith("\ufffd") for part in shown)
    assert all(text.startswith(part.rstrip("\ufffd")) for part in shown)


def test_byte_level_files(tmp_path):
    trained = ByteLevelBpe(330).build(lambda: TEXTS, str(tmp_path / "a"))
    model = json.loads(trained.serialize())["model"]
    for vocab, merges in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
        folder = tmp_path / vocab.removesuffix(".json")
        folder.mkdir()
        (folder / vocab).write_text(json.dumps(model["vocab"]))
        (folder / merges).write_text("\n".join(["#version: 0.2", *map(" ".join, model["merges"]), ""]))
        for path in (folder, folder / vocab):
            loaded = ByteLevelBpe(path=str(path)).build(None, str(tmp_path / f"{vocab}-{path.name}"))
            assert loaded.pieces == trained.pieces and loaded.special_ids == trained.special_ids
            assert np.array_equal(loaded.encode(VERSE), trained.encode(VERSE))
    (folder / merges).write_text("a b c\n")
    with pytest.raises(InputError, match="not the vocabulary and the merges of a BPE") as caught:
        ByteLevelBpe(path=str(folder)).build(None, str(tmp_path / "b"))
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="a tokenizer of the kind ByteLevel; expected WordPiece"):
        WordPiece(path=str(tmp_path / "a")).build(None, str(tmp_path / "b"))
    with pytest.raises(InputError, match=r"tokenizer.vocab=260: the bytes and special pieces need 261"):
        ByteLevelBpe(260)


def test_a_vocabulary_with_separators_of_lines(tmp_path):
    (tmp_path / "vocab.txt").write_bytes("[UNK]\n\u2028\na\x85b\n[CLS]\r\n".encode())
    tokenizer = WordPiece(path=str(tmp_path)).build(None, str(tmp_path / "t"))
    assert tokenizer.pieces == ["[UNK]", "\u2028", "a\x85b", "[CLS]"]


def test_training_is_silent(config, tmp_path, capfd):
    config.build(lambda: TEXTS, str(tmp_path / "tokenizer"))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("model_type", ["unigram", "bpe"])
def test_sentinels_follow_all_other_pieces(tmp_path, model_type):
    plain = SentencePiece(60, model_type).build(lambda: TEXTS, str(tmp_path / "plain"))
    tokenizer = SentencePiece(70, model_type, sentinels=10).build(lambda: TEXTS, str(tmp_path / "t"))
    assert tokenizer.vocab_size == 70 and tokenizer.pieces[:60] == plain.pieces
    assert tokenizer.pieces[60:] == [f"<extra_id_{n}>" for n in range(9, -1, -1)]
    assert tokenizer.sentinel_ids.tolist() == [*range(69, 59, -1)] and tokenizer.sentinel_ids.dtype == np.int32
    assert tokenizer.is_special[60:].all() and not np.isin(tokenizer.sentinel_ids, tokenizer.ordinary_ids).any()
    assert plain.sentinel_ids.tolist() == []
    text = f"<extra_id_0> {VERSE} <extra_id_9>"
    ids = tokenizer.encode(text)
    assert np.array_equal(ids, plain.encode(text)) and ids.max() < 60
    kept = load_tokenizer(str(tmp_path / "t"))
    assert kept.serialize() == tokenizer.serialize() and np.array_equal(kept.encode(text), ids)


def test_a_loaded_model_gets_sentinels(tmp_path):
    SentencePiece(60).build(lambda: TEXTS, str(tmp_path / "a"))
    path = str(tmp_path / "a" / "tokenizer.model")
    more = SentencePiece(path=path, sentinels=3).build(None, str(tmp_path / "b"))
    assert more.pieces[60:] == ["<extra_id_2>", "<extra_id_1>", "<extra_id_0>"]
    path = str(tmp_path / "b" / "tokenizer.model")
    for count in (0, 3):
        same = SentencePiece(path=path, sentinels=count).build(None, str(tmp_path / f"c{count}"))
        assert same.serialize() == more.serialize()
    with pytest.raises(InputError, match=r"tokenizer.sentinels=4: the model has 3 of its own; set 3"):
        SentencePiece(path=path, sentinels=4).build(None, str(tmp_path / "d"))
    capped = SentencePiece(6000, sentinels=100).build(lambda: TEXTS, str(tmp_path / "e"))
    assert 100 < capped.vocab_size < 6000 and len(capped.sentinel_ids) == 100
    for count in (-1, 4096):
        with pytest.raises(InputError, match=f"tokenizer.sentinels={count}: expected at least 0, below"):
            SentencePiece(sentinels=count)


def test_sentinels_are_encoded_and_decoded(tmp_path, sentinel_tokenizer):
    trained = SentencePiece(70, sentinels=10).build(lambda: TEXTS, str(tmp_path / "t"))
    for tokenizer, words in [(trained, ("the", "heavens", "God")), (sentinel_tokenizer, ("w1", "w2", "w3"))]:
        text = "{} <extra_id_0> {} <extra_id_9> {}".format(*words)
        ids = tokenizer.encode_with_sentinels(text)
        first, last = tokenizer.sentinel_ids[[0, 9]]
        assert (ids == first).sum() == (ids == last).sum() == 1
        assert np.array_equal(ids[: np.flatnonzero(ids == first)[0]], tokenizer.encode(words[0]))
        assert tokenizer.decode(ids) == text
        assert np.array_equal(tokenizer.encode_with_sentinels(words[0]), tokenizer.encode(words[0]))


def test_generated_ids_can_be_decoded(trained):
    ids = trained.encode("the heavens")
    written = [trained.pad_id, trained.cls_id, *ids, trained.eos_id, trained.pad_id, trained.vocab_size, 10**6, -1]
    assert trained.decode(written) == "the heavens" == trained.decode(np.array(written))
    assert trained.decode([trained.eos_id]) == trained.decode([]) == ""


def test_a_text_ends_and_begins(trained):
    assert trained.eos_id == trained.sep_id and trained.bos_id == trained.cls_id


@pytest.mark.parametrize(
    "pieces, begin, end",
    [
        (["<pad>", "</s>", "<unk>", "[UNK]"], None, 1),
        (["[UNK]", "<s>", "</s>", "<unk>"], 1, 2),
        (["[UNK]", "a", "<|endoftext|>"], 2, 2),
        (["[UNK]", "<|begin_of_text|>", "<|end_of_text|>"], 1, 2),
        (["[UNK]", "<bos>", "<eos>", "<pad>"], 1, 2),
    ],
)
def test_a_text_ends_and_begins_in_other_families(tmp_path, pieces, begin, end):
    (tmp_path / "vocab.txt").write_text("\n".join(pieces))
    tokenizer = WordPiece(path=str(tmp_path)).build(None, str(tmp_path / "t"))
    assert tokenizer.eos_id == end and tokenizer.is_special[end]
    if begin is not None:
        assert tokenizer.bos_id == begin and tokenizer.is_special[begin]
    else:
        with pytest.raises(InputError, match="no <s> or <bos>"):
            _ = tokenizer.bos_id


def test_lowercase(tmp_path):
    for config in (SentencePiece(60, lowercase=True), WordPiece(90)):
        tokenizer = config.build(lambda: TEXTS, str(tmp_path / type(config).__name__))
        assert np.array_equal(tokenizer.encode("GOD"), tokenizer.encode("god"))


def test_pairs_of_languages_train_on_both(tmp_path):
    pairs = [{"en": "the light", "de": "das Licht", "n": 3}] * 9
    tokenizer = WordPiece(60).build(lambda: pairs, str(tmp_path / "t"))
    assert tokenizer.unk_id not in tokenizer.encode("light Licht")


def test_load_from_files(tmp_path):
    sentencepiece = SentencePiece(60).build(lambda: TEXTS, str(tmp_path / "a"))
    wordpiece = WordPiece(90).build(lambda: TEXTS, str(tmp_path / "b"))
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("\n".join(wordpiece.pieces) + "\n")
    for number, config in enumerate(
        [
            SentencePiece(path=str(tmp_path / "a" / "tokenizer.model")),
            WordPiece(path=str(tmp_path / "b" / "tokenizer.json")),
            WordPiece(path=str(tmp_path / "b")),
            WordPiece(path=str(vocab)),
        ]
    ):
        tokenizer = config.build(None, str(tmp_path / f"kept{number}"))
        original = wordpiece if number else sentencepiece
        assert np.array_equal(tokenizer.encode(VERSE), original.encode(VERSE))


def test_special_names_of_other_families(tmp_path):
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("<s>\n<pad>\n</s>\n[UNK]\na\n<mask>\n")
    tokenizer = WordPiece(path=str(vocab)).build(None, str(tmp_path / "t"))
    ids = [tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id]
    assert [*ids, tokenizer.mask_id] == [1, 3, 0, 2, 5]
    assert list(tokenizer.ordinary_ids) == [4]


def test_errors_are_one_line(tmp_path):
    (tmp_path / "vocab.txt").write_text("[UNK]\n[CLS]\na\nb\n")
    (tmp_path / "bad.model").write_bytes(b"bad")
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")

    def build(config, folder="t"):
        return config.build(lambda: TEXTS, str(tmp_path / folder))

    maskless = build(WordPiece(path=str(tmp_path / "vocab.txt")))
    for action, words in [
        (lambda: maskless.mask_id, r"has no \[MASK\] or <mask>"),
        (lambda: build(SentencePiece(path=str(tmp_path / "none")), "u"), "none: no such file"),
        (
            lambda: build(SentencePiece(path=str(tmp_path / "bad.model")), "u"),
            "bad.model: not a Se",
        ),
        (
            lambda: build(WordPiece(path=str(tmp_path / "tokenizer.json")), "u"),
            "not a tokenizer.json",
        ),
        (lambda: build(WordPiece(path=str(tmp_path / "empty")), "u"), "empty: .*neither"),
        (lambda: build(WordPiece(90), "file/t"), "cannot be saved"),
        (lambda: load_tokenizer(str(tmp_path / "empty")), "holds no tokenizer"),
    ]:
        with pytest.raises(InputError, match=words) as caught:
            action()
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*tmp*"))
