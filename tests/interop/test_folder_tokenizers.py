"""Tokenizers of other folders: added tokens, special tokens and templates are those of AutoTokenizer."""

import io
import json

import pytest
import sentencepiece
import tokenizers
import transformers
from test_hf_tokenizers import TEXTS

from jaxformer.data.examples import Visit
from jaxformer.data.tasks import layouts
from jaxformer.data.tasks.seq2seq import TextToText
from jaxformer.data.tokenizers import ByteLevelBpe, WordPiece, load_tokenizer
from jaxformer.data.tokenizers.special_tokens import NAMES
from jaxformer.interop.huggingface.text.sentence_piece_json import to_json_tokenizer
from jaxformer.interop.huggingface.text.tokenizer_folders import export_tokenizer, import_tokenizer
from jaxformer.interop.parity import certificate
from jaxformer.interop.parity.hard_strings import HARD_STRINGS, NAMED_STRINGS

ADDED = ("foo bar", "foobar", "a foo b", "(foo)", "foo", "Foo foo<new>bar", "x <new> y")
ROBERTA_NAMES = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def trained_bpe(special):
    """The vocabulary and merges of a byte-level BPE whose text often has `<s>` and `<unk>`, which become words."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=special,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator([text["text"] for text in TEXTS] + ["<s>", "<unk>"] * 400, trainer)
    return json.loads(bpe.to_str())["model"]


def sentencepiece_model(kind):
    """A model with the special pieces and the normalization of T5's, LLaMA's or Gemma's."""
    t5 = {"model_type": "unigram", "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    llama = {"model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity"}
    llama |= {"remove_extra_whitespaces": False, "allow_whitespace_only_pieces": True}
    gemma = llama | {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3, "add_dummy_prefix": False}
    gemma |= {"eos_piece": "<eos>", "bos_piece": "<bos>", "control_symbols": ["<mask>"]}
    model, sentences = io.BytesIO(), (line for text in TEXTS for line in text["text"].split("\n"))
    forms = {"t5": t5, "llama": llama, "gemma3_text": gemma}
    settings = forms[kind] | {"vocab_size": 400, "hard_vocab_limit": False, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=sentences, model_writer=model, **settings)
    return model.getvalue()


def write(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        text = content if isinstance(content, str | bytes) else json.dumps(content)
        data = text if isinstance(text, bytes) else text.encode()
        (folder / name.replace("__", ".")).write_bytes(data)
    return folder


def byte_level_folder(folder, family, special, **settings):
    model = trained_bpe(special)
    merges = "\n".join(pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"])
    return write(
        folder,
        config__json={"model_type": family},
        vocab__json=model["vocab"],
        merges__txt=f"#version: 0.2\n{merges}\n",
        tokenizer_config__json=settings,
    )


def folder_of(kind, path):
    """A folder with the files of older versions of transformers, and two added tokens."""
    decoder = {"content": "foo", "lstrip": False, "rstrip": False, "single_word": False, "normalized": True}
    decoder |= {"special": False}
    if kind == "bert":
        WordPiece(300).build(lambda: TEXTS, str(path / "kept"))
        vocab = "".join(f"{piece}\n" for piece in load_tokenizer(str(path / "kept")).pieces)
        files = {"vocab__txt": vocab, "added_tokens__json": {"foo": 300, "<new>": 301}}
        return write(path / "out", config__json={"model_type": "bert"}, **files)
    if kind in ("t5", "llama", "gemma3_text"):
        new = {"400": decoder, "401": decoder | {"content": "<new>", "special": True, "normalized": False}}
        settings = {"extra_ids": 0, "added_tokens_decoder": new, "add_bos_token": kind != "t5", "legacy": False}
        name = "spiece__model" if kind == "t5" else "tokenizer__model"
        files = {name: sentencepiece_model(kind), "tokenizer_config__json": settings}
        return write(path / "out", config__json={"model_type": kind}, **files)
    special = {"gpt2": ["<|endoftext|>"], "qwen3": ["<|endoftext|>"]}.get(kind, ROBERTA_NAMES)
    folder = byte_level_folder(path / "out", kind, special)
    size = len(json.loads((folder / "vocab.json").read_text()))
    return write(folder, added_tokens__json={"foo": size, "<new>": size + 1})


def special_on_both_sides(ours, theirs):
    """Special tokens that transformers finds in texts, and that are plain text here."""
    found = {token.content for token in theirs.added_tokens_decoder.values() if token.special}
    return found & {ours.pieces[number] for number in ours.special_ids}


def assert_equal_tokens(ours, theirs, texts):
    special = special_on_both_sides(ours, theirs)
    compared = [text for text in texts if not any(name in text for name in special)]
    for text in compared:
        assert theirs(text, add_special_tokens=False).input_ids == ours.encode(text).tolist(), text
    return compared


@pytest.mark.parametrize("kind", ["bert", "gpt2", "roberta", "bart", "qwen3", "t5", "llama", "gemma3_text"])
def test_added_tokens_beside_older_files(kind, tmp_path):
    folder = folder_of(kind, tmp_path)
    ours, theirs = import_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert len(theirs) == ours.vocab_size
    assert ours.pieces == theirs.convert_ids_to_tokens(range(len(theirs)))
    texts = [text for text in HARD_STRINGS if kind != "llama" or not text.startswith(" ")]
    compared = assert_equal_tokens(ours, theirs, (*texts, *ADDED, *NAMED_STRINGS))
    assert set(ADDED[:5]) <= set(compared)
    foo = ours.pieces.index("foo")
    assert ours.encode("foo bar")[0] == foo and foo in ours.encode("a foo b") and not ours.is_special[foo]
    assert ours.is_special[ours.pieces.index("<new>")] == (kind in ("t5", "llama", "gemma3_text"))
    ours.save(str(tmp_path / "run"))
    kept = load_tokenizer(str(tmp_path / "run"))
    (tmp_path / "again").mkdir()
    export_tokenizer(kept, tmp_path / "again", kind)
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert_equal_tokens(kept, again, (*HARD_STRINGS, *ADDED, *NAMED_STRINGS))


@pytest.mark.parametrize("kind", ["bert", "gpt2", "roberta", "bart", "qwen3", "t5", "llama", "gemma3_text"])
def test_layouts_are_those_of_the_class(kind, tmp_path):
    folder = folder_of(kind, tmp_path)
    ours, theirs = import_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    first, second = ours.encode("the light"), ours.encode("the darkness was")
    form = "encoder" if kind in ("bert", "roberta", "bart") else "decoder"
    one, two = layouts.lay_out(ours, form, 99, first), layouts.lay_out(ours, form, 99, first, second)
    assert one.tokens.tolist() == theirs("the light").input_ids
    both = theirs("the light", "the darkness was")
    assert two.tokens.tolist() == both.input_ids
    if kind == "bert":
        assert two.token_types.tolist() == both.token_type_ids
    for text, start in zip((first, second), two.starts, strict=True):
        assert two.tokens[start : start + len(text)].tolist() == text.tolist()
    assert ours.template(form).num_special_tokens(pair=True) == theirs.num_special_tokens_to_add(pair=True)


@pytest.mark.parametrize("kind", ["roberta", "bart"])
def test_a_mask_includes_the_space_before_it_in_an_export(kind, tmp_path):
    ours = import_tokenizer(folder_of(kind, tmp_path))
    out = write(tmp_path / "again", config__json={"model_type": kind})
    export_tokenizer(ours, out)
    theirs = transformers.AutoTokenizer.from_pretrained(out)
    for text in ("the [MASK] was", "[MASK] was the[MASK]."):
        expected = ours.encode_with_masks(text).tolist()
        assert theirs(text.replace("[MASK]", "<mask>"), add_special_tokens=False).input_ids == expected


def test_words_with_names_of_special_tokens_stay_words(tmp_path):
    """Qwen's vocabulary has `<s>` as a piece of markup: no side makes it special, before or after an export."""
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None, "unk_token": None}
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    folder = byte_level_folder(tmp_path / "out", "qwen3", special, **names, tokenizer_class="Qwen2Tokenizer")
    ours, theirs = import_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert {"<s>", "<unk>"} <= set(ours.pieces)
    assert [ours.pieces[number] for number in ours.special_ids] == ["<|endoftext|>", "<|im_end|>"]
    assert_equal_tokens(ours, theirs, (*HARD_STRINGS, *NAMED_STRINGS))
    (tmp_path / "again").mkdir()
    export_tokenizer(ours, tmp_path / "again", "qwen3")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    compared = assert_equal_tokens(ours, again, (*HARD_STRINGS, *NAMED_STRINGS))
    assert "a<s>b" in compared
    assert set(again.all_special_tokens) == {"<|endoftext|>", "<|im_end|>"}
    assert (again.eos_token, again.pad_token, again.bos_token) == ("<|im_end|>", "<|endoftext|>", None)


def test_the_names_of_all_special_tokens_are_hard_strings():
    for names in NAMES.values():
        for name in names:
            assert any(name in text and not text.startswith(name) for text in NAMED_STRINGS)


def test_a_decoder_that_never_begins_names_no_beginning_token(tmp_path):
    """lm_eval puts the beginning token before a text, or the end token where there is none, as the run itself does."""
    ours = ByteLevelBpe(400).build(lambda: TEXTS, str(tmp_path / "kept"))
    for beginning, expected in ((False, None), (True, "[CLS]")):
        folder = tmp_path / str(beginning)
        write(folder, config__json={"model_type": "gpt2"})
        export_tokenizer(ours, folder, beginning=beginning)
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        assert theirs.bos_token == expected and theirs.eos_token == "[SEP]"
        assert import_tokenizer(folder).own_template.num_special_tokens() == beginning


def llama2_folder(path):
    """A folder as LLaMA-2's, whose tokenizer.json transformers 5 replaces by its class's own rules."""
    folder = write(path, tokenizer__model=sentencepiece_model("llama"))
    written = to_json_tokenizer((folder / "tokenizer.model").read_bytes())
    written.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer.model").unlink()
    config = {"model_type": "llama", "vocab_size": 400}
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}
    return write(folder, config__json=config, tokenizer_config__json=settings)


def test_a_refusal_names_the_strings_that_differ_and_the_flag(tmp_path):
    folder = llama2_folder(tmp_path / "hf")
    ours, theirs = import_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    assert theirs(" ", add_special_tokens=False).input_ids != ours.encode(" ").tolist()
    line = certificate._tokens(ours, folder)
    differing = ("  Leading, trailing  and   double spaces  ", " ")
    assert not line.passed and line.measured == len(differing)
    told = certificate._refusal([line])
    assert f"differ in 2 under transformers {transformers.__version__}: '  Leading, trailing" in told
    assert "--no-certificate" in told and "\n" not in told


@pytest.mark.parametrize("kind", ["bart", "t5"])
def test_an_encoder_decoder_reads_what_transformers_gives_it(kind, tmp_path):
    folder = folder_of(kind, tmp_path)
    ours, theirs = import_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    expected = theirs("the light was").input_ids
    pair = TextToText(99).encode({"inputs": "the light was", "targets": "called day"}, ours)
    for limit in (99, len(expected), len(expected) - 1):
        [example] = TextToText(limit).examples(pair, Visit(ours, None, None))
        fits = limit >= len(expected)
        assert example["inputs"].tolist() == (expected if fits else [*expected[: limit - 1], expected[-1]])
        assert bool(TextToText(limit, too_long="drop").examples(pair, Visit(ours, None, None))) == fits


def test_a_tokenizer_json_is_completed_by_its_config(tmp_path):
    """Tokens that only tokenizer_config.json adds are found in texts, and those that it names are special."""
    ours = ByteLevelBpe(400).build(lambda: TEXTS, str(tmp_path / "kept"))
    write(tmp_path / "out", config__json={"model_type": "gpt2"})
    export_tokenizer(ours, tmp_path / "out")
    path = tmp_path / "out" / "tokenizer_config.json"
    new = {
        "content": "foo",
        "lstrip": False,
        "rstrip": False,
        "single_word": False,
        "normalized": True,
        "special": False,
    }
    end = new | {"content": "<|im_end|>", "normalized": False, "special": True}
    settings = json.loads(path.read_text())
    old = json.loads((tmp_path / "out" / "tokenizer.json").read_text())["added_tokens"]
    decoder = {str(token["id"]): {key: token[key] for key in new} for token in old} | {"400": new, "401": end}
    path.write_text(json.dumps(settings | {"added_tokens_decoder": decoder, "eos_token": "<|im_end|>"}))
    read, theirs = import_tokenizer(tmp_path / "out"), transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert (len(theirs), theirs.eos_token_id) == (read.vocab_size, read.eos_id) == (402, 401)
    assert_equal_tokens(read, theirs, (*HARD_STRINGS, *ADDED, *NAMED_STRINGS))
    assert (
        theirs("a foo", "b").input_ids
        == read.template("decoder").lay_out(*map(read.encode, ("a foo", "b"))).tokens.tolist()
    )
