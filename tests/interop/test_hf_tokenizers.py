"""Tokenizers to folders and from them: `AutoTokenizer` and ours give the same ids."""

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import transformers
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from jaxformer.data.tokenizers import ByteLevelBpe, SentencePiece, WordPiece, load_tokenizer
from jaxformer.data.tokenizers.byte_level import ByteLevelTokenizer
from jaxformer.data.tokenizers.metaspace import MetaspaceTokenizer
from jaxformer.errors import InputError
from jaxformer.interop.huggingface.text.sentence_piece_json import _native
from jaxformer.interop.huggingface.text.tokenizer_folders import check_vocabulary, export_tokenizer, import_tokenizer
from jaxformer.interop.parity import certificate
from jaxformer.interop.parity.hard_strings import HARD_STRINGS

SENTENCE = "the light was called day and darkness night; naïve café über déjà vu 日本語 Ωmega x² 1,234.5 don't"
PAGE = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text(encoding="utf-8")
TEXTS = [{"text": part} for part in PAGE.split("\n\n")] + [{"text": SENTENCE}] * 9
KINDS = {
    "wordpiece": (WordPiece(300), "bert"),
    "cased": (WordPiece(300, lowercase=False), "distilbert"),
    "bytes": (ByteLevelBpe(400), "gpt2"),
    "roberta": (ByteLevelBpe(400), "roberta"),
    "unigram": (SentencePiece(300), "llama"),
    "folded": (SentencePiece(300, lowercase=True), "marian"),
    "bpe": (SentencePiece(300, "bpe"), "llama"),
    "sentinels": (SentencePiece(320, sentinels=20), "t5"),
}
# Letters, spaces, signs that are replaced by others, and whatever there is.
UNICODE = st.text(
    st.one_of(st.sampled_from("thelgdakns TĥÉ.,2²½ﬁ…™ﬀ\u00a0\u3000～がカ한¿"), st.characters(codec="utf-8")),
    max_size=24,
)


@pytest.fixture(scope="module", params=KINDS)
def both(request, tmp_path_factory):
    """Our tokenizer, the one that transformers loads from its export, and the folder."""
    config, family = KINDS[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    ours = config.build(lambda: TEXTS, str(folder / "kept"))
    return ours, exported(ours, folder / "out", family), folder / "out"


def exported(tokenizer, folder, family, **fields):
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": family, "max_position_embeddings": 64}))
    export_tokenizer(tokenizer, folder, **fields)
    return transformers.AutoTokenizer.from_pretrained(folder)


def settled(tokenizer, text):
    """Whether SentencePiece gives a text and its compatibility form the same tokens."""
    from sentencepiece import sentencepiece_model_pb2

    if tokenizer.file != "tokenizer.model":
        return True
    if "native" not in tokenizer.__dict__:
        tokenizer.native = _native(sentencepiece_model_pb2.ModelProto.FromString(tokenizer.serialize()))
    return tokenizer.native(text) == tokenizer.native(unicodedata.normalize("NFKC", text))


@settings(max_examples=150)
@given(UNICODE)
@example("")
@example("   ")
@example("\x85 a\u2003\n ")
@example(" \t the\n\n light  ")
@example("™️ ‼️ ㊗️ ﬁne ½ e\u0301 u\u0308ber か\u3099 \u1112\u1161\u11ab")
def test_both_sides_encode_the_same(both, text):
    ours, theirs, _ = both
    assume(settled(ours, text) and not any(ours.pieces[number] in text for number in ours.special_ids))
    assert theirs(text, add_special_tokens=False).input_ids == ours.encode(text).tolist()


def test_hard_strings(both):
    ours, theirs, _ = both
    for text in HARD_STRINGS:
        assert theirs(text, add_special_tokens=False).input_ids == ours.encode(text).tolist(), text


def test_names_of_special_tokens_are_compared_as_text(both):
    ours, _, folder = both
    line = certificate._tokens(ours, folder)
    assert line.passed, line.note
    assert int(line.where.split()[0]) > len(HARD_STRINGS) + 30


def test_what_is_put_around_a_text(both):
    ours, theirs, folder = both
    tokens = ours.encode("the light").tolist()
    family = json.loads((folder / "config.json").read_text())["model_type"]
    expected = {
        "bert": [ours.cls_id, *tokens, ours.sep_id],
        "distilbert": [ours.cls_id, *tokens, ours.sep_id],
        "roberta": [ours.cls_id, *tokens, ours.sep_id],
        "t5": [*tokens, ours.eos_id],
        "marian": [*tokens, ours.eos_id],
    }
    assert theirs("the light").input_ids == expected.get(family, tokens)
    assert theirs.decode(theirs("the light").input_ids, skip_special_tokens=True).strip() == "the light"
    assert theirs.model_max_length == 64 and theirs.pad_token_id == ours.pad_id
    assert len(theirs) == ours.vocab_size
    if family == "bert":
        two = theirs("the", "light")
        assert two.input_ids.count(ours.sep_id) == 2 and two.token_type_ids[-1] == 1
        assert theirs("a [MASK] b").input_ids[1:-1] == ours.encode_with_masks("a [MASK] b").tolist()
    if family == "t5":
        text = "the <extra_id_0> light <extra_id_1>"
        assert theirs(text).input_ids[:-1] == ours.encode_with_sentinels(text).tolist()


def test_a_beginning_token(tmp_path):
    ours = SentencePiece(300).build(lambda: TEXTS, str(tmp_path / "kept"))
    theirs = exported(ours, tmp_path / "out", "llama", beginning=True)
    assert theirs("the light").input_ids == [ours.bos_id, *ours.encode("the light")]
    assert theirs.bos_token_id == ours.bos_id and theirs.eos_token_id == ours.eos_id


def test_an_export_is_imported(both, tmp_path):
    ours, _, folder = both
    read = import_tokenizer(folder)
    assert read.pieces == ours.pieces and read.special_ids == ours.special_ids
    assert np.array_equal(read.word_start, ours.word_start)
    read.save(str(tmp_path / "kept"))
    kept = load_tokenizer(str(tmp_path / "kept"))
    for text in (*HARD_STRINGS, "the [MASK] light [MASK].", "<extra_id_0> the<extra_id_3>"):
        ids = ours.encode(text)
        for other in (read, kept):
            assert np.array_equal(other.encode(text), ids)
            assert other.decode(ids) == ours.decode(ids)
            assert np.array_equal(other.encode_with_masks(text), ours.encode_with_masks(text))
            assert np.array_equal(other.encode_with_sentinels(text), ours.encode_with_sentinels(text))
    assert [read.piece(number) for number in range(read.vocab_size)] == list(map(ours.piece, range(ours.vocab_size)))
    again = tmp_path / "again"
    again.mkdir()
    export_tokenizer(read, again, json.loads((folder / "config.json").read_text())["model_type"])
    assert json.loads((again / "tokenizer.json").read_text()) == json.loads((folder / "tokenizer.json").read_text())


@pytest.mark.parametrize("name", ["wordpiece", "cased", "bytes", "unigram", "sentinels"])
def test_older_files_say_the_same(name, tmp_path):
    """vocab.txt, vocab.json with merges.txt, and SentencePiece models, where there is no tokenizer.json."""
    config, family = KINDS[name]
    ours = config.build(lambda: TEXTS, str(tmp_path / "kept"))
    exported(ours, tmp_path / "out", family)
    (tmp_path / "out" / "tokenizer.json").unlink()
    (tmp_path / "out" / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": name != "cased"}))
    read = import_tokenizer(tmp_path / "out")
    assert read.pieces == ours.pieces and type(read) is type(ours)
    assert all(np.array_equal(read.encode(text), ours.encode(text)) for text in HARD_STRINGS)


def test_sentinels_after_a_model_of_t5(tmp_path):
    ours = SentencePiece(300).build(lambda: TEXTS, str(tmp_path / "kept"))
    (tmp_path / "spiece.model").write_bytes(ours.serialize())
    assert import_tokenizer(tmp_path).pieces == ours.pieces
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    assert import_tokenizer(tmp_path).sentinel_ids[[0, 99]].tolist() == [399, 300]
    (tmp_path / "tokenizer_config.json").write_text('{"extra_ids": 7}')
    assert import_tokenizer(tmp_path).vocab_size == 307
    (tmp_path / "added_tokens.json").write_text('{"<a>": 300, "<b>": 301}')
    assert import_tokenizer(tmp_path).pieces[300:] == ["<a>", "<b>"]
    (tmp_path / "added_tokens.json").write_text('{"<a>": 310}')
    with pytest.raises(InputError, match=r"added tokens have the ids \[310\]; expected consecutive ids from 300 on"):
        import_tokenizer(tmp_path)


def test_roles_of_other_names(tmp_path):
    """The end token is what tokenizer_config.json says, through a run's folder and out again."""
    ours = ByteLevelBpe(400).build(lambda: TEXTS, str(tmp_path / "kept"))
    exported(ours, tmp_path / "out", "qwen3")
    config = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    config["model"]["vocab"]["<|im_end|>"] = 400
    config["added_tokens"].append(config["added_tokens"][0] | {"id": 400, "content": "<|im_end|>"})
    (tmp_path / "out" / "tokenizer.json").write_text(json.dumps(config))
    (tmp_path / "out" / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|im_end|>"}}')
    read = import_tokenizer(tmp_path / "out")
    read.save(str(tmp_path / "run"))
    kept = load_tokenizer(str(tmp_path / "run"))
    assert read.eos_id == kept.eos_id == 400 and kept.is_special[400] and kept.bos_id == ours.bos_id
    assert 400 not in kept.encode("a<|im_end|>")
    assert exported(kept, tmp_path / "again", "qwen3").eos_token_id == 400


@pytest.fixture(scope="module")
def marian(tmp_path_factory):
    """A folder of Marian's, whose languages have models of their own."""
    folder = tmp_path_factory.mktemp("marian")
    pieces = ["</s>", "<unk>", ">>fra<<"]
    for name, texts in (("source", TEXTS[::2]), ("target", TEXTS[1::2])):
        model = SentencePiece(200).build(lambda texts=texts: texts, str(folder / name))
        (folder / f"{name}.spm").write_bytes(model.serialize())
        pieces += [piece for piece in model.pieces[5:-3] if piece not in pieces]
    (folder / "vocab.json").write_text(json.dumps({piece: n for n, piece in enumerate([*pieces, "<pad>"])}))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "MarianTokenizer"}')
    return folder


@settings(max_examples=50)
@given(UNICODE)
@example(">>fra<<the light")
def test_marian_has_two_models(marian, text):
    ours, theirs = import_tokenizer(marian), transformers.MarianTokenizer.from_pretrained(marian)
    assume(not any(name in text for name in theirs.all_special_tokens))
    assert theirs(text).input_ids == [*ours.encode(text), ours.eos_id]
    assert theirs(text_target=text).input_ids == [*ours.target.encode(text), ours.eos_id]


def test_marian_reads_names_of_special_tokens_as_text(marian):
    line = certificate._tokens(import_tokenizer(marian), marian)
    assert line.passed, line.note


def test_marian_knows_the_positions_of_tokens(marian):
    ours = import_tokenizer(marian)
    for text in ("the light", ">>de<< the light"):
        ids, offsets = ours.encode_with_offsets(text)
        assert ids.tolist() == ours.encode(text).tolist() and len(ids) == len(offsets)
        assert "".join(text[start:stop] for start, stop in offsets) == text.replace(" ", "")


def test_marian_travels(marian, tmp_path):
    read = import_tokenizer(marian)
    assert (read.eos_id, read.unk_id, read.pad_id) == (0, 1, read.vocab_size - 1)
    assert not np.array_equal(read.encode("called darkness"), read.target.encode("called darkness"))
    assert read.decode([*read.target.encode("called darkness"), read.eos_id, read.pad_id]) == "called darkness"
    read.save(str(tmp_path / "kept"))
    theirs = exported(load_tokenizer(str(tmp_path / "kept")), tmp_path / "out", "marian")
    assert theirs("the light").input_ids == [*read.encode("the light"), 0]


def test_llamas_way_of_spelling(tmp_path):
    """A BPE with bytes for what it has no piece for, and spaces in the normalizer."""
    import tokenizers
    from tokenizers import decoders, normalizers

    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    vocab = {piece: n for n, piece in enumerate([*specials, *"▁aint", "▁a", "in", "it"])}
    model = tokenizers.models.BPE(
        vocab, [("▁", "a"), ("i", "n"), ("i", "t")], unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    ends = [decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), *ends])
    tokenizer.add_special_tokens(specials[:3])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    read = import_tokenizer(tmp_path)
    assert isinstance(read, MetaspaceTokenizer)
    ids = read.encode("a tin é")
    assert [read.pieces[n] for n in ids] == ["▁a", "▁", "t", "in", "▁", "<0xC3>", "<0xA9>"]
    assert read.decode(ids) == "a tin é" and read.decode(ids[:-1]) == "a tin \ufffd"
    assert [read.pieces[n] for n in read._encode_continuation("a")] == ["a"]
    assert (read.bos_id, read.eos_id, read.unk_id) == (1, 2, 0)


def test_bad_folders(tmp_path):
    cases = [
        ({}, "no tokenizer in the folder; expected one of tokenizer.json"),
        ({"tokenizer.json": "{"}, "not a tokenizer.json"),
        (
            {"tokenizer.json": '{"model": {"type": "BPE", "vocab": {}, "merges": []}}'},
            "a BPE model whose pieces are not those of",
        ),
        ({"tokenizer.model": "what"}, "not a SentencePiece model"),
        ({"vocab.txt": "a\n"}, r"the vocabulary has no \[UNK\]"),
        ({"vocab.json": "[]", "merges.txt": "a b"}, "not the vocabulary and the merges"),
        ({"source.spm": "what", "target.spm": "", "vocab.json": "{}"}, "not a SentencePiece model"),
        ({"source.spm": "what", "vocab.json": "{}"}, "target.spm: no such file"),
        ({"tokenizer.json": "{}", "tokenizer_config.json": "[]"}, "expected a JSON object"),
    ]
    for number, (files, words) in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, content in files.items():
            (folder / name).write_text(content)
        with pytest.raises(InputError, match=words) as caught:
            import_tokenizer(folder)
        assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_a_vocabulary_may_be_padded_but_not_too_small(tmp_path):
    ours = WordPiece(300).build(lambda: TEXTS, str(tmp_path / "kept"))
    for size in (ours.vocab_size, ours.vocab_size + 56):
        check_vocabulary(ours, size, tmp_path)
    with pytest.raises(
        InputError, match=f"the tokenizer has {ours.vocab_size} pieces, the model has a vocabulary of 64;"
    ):
        check_vocabulary(ours, 64, tmp_path)


def test_a_byte_level_export_has_its_old_files_too(tmp_path):
    ours = ByteLevelBpe(400).build(lambda: TEXTS, str(tmp_path / "kept"))
    exported(ours, tmp_path / "out", "gpt2")
    again = ByteLevelBpe(path=str(tmp_path / "out" / "vocab.json")).build(None, str(tmp_path / "again"))
    assert isinstance(again, ByteLevelTokenizer) and again.pieces == ours.pieces
